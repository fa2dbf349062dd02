"""Chooses which parameters are trained: all, or with LoRA its own and the id tokens' rows.

A stage's parameters are {'trained': ..., 'kept': ...}, each flat by path; without LoRA nothing is
kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

_NEW_ROWS = "embedder/new_embedding"


def split(params: Any, use_lora: bool) -> dict[str, dict[str, Any]]:
    """Splits a network's parameters as a stage holds them."""
    flat = traverse_util.flatten_dict(params, sep="/")
    if not use_lora:
        return {"trained": flat}
    names = {name for name in flat if name == _NEW_ROWS or "/lora_" in name}
    return {
        "trained": {name: leaf for name, leaf in flat.items() if name in names},
        "kept": {name: leaf for name, leaf in flat.items() if name not in names},
    }


def whole(params: dict[str, dict[str, Any]], trained: dict[str, Any] | None = None) -> Any:
    """Joins the network's parameters again, with other trained ones where these are given."""
    own = params["trained"] if trained is None else trained
    return traverse_util.unflatten_dict({**params.get("kept", {}), **own}, sep="/")


def copies(params: Any) -> Callable[[], Any]:
    """Makes copies: a step donates its state, and the parameters before a stage are used again."""
    return functools.partial(jax.tree.map, jnp.copy, params)
