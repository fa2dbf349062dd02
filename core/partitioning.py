"""Meshes of devices, and which array of a state lies where on them.

A mesh has two axes. Batches are cut over both; tables are cut by rows over `model` and copied over
`data`; everything else is copied to every device. So (n, 1) is data-parallel, (1, n) is
table-parallel, and anything between is both. Models name no device: one list of rules maps the
names of a state's arrays to the mesh.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core.errors import UserError
from core.tables import rows_together

DATA, MODEL = "data", "model"
BATCH_AXES = (DATA, MODEL)
# Rows of sharded tables, packed or not, come in multiples of this on every mesh, so that a
# checkpoint fits all.
ROW_MULTIPLE = 256

Rules = tuple[tuple[str, PartitionSpec], ...]


def rules_of_axes(
    shapes: Mapping[str, Any],
    axes: Mapping[str, Sequence[str | None]],
    cut: Mapping[str, str],
    extents: Mapping[str, int],
) -> Rules:
    """Returns a rule for each parameter that the mesh cuts, which fits its moments and copies too.

    An axis of the mesh cuts the first of an array's axes that is named for it and that it divides.

    Args:
      shapes: of parameters, arrays or shapes by their paths.
      axes: names of the parameters' axes, by the same paths.
      cut: the mesh's axis for each name; axes of other names stay whole.
      extents: of the mesh's axes.
    """
    rules = []
    for path, names in axes.items():
        spec: list[str | None] = []
        for size, name in zip(shapes[path].shape, names, strict=True):
            axis = cut.get(name) if name else None
            spec.append(axis if axis and axis not in spec and size % extents[axis] == 0 else None)
        while spec and spec[-1] is None:
            spec.pop()
        if spec:
            rules.append((f"(^|/){re.escape(path)}$", PartitionSpec(*spec)))
    return tuple(rules)


@dataclasses.dataclass(frozen=True)
class Partition:
    """Joins a mesh with rules of the form (regular expression over an array's path, its spec).

    An array's path joins the keys that lead to it by '/', for instance `tables/item`; the first
    rule found in it counts, and an array without one is copied to every device.

    Attributes:
      table_width: D of the tables' rows, which are packed by it (`core.tables`) where the mesh
        cuts tables; None packs nothing.
      whole: keys of a training batch whose arrays every device holds (a trie, a rate); the others
        are cut.
    """

    mesh: Mesh
    rules: Rules
    table_width: int | None = None
    whole: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        return self.mesh.size

    @property
    def rows_together(self) -> int:
        """Returns p: tables [V, D] lie as [V/p, p*D]."""
        cut = self.mesh.shape[MODEL] > 1
        return rows_together(self.table_width) if cut and self.table_width else 1

    @property
    def row_multiple(self) -> int:
        """Returns what V of every table must be a multiple of."""
        return ROW_MULTIPLE * self.rows_together if self.mesh.shape[MODEL] > 1 else 1

    @property
    def batch_sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def shardings(self, state: Any) -> Any:
        """Returns the sharding of every array of `state`, by the rules."""

        def of(path, leaf):
            del leaf
            name = path_name(path)
            for pattern, spec in self.rules:
                if re.search(pattern, name):
                    return NamedSharding(self.mesh, spec)
            return self.replicated

        return jax.tree_util.tree_map_with_path(of, state)

    def abstract(self, state: Any) -> Any:
        """Shapes and dtypes of `state` with their shardings, to restore a checkpoint into."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            self.shardings(state),
        )

    def batch_shardings(self, batch: Any) -> Any:
        """Returns the sharding of every array of a training batch, a dict."""

        def of(path, leaf):
            del leaf
            return self.replicated if path[0].key in self.whole else self.batch_sharding

        return jax.tree_util.tree_map_with_path(of, batch)

    def put_part(self, part: Any) -> Any:
        """Puts a batch over the devices, from the parts that the processes made of it.

        Args:
          part: a dict of host arrays [B / n, ...], of n processes: the rows of a batch [B, ...]
            that this one is to hold, process 0 the first (`own_rows`). What is in `whole` all
            bring alike, or have `put_whole` already.

        Raises:
          UserError: B is no multiple of the number of devices.
        """

        def put(array, sharding):
            if sharding.is_fully_replicated:
                return array if isinstance(array, jax.Array) else placed(array, sharding)
            array = np.asarray(array)
            shape = (array.shape[0] * jax.process_count(), *array.shape[1:])
            self.check_batch_size(shape[0])
            return jax.make_array_from_process_local_data(sharding, array, shape)

        return jax.tree.map(put, part, self.batch_shardings(part))

    def put_batch(self, batch: Any) -> Any:
        """Cuts a batch of host arrays [B, ...] over the devices; each process keeps its part.

        Every process brings the whole batch, as in evaluation.

        Raises:
          UserError: B is no multiple of the number of devices.
        """

        def put(array):
            array = np.asarray(array)
            self.check_batch_size(array.shape[0])
            return placed(array, self.batch_sharding)

        return jax.tree.map(put, batch)

    def put_whole(self, tree: Any) -> Any:
        """Puts host arrays that every process brings alike on every device."""
        return jax.tree.map(lambda array: placed(array, self.replicated), tree)

    def check_batch_size(self, size: int, name: str = "a batch size") -> None:
        if size % self.size:
            raise UserError(
                f"expected {name} that is a multiple of the mesh's {self.size} devices, found "
                f"{size}; change it or config.mesh"
            )


