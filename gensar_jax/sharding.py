"""Lays T5's arrays on a mesh: the network names its axes, one table maps the names.

The mesh is `core.partitioning`'s: batches are cut over both axes, and its second axis, which cuts
the tables of other systems, cuts the network here (model parallelism): vocabulary, heads and hidden
units, as in T5X's rules.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
from flax import traverse_util
from flax.linen import partitioning
from jax.sharding import Mesh, PartitionSpec

from core.partitioning import MODEL, Partition, Rules
from gensar_jax.t5.network import Transformer

# Logical axes that the second axis cuts. Of an array with two of them the first is cut.
CUT = ("vocab", "heads", "joined_kv", "mlp")


def rules_of(network: Transformer, parts: int) -> Rules:
    """Returns a rule for each parameter that is cut, which fits its optimizer moments too.

    Args:
      parts: extent of the mesh's second axis. An array whose axis it does not divide stays whole.
    """
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    variables = jax.eval_shape(
        lambda key, *tokens: network.init(key, *tokens, enable_dropout=False),
        jax.random.key(0),
        *(token,) * 3,
    )
    shapes = traverse_util.flatten_dict(variables["params"], sep="/")
    names = partitioning.get_axis_names(variables["params_axes"])
    rules = []
    for path, axes in traverse_util.flatten_dict(names, sep="/").items():
        places = [
            place
            for place, axis in enumerate(axes)
            if axis in CUT and shapes[path].shape[place] % parts == 0
        ]
        if places:
            spec = [None] * places[0] + [MODEL]
            rules.append((f"(^|/){re.escape(path)}$", PartitionSpec(*spec)))
    return tuple(rules)


def partition_of(network: Transformer, mesh: Mesh) -> Partition | None:
    """Returns the mesh with the network's rules; None for one device."""
    if mesh.size == 1:
        return None
    return Partition(mesh, rules_of(network, mesh.shape[MODEL]))
