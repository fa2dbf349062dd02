"""Lays a stage's arrays on a mesh: FSDP over `data`, tensor parallel over `model`.

The mesh is `core.partitioning`'s: batches are cut over both axes, and its second axis, which cuts
the tables of other systems, cuts vocabulary, heads and hidden units here.
"""

from __future__ import annotations

import re

import jax
from flax import traverse_util
from jax.sharding import Mesh, PartitionSpec

from core.partitioning import DATA, MODEL, Partition, Rules
from crs_jax.decoder import init_params, logical_axes
from crs_jax.decoder_config import DecoderConfig

# From the logical axes of parameters to axes of the mesh; other axes are whole everywhere.
AXIS_RULES = {"embed": DATA, "vocab": MODEL, "heads": MODEL, "mlp": MODEL}
# What of a batch of either task is no row of it.
WHOLE = frozenset({"rate", "trie", "seed"})


def rules_of(config: DecoderConfig, mesh: Mesh) -> Rules:
    """Returns a rule for each parameter, which fits its moments and its copy as a reference too.

    An axis that the mesh's does not divide stays whole.
    """
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    axes = traverse_util.flatten_dict(logical_axes(shapes), sep="/")
    rules = []
    for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items():
        names = [AXIS_RULES.get(axis) for axis in axes[path]]
        fits = [
            name if name and size % mesh.shape[name] == 0 else None
            for name, size in zip(names, leaf.shape, strict=True)
        ]
        rules.append((f"(^|/){re.escape(path)}$", PartitionSpec(*fits)))
    return tuple(rules)


def partition_of(config: DecoderConfig, mesh: Mesh) -> Partition | None:
    """Returns the mesh with the network's rules; None for one device."""
    if mesh.size == 1:
        return None
    return Partition(mesh, rules_of(config, mesh), whole=WHOLE)
