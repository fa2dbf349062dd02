"""Times compiled functions: compilation apart, medians, operations counted, memory planned."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from core.task import State, Task

_WARM_UP = 2


def matmul_operations(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations (two a multiply-add) of the matrix products of a function, as it is traced.

    Counted from the jaxpr, so that the figure is the same on every backend; loops count as often
    as they run, of branches the longest counts, and the gradient's products are part of a training
    step's trace. Elementwise work is left out: a share of the peak from this figure is a lower
    bound.
    """
    return _operations(jax.make_jaxpr(function)(*arguments).jaxpr)


def _operations(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += (
                2 * math.prod(left[axis] for axis in contracted) * equation.outvars[0].aval.size
            )
        inside = []
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    inside.append(repeats * _operations(inner))
        total += max(inside) if equation.primitive.name == "cond" else sum(inside)
    return total


@dataclasses.dataclass(frozen=True)
class Timing:
    """Holds the times of one compiled function.

    Attributes:
      seconds: median of the timed calls.
      compile_seconds: tracing, lowering and compiling.
      operations: of its matrix products, a call.
      peak_bytes: arguments, outputs and temporaries that the compiler planned; buffers that
        are reused count once.
    """

    seconds: float
    compile_seconds: float
    operations: int
    peak_bytes: int


def measure(
    function: Callable[..., Any], *arguments: Any, repeats: int, carry: bool = False
) -> Timing:
    """Compiles `function`, warms it up, and times `repeats` calls to the end of each.

    Args:
      carry: the function is (state, ...) -> (state, ...) and the state is donated, as in training;
        every call takes the state of the one before.
    """
    calls = _Calls(function, arguments, carry)
    for _ in range(repeats):
        calls.run()
    return calls.timing()


class _Calls:
    """Times calls of one function that is compiled and warm; see `measure`."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], carry: bool):
        self._arguments, self._carry = arguments, carry
        self._operations = matmul_operations(function, *arguments)
        start = time.perf_counter()
        donated = 0 if carry else ()
        self._compiled = jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
        self._compile_seconds = time.perf_counter() - start
        self._seconds: list[float] = []
        for _ in range(_WARM_UP):
            self.run()
        self._seconds.clear()

    def run(self) -> None:
        start = time.perf_counter()
        outputs = jax.block_until_ready(self._compiled(*self._arguments))
        self._seconds.append(time.perf_counter() - start)
        if self._carry:
            self._arguments = (outputs[0], *self._arguments[1:])

    def timing(self) -> Timing:
        """Returns the median of the calls since the warm-up."""
        memory: Any = self._compiled.memory_analysis()
        peak = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )
        seconds = statistics.median(self._seconds)
        return Timing(seconds, self._compile_seconds, self._operations, peak)


class Update(_Calls):
    """Times updates of a task on its first batch, one `run` each: several tasks can take turns."""

    def __init__(self, task: Task, state: State):
        batch = jax.device_put(next(task.batches(0)))
        super().__init__(task.train_step, (state, batch, jnp.float32(1e-3)), carry=True)


def measure_training(task: Task, state: State, repeats: int) -> Timing:
    """Measures one update of a task on its first batch, again and again."""
    update = Update(task, state)
    for _ in range(repeats):
        update.run()
    return update.timing()


def matmul_rate(size: int, repeats: int) -> float:
    """Returns the float32 operations per second of this machine on a product of two [size,
    size].
    """
    square = jnp.ones((size, size), jnp.float32)
    timing = measure(
        lambda a, b: jnp.matmul(a, b, precision="highest"), square, square, repeats=repeats
    )
    return timing.operations / timing.seconds


def copy_bandwidth(megabytes: int, repeats: int) -> float:
    """Bytes per second, read plus written, of an elementwise pass over float32 numbers."""
    numbers = jnp.ones(megabytes * 2**18, jnp.float32)
    timing = measure(lambda x: x + 1.0, numbers, repeats=repeats)
    return 2 * numbers.nbytes / timing.seconds
