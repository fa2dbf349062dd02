"""Saves the whole state of a training stage in one atomic, asynchronous Orbax checkpoint.

A checkpoint holds three items: `state` (every array of the run), `progress` (what the host knows:
step, learning rate, early stopping) and `digests` (of every array and of the progress), to which
what is read is held. The last `keep` checkpoints and the best one are kept.

Of several processes each may hold a whole state alone, all of them the same: process 0's is saved,
and every process restores that.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from core import array_digests, checksums, distributed
from core.errors import UserError
from core.partitioning import ROW_MULTIPLE, one_of_each_process, path_name

_LOG = logging.getLogger(__name__)


class _LastAndBest(preservation_policy.PreservationPolicy):
    """Keeps the last `keep` steps and `best_step`, which the training loop sets before a save."""

    def __init__(self, keep: int):
        self.keep = keep
        self.best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        newest = {c.step for c in checkpoints[-self.keep :]}
        return [c.step in newest or c.step == self.best_step for c in checkpoints]


def _placed(leaf: Any) -> Any:
    """Returns shape, dtype and sharding of a leaf; the first device where it says none."""
    struct = ocp.utils.to_shape_dtype_struct(leaf)
    if getattr(struct, "sharding", None) is not None:
        return struct
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=device)


def _held_alone(sharding: Any) -> bool:
    """Tells whether each of several processes holds an array whole, on a device of its own."""
    several = jax.process_count() > 1
    return several and sharding.is_fully_addressable and sharding.is_fully_replicated


def _shared(array: Any) -> Any:
    """Returns an array that this process holds alone, and the others alike, as one of them all."""
    if not isinstance(array, jax.Array) or not _held_alone(array.sharding):
        return array
    everywhere = one_of_each_process()
    (here,) = everywhere.addressable_devices
    own = jax.device_put(array.addressable_data(0), here)
    return jax.make_array_from_single_device_arrays(array.shape, everywhere, [own])


def _shared_shape(struct: Any) -> Any:
    """Returns as what to read an array that each process is to hold alone."""
    if not _held_alone(struct.sharding):
        return struct
    return jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=one_of_each_process())


def _own(array: jax.Array, struct: Any) -> jax.Array:
    """Returns what was read as `_shared_shape` says, where `struct` wants it."""
    if not _held_alone(struct.sharding):
        return array
    return jax.device_put(array.addressable_data(0), struct.sharding)


def _filled(rows: int, unit: int = ROW_MULTIPLE) -> int:
    return -(-rows // unit) * unit


def _undivided(sharding: Any) -> Any:
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding


def _storable(leaf: Any) -> Any:
    """Returns one zero for an array without elements, which Orbax refuses, else `leaf`."""
    if leaf.size:
        return leaf
    zero = functools.partial(jnp.zeros, 1, leaf.dtype)
    return jax.jit(zero, out_shardings=_undivided(leaf.sharding))()


def _as_saved(leaf: Any, saved: tuple[int, ...] | None) -> Any:
    """Returns what to read for a table that was saved packed otherwise (`core.tables`), else
    `leaf`.
    """
    if not math.prod(leaf.shape):
        return jax.ShapeDtypeStruct((1,), leaf.dtype, sharding=_undivided(leaf.sharding))
    if saved is None or len(saved) != 2 or len(leaf.shape) != 2 or saved[1] == leaf.shape[1]:
        return leaf
    (rows, width), (_, held) = leaf.shape, saved
    if max(width, held) % min(width, held):
        return leaf
    return jax.ShapeDtypeStruct(
        (-(-rows * width // held), held), leaf.dtype, sharding=leaf.sharding
    )


def _repacked(saved: jax.Array, leaf: Any) -> jax.Array:
    """Brings a table as `_as_saved` read it into the shape of `leaf`."""
    if saved.shape == leaf.shape:
        return saved
    if not math.prod(leaf.shape):
        empty = functools.partial(jnp.zeros, leaf.shape, leaf.dtype)
        return jax.jit(empty, out_shardings=leaf.sharding)()
    rows, *rest = leaf.shape
    return jax.jit(lambda a: a.reshape(-1, *rest)[:rows], out_shardings=leaf.sharding)(saved)


def _with_filling(leaf: Any, saved: tuple[int, ...] | None) -> Any:
    """Gives `leaf` as many rows as were saved where those are more: the digest covers them."""
    if (
        saved is None
        or not leaf.shape
        or len(saved) != len(leaf.shape)
        or saved[0] <= leaf.shape[0]
    ):
        return leaf
    return jax.ShapeDtypeStruct((saved[0], *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding)


def _named(state: Any) -> dict[str, Any]:
    """Returns every array of `state` by its path."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _digests(state: Any) -> dict[str, str]:
    """Returns the digest, 16 hex digits, of every array by its path, over all processes."""
    own = {name: array_digests.first_copies(leaf) for name, leaf in _named(state).items()}
    every = distributed.of_all(own)
    return {name: f"{array_digests.total(one[name] for one in every):016x}" for name in own}


