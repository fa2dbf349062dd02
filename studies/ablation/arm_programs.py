"""Compiles the steps of arms (`studies.ablation.arms`), and lays their states on devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core.task import TracedTask

ARM = "arm"
_T = TypeVar("_T")


def row(leaf: jax.Array, place: int) -> jax.Array:
    """Returns leaf[place], from the device that holds it."""
    for shard in leaf.addressable_shards:
        start, stop, _ = shard.index[0].indices(leaf.shape[0])
        if start <= place < stop:
            return shard.data[place - start]
    raise AssertionError(f"no device of this process holds arm {place}")


class Programs:
    """Holds the compiled steps, by what of their arguments has an arm axis."""

    def __init__(self, devices: list[Any]):
        self._devices = devices
        self._made: dict[Any, Any] = {}

    def _count(self, size: int) -> int:
        return max(n for n in range(1, len(self._devices) + 1) if size % n == 0)

    def _mesh(self, size: int) -> Mesh | None:
        count = self._count(size)
        return Mesh(np.asarray(self._devices[:count]), (ARM,)) if count > 1 else None

    def device(self, place: int, size: int) -> Any:
        """Returns the device of the arm at `place` in a stack of `size`."""
        return self._devices[place * self._count(size) // size]

    def spread(self, arms: list[_T]) -> list[list[_T]]:
        """Cuts the arms into stacks that leave no device more of them than another by over one."""
        size, devices = len(arms), len(self._devices)
        if size // self._count(size) == -(-size // devices):
            return [arms]
        whole = size - size % devices
        return [arms[:whole], arms[whole:]]

    def stacked(self, *leaves: jax.Array) -> jax.Array:
        """Stacks the arms' leaves [...] as [A, ...], wherever they lie, each part made on its
        device.
        """
        size = len(leaves)
        mesh = self._mesh(size)
        each = size // self._count(size)
        parts = [
            jnp.stack([jax.device_put(leaf, device) for leaf in leaves[start : start + each]])
            for start in range(0, size, each)
            for device in [self.device(start, size)]
        ]
        if mesh is None:
            return parts[0]
        sharding = NamedSharding(mesh, PartitionSpec(ARM))
        shape = (size, *leaves[0].shape)
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    def everywhere(self, leaf: jax.Array, size: int) -> jax.Array:
        """Puts what the arms of a stack share on all of its devices."""
        mesh = self._mesh(size)
        if mesh is None:
            return jax.device_put(leaf, self._devices[0])
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec()))

    def program(
        self,
        task: TracedTask,
        size: int,
        differing: frozenset[str],
        *,
        own_steps: bool,
        own_batches: bool,
    ) -> Callable[..., Any]:
        """Makes (state, batch, rate, numbers) -> (state, one dictionary of statistics an arm)."""
        key = (size, differing, own_steps, own_batches)
        if key not in self._made:
            self._made[key] = self._make(task, *key)
        return self._made[key]

    def _make(self, task, size, differing, own_steps, own_batches):
        if size == 1:

            def alone(*arguments):
                state, values = task.train_step(*arguments)
                return state, (values,)

            return jax.jit(alone, donate_argnums=0)
        arms, everywhere = 0, None
        of_state: dict[str, int | None] = dict.fromkeys(jax.eval_shape(task.init), arms)
        if not own_steps:
            of_state["step"] = everywhere
        of_numbers = {name: arms if name in differing else everywhere for name in task.numbers}
        axes = (of_state, arms if own_batches else everywhere, arms, of_numbers)
        step = jax.vmap(task.train_step, in_axes=axes, out_axes=(of_state, arms))
        mesh = self._mesh(size)
        if mesh is not None:
            specs = jax.tree.map(
                lambda axis: PartitionSpec() if axis is None else PartitionSpec(ARM),
                axes,
                is_leaf=lambda axis: axis is None,
            )
            step = jax.shard_map(
                step,
                mesh=mesh,
                in_specs=specs,
                out_specs=(specs[0], PartitionSpec(ARM)),
                check_vma=False,
            )

        def together(*arguments):
            state, values = step(*arguments)
            return state, tuple(jax.tree.map(lambda v, i=i: v[i], values) for i in range(size))

        return jax.jit(together, donate_argnums=0)
