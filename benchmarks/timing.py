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
    operations = matmul_operations(function, *arguments)
    start = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=0 if carry else ()).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    seconds = []
    for call in range(_WARM_UP + repeats):
        start = time.perf_counter()
        outputs = jax.block_until_ready(compiled(*arguments))
        if call >= _WARM_UP:
            seconds.append(time.perf_counter() - start)
        if carry:
            arguments = (outputs[0], *arguments[1:])
        del outputs
    memory: Any = compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return Timing(statistics.median(seconds), compile_seconds, operations, peak)


def measure_training(task: Task, state: State, repeats: int) -> Timing:
    """Measures one update of a task on its first batch, again and again."""
    batch = jax.device_put(next(task.batches(0)))
    rate = jnp.float32(1e-3)
    return measure(task.train_step, state, batch, rate, repeats=repeats, carry=True)


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
