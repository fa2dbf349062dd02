"""Random small models and ragged batches for the LCR-SER tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lcrsr.embedding import init_tables, look_up
from lcrsr.model import LCRSER, ModelConfig

USERS, ITEMS, WORDS = 6, 20, 15


def config(**changes):
    values = {
        "width": 8,
        "ffn_width": 8,
        "heads": 2,
        "max_steps": 3,
        "rec_length": 5,
        "search_length": 4,
        "dropout": 0.0,
        "mlp_widths": (7, 5),
    }
    return ModelConfig(**(values | changes))


def ragged_batch(seed=0, rec_length=5, search_length=4, words=3, clicks=2, candidates=4):
    """Users: full, short, no clicks, no searches, nothing at all, queries without words."""
    rng = np.random.default_rng(seed)
    rec_lengths = [rec_length, 2, 0, 3, 0, 1]
    search_lengths = [search_length, 1, 3, 0, 0, 2]
    b = len(rec_lengths)
    batch = {
        "user": rng.integers(1, USERS + 1, b).astype(np.int32),
        "rec_items": rng.integers(1, ITEMS + 1, (b, rec_length)).astype(np.int32),
        "query_words": rng.integers(1, WORDS + 1, (b, search_length, words)).astype(np.int32),
        "clicked_items": rng.integers(0, ITEMS + 1, (b, search_length, clicks)).astype(np.int32),
        "candidates": rng.integers(1, ITEMS + 1, (b, candidates)).astype(np.int32),
        "labels": np.eye(1, candidates, dtype=np.float32).repeat(b, 0),
        "mask": np.ones(b, np.float32),
    }
    for row in range(b):
        batch["rec_items"][row, rec_lengths[row] :] = 0
        batch["query_words"][row, search_lengths[row] :] = 0
        batch["clicked_items"][row, search_lengths[row] :] = 0
    batch["query_words"][0, 1, 2:] = 0  # a shorter query
    batch["query_words"][5] = 0  # queries without words, only clicks
    batch["clicked_items"][5, :2, 0] = 3
    batch["clicked_items"][1] = 0  # sessions without clicks
    return batch


def setup(cfg, batch, seed=0, scale=0.5):
    """(model, params with random biases and norms, tables)."""
    model = LCRSER(cfg)
    tables = init_tables(
        jax.random.key(seed),
        num_users=USERS,
        num_items=ITEMS,
        num_words=WORDS,
        width=cfg.width,
        scale=scale,
    )
    params = _init(model, jax.random.key(seed + 1), batch, tables)
    rng = np.random.default_rng(seed)
    shaken = jax.tree.map(
        lambda p: p + jnp.asarray(0.3 * rng.standard_normal(p.shape), p.dtype), params
    )
    return model, shaken, tables


@functools.partial(jax.jit, static_argnums=0)
def _init(model, key, batch, tables):
    """Compiled once a model and shapes, and only what the parameters need is computed."""
    rows = look_up(tables, batch)
    return model.init(key, batch, rows, jnp.int32(0), deterministic=True)["params"]


def forward(model, params, tables, batch, active):
    return _forward(model, params, tables, batch, jnp.int32(active))


@functools.partial(jax.jit, static_argnums=0)
def _forward(model, params, tables, batch, active):
    rows = look_up(tables, batch)
    return model.apply({"params": params}, batch, rows, active, deterministic=True)