def _read_progress(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Reads the progress of a checkpoint and the digests of its arrays.

    Raises:
      ValueError: one of them is not what was saved.
      OSError: one of them is missing.
    """
    read = ocp.JsonCheckpointHandler().restore
    progress, digests = (read(folder / name) for name in ("progress", "digests"))
    if not isinstance(progress, dict) or not isinstance(digests, dict):
        raise ValueError("its progress or digests are not what was saved")
    wanted = digests.get("progress")
    try:
        checksums.unsealed(digests, str(folder / "digests"), "digests", "")
    except UserError as error:
        raise ValueError("its digests are not those that were saved") from error
    if checksums.sealed(progress)[checksums.CHECKSUM] != wanted:
        raise ValueError("its progress is not what was saved")
    return progress, digests["state"]


def _shapes(state: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array of `state` by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {path_name(path): leaf.shape for path, leaf in leaves}


def newest_progress(directory: str) -> dict[str, Any] | None:
    """Reads the progress of the newest checkpoint that has a readable one; writes nothing.

    Returns:
      None where there is no such checkpoint, or no such directory.
    """
    folder = pathlib.Path(directory)
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
    for step in sorted(steps, reverse=True):
        try:
            return _read_progress(folder / str(step))[0]
        except (OSError, ValueError):
            continue
    return None


class Checkpoints:
    """Saves and restores one stage under `directory`, which the first save creates."""

    def __init__(self, directory: str, keep: int = 2):
        self._directory = os.path.abspath(directory)
        self._policy = _LastAndBest(keep)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy, enable_async_checkpointing=True
            ),
            # Named, so that a manager that has saved nothing yet can read shapes.
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
                "digests": ocp.JsonCheckpointHandler(),
            },
        )

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, progress: dict[str, Any], best_step: int | None) -> None:
        """Starts saving; returns once the arrays are copied off the device.

        Raises:
          UserError: this or the previous save could not be written (a full disk, for instance).
        """
        self._policy.best_step = best_step
        stored = jax.tree.map(_storable, jax.tree.map(_shared, state))
        digests = checksums.sealed(
            {
                "state": _digests(stored),
                "progress": checksums.sealed(progress)[checksums.CHECKSUM],
            }
        )
        self._guard(
            step,
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(stored),
                    progress=ocp.args.JsonSave(progress),
                    digests=ocp.args.JsonSave(digests),
                ),
                force=True,
            ),
        )

    def wait(self) -> None:
        """Blocks until the last save is on disk. Raises UserError like `save`."""
        self._guard(None, self._manager.wait_until_finished)

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any], int] | None:
        """Reads `step`, or the newest checkpoint that can be read.

        Args:
          like: a state with the shapes, dtypes and shardings wanted back; an array without a
            sharding comes back on one device. The mesh need not be the one that saved: every
            process reads the parts of its own devices. Rows that only fill up a table to a multiple
            of `ROW_MULTIPLE` are dropped or added as wanted, and tables are packed as wanted.
          step: one step to read; None means the newest readable.

        Returns:
          (state, progress, step), or None where there is no checkpoint at all.

        Raises:
          UserError: checkpoints exist and none that was asked for can be read. A checkpoint whose
            values have changed since they were saved cannot be read.
        """
        # Of several processes all read the same steps, and all take one or none of them does.
        wanted = distributed.of_first([step] if step is not None else self.steps()[::-1])
        wanted_alone = jax.tree.map(_placed, like)
        abstract = jax.tree.map(_shared_shape, wanted_alone)
        for candidate in wanted:
            read, reason = self._checked(candidate, abstract)
            failed = [n for n, ok in enumerate(distributed.of_all(not reason)) if not ok]
            if failed:
                _LOG.warning(
                    "checkpoint %d in %s cannot be read%s; trying the one before",
                    candidate,
                    self._directory,
                    f" ({reason})" if reason else f" by process {failed[0]}",
                )
                continue
            assert read is not None
            state = jax.tree.map(_repacked, read[0], abstract)
            return jax.tree.map(_own, state, wanted_alone), read[1], candidate
        if wanted:
            raise UserError(
                f"expected a readable checkpoint in {self._directory}, found {len(wanted)} that "
                "cannot be read; restore the files or start again with another --workdir"
            )
        return None

    def _checked(self, step: int, abstract: Any) -> tuple[tuple[Any, dict[str, Any]] | None, str]:
        """Returns this process's part of a checkpoint and ''; or None and why it cannot use it.

        The reason is '' where another process has one.
        """
        state, reason = None, ""
        progress: dict[str, Any] = {}
        saved: dict[str, str] = {}
        parts: dict[str, dict[str, int]] = {}
        try:
            state, progress, saved = self._read(step, abstract)
            parts = {name: array_digests.parts(leaf) for name, leaf in _named(state).items()}
        except Exception as error:  # Orbax and TensorStore raise many types for a cut file
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        # A process that could not read has no parts; its reason is logged by the caller.
        every = distributed.of_all(parts)
        if reason or not all(every):
            return None, reason
        for name in parts:
            whole: dict[str, int] = {}
            copies = [one[name].items() for one in every]
            alike = all(whole.setdefault(part, own) == own for held in copies for part, own in held)
            digest = f"{array_digests.total(iter(whole.values())):016x}"
            if not alike or digest != saved.get(name):
                return None, f"the values of {name} are not those that were saved"
        return (state, progress), ""

    def _read(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any], dict[str, str]]:
        """Reads this process's part of a checkpoint, and the digests of the whole.

        The manager would wait for processes that cannot read theirs, or take their next attempt
        for this one.
        """
        folder = pathlib.Path(self._directory) / str(step)
        progress, digests = _read_progress(folder)
        saved, read = self._saved_shapes(step), self._as_saved(step, abstract)
        if fits := self._differs_in_filling(step, abstract):
            read = jax.tree_util.tree_map_with_path(
                lambda path, leaf: _with_filling(leaf, saved.get(path_name(path))), read
            )
        state = ocp.StandardCheckpointHandler().restore(
            folder / "state", args=ocp.args.StandardRestore(read, strict=not fits)
        )
        return state, progress, digests

    def _saved_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        return _shapes(self._manager.item_metadata(step)["state"].tree)

    def _as_saved(self, step: int, abstract: Any) -> Any:
        saved = self._saved_shapes(step)
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: _as_saved(leaf, saved.get(path_name(path))), abstract
        )

    def _differs_in_filling(self, step: int, abstract: Any) -> bool:
        """Tells whether shapes differ from the saved ones only by rows that fill up tables."""
        wanted, saved = _shapes(abstract), self._saved_shapes(step)
        read = _shapes(self._as_saved(step, abstract))

        def fits(name):
            shape, held = read[name], saved.get(name, ())
            if shape == held:
                return True
            if shape[1:] != held[1:] or len(shape) != len(held):
                return False
            # Packed rows come in the multiple, so the rows in them in a multiple of more.
            unit = ROW_MULTIPLE * max(1, math.prod(wanted[name][1:]) // math.prod(shape[1:]))
            return _filled(shape[0], unit) == _filled(held[0], unit)

        return read != saved and all(fits(name) for name in read)

    def clear_after(self, step: int) -> None:
        """Removes what would stand in the way of going on from `step`, 0 for the start.

        These are checkpoints after it, which could not be read, and parts of saves that a kill has
        left. For who holds the workdir's lock; a reader removes nothing.
        """
        for later in [later for later in self.steps() if later > step]:
            self._manager.delete(later)
        if jax.process_index() == 0:
            for part in pathlib.Path(self._directory).glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(part, ignore_errors=True)

    def _guard(self, step: int | None, action: Any) -> None:
        try:
            action()
        except Exception as error:  # a failed write surfaces as OSError, ValueError or XlaError
            try:
                self._manager.reload()
                good = self.steps()
            except Exception:
                good = []
            what = f"checkpoint {step}" if step is not None else "the last checkpoint"
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            last = f"step {good[-1]} is the last good one" if good else "none was saved before"
            raise UserError(
                f"cannot save {what} in {self._directory}: {reason}; {last}: free some disk space "
                "and run the same command again"
            ) from error

    def close(self) -> None:
        self._manager.close()
