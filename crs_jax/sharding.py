"""Where a stage's arrays lie on a mesh: FSDP over `data`, tensor parallel over `table`."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core.partitioning import BATCH_AXES, DATA, TABLE, path_name
from crs_jax.decoder import LOGICAL_AXES

# From the logical axes of parameters to those of the mesh; others are whole everywhere.
AXIS_RULES = {"embed": DATA, "vocab": TABLE, "heads": TABLE, "mlp": TABLE}


def parameter_shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array of a state: of parameters, and of moments by the same names.

    What is named otherwise (a step, a table of ids) is copied to every device.
    """

    def of(path, leaf):
        name = path_name(path)
        axes = next((axes for end, axes in LOGICAL_AXES.items() if name.endswith(end)), ())
        if len(axes) != len(leaf.shape):
            return NamedSharding(mesh, PartitionSpec())
        names = [AXIS_RULES.get(axis) if axis else None for axis in axes]
        return NamedSharding(mesh, PartitionSpec(*names))

    return jax.tree_util.tree_map_with_path(of, tree)


def batch_shardings(batch: Any, mesh: Mesh, cut: frozenset[str]) -> Any:
    """The sharding of a batch: of the fields in `cut` by their first axis over the whole mesh.

    Args:
      batch: a dict; what is not in `cut` (a trie, a number) is copied to every device.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return {
        name: jax.tree.map(lambda _, s=rows if name in cut else whole: s, value)
        for name, value in batch.items()
    }