def placed(array: Any, sharding: NamedSharding) -> jax.Array:
    """Cuts a host array that every process brings alike over the devices.

    `jax.device_put` would let the processes compare it first, over the network.
    """
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def own_copy(tree: Any) -> Any:
    """Returns arrays that every device holds whole as this process's own, to compute with alone."""

    def own(leaf: Any) -> Any:
        several = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
        return leaf.addressable_data(0) if several else leaf

    return jax.tree.map(own, tree)


def one_of_each_process() -> NamedSharding:
    """Returns the sharding of arrays that lie whole on one device of every process."""
    first: dict[int, Any] = {}
    for device in jax.devices():
        first.setdefault(device.process_index, device)
    devices = np.array([first[number] for number in sorted(first)])
    return NamedSharding(Mesh(devices, (DATA,)), PartitionSpec())


def own_rows(count: int) -> slice:
    """Returns which rows, of `count` in a whole batch, this one of several processes is to hold."""
    own = count // jax.process_count()
    return slice(jax.process_index() * own, (jax.process_index() + 1) * own)


def random_bits_impl(partition: Partition | None) -> str:
    """Names the generator of a training step's many random bits, as `jax.random.key` takes it.

    rbg is the fastest on one device, a CPU too. But a TPU's partitioner does not cut it: every chip
    would draw the bits of the whole batch. Over several accelerators it is threefry, which is cut.
    """
    if partition is None or partition.mesh.devices.flat[0].platform == "cpu":
        return "rbg"
    return "threefry2x32"


def path_name(path: Any) -> str:
    """Writes a path of `jax.tree_util` as 'tables/item'."""
    return "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)


def make_mesh(data: int, model: int, devices: Any = None) -> Mesh:
    """Makes a mesh of the given extents; -1 means all devices that the other axis leaves.

    Args:
      data, model: copies of the tables or network, and parts that each copy is cut into.
      devices: of this mesh in order; by default this run's.

    Raises:
      UserError: the extents do not fit the devices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices).reshape(-1)
    # Each process's devices in a row: it makes a contiguous part of every batch.
    devices = np.array(sorted(devices, key=lambda device: device.process_index))
    extents = {DATA: data, MODEL: model}
    if list(extents.values()).count(-1) > 1 or any(n == 0 or n < -1 for n in extents.values()):
        raise UserError(
            f"expected config.mesh.data and config.mesh.model of at least 1, one of them -1 at "
            f"most, found {data} and {model}; -1 takes all remaining devices"
        )
    for axis, other in ((DATA, model), (MODEL, data)):
        if extents[axis] == -1:
            extents[axis] = max(1, len(devices) // other)
    total = math.prod(extents.values())
    if total > len(devices):
        raise UserError(
            f"expected a mesh of at most {len(devices)} devices, found config.mesh of "
            f"{extents[DATA]} x {extents[MODEL]}; make it smaller or run on more devices"
        )
    if jax.process_count() > 1 and total < len(devices):
        raise UserError(
            f"expected a mesh of all {len(devices)} devices of {jax.process_count()} processes, "
            f"found config.mesh of {extents[DATA]} x {extents[MODEL]}; set one extent to -1"
        )
    if ROW_MULTIPLE % extents[MODEL]:
        raise UserError(
            f"expected config.mesh.model to divide {ROW_MULTIPLE}, found {extents[MODEL]}; make it "
            "a power of two, and config.mesh.data larger"
        )
    return Mesh(devices[:total].reshape(extents[DATA], extents[MODEL]), BATCH_AXES)
