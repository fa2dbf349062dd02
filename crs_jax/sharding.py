"""Lays a stage's arrays on a mesh: FSDP over `data`, tensor parallel over `model`.

The mesh is `core.partitioning`'s: batches are cut over both axes, and its second axis, which cuts
the tables of other systems, cuts vocabulary, heads and hidden units here.
"""

from __future__ import annotations

import jax
from flax import traverse_util
from jax.sharding import Mesh

from core.partitioning import DATA, MODEL, Partition, Rules, rules_of_axes
from crs_jax.decoder import init_params, logical_axes
from crs_jax.decoder_config import DecoderConfig

# From the logical axes of parameters to axes of the mesh; other axes are whole everywhere.
AXIS_RULES = {"embed": DATA, "vocab": MODEL, "heads": MODEL, "mlp": MODEL}
# What of a batch of either task is no row of it.
WHOLE = frozenset({"rate", "trie", "seed"})


def rules_of(config: DecoderConfig, mesh: Mesh) -> Rules:
    """Returns the rules of the parameters, by `core.partitioning.rules_of_axes`."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    axes = traverse_util.flatten_dict(logical_axes(shapes), sep="/")
    paths = traverse_util.flatten_dict(shapes, sep="/")
    return rules_of_axes(paths, axes, AXIS_RULES, mesh.shape)


def partition_of(config: DecoderConfig, mesh: Mesh) -> Partition | None:
    """Returns the mesh with the network's rules; None for one device."""
    if mesh.size == 1:
        return None
    return Partition(mesh, rules_of(config, mesh), whole=WHOLE)
