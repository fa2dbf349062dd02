"""Defines what training and evaluation ask of a model that ranks items: the `Ranker` protocol."""

from __future__ import annotations

from typing import Any, Protocol

import flax.linen as nn
import jax

Batch = dict[str, Any]
Rows = dict[str, jax.Array]
Params = Any


def drawn_parameters(network: nn.Module, key: jax.Array, *inputs: Any) -> Params:
    """Draws a network's parameters, and computes nothing of what it makes of its inputs.

    Outside a `jit`, `network.init` would compile the whole pass operation by operation.

    Args:
      key: of the parameters, which are bit for bit those of `network.init`.
      inputs: arrays of the network's inputs; only their shapes and dtypes matter.
    """
    shapes = jax.eval_shape(lambda *arrays: arrays, *inputs)
    variables: Any = network.lazy_init({"params": key}, *shapes, deterministic=True)
    return variables["params"]


def numbers_of(ranker: Ranker) -> dict[str, Any]:
    """Returns the arithmetic settings that `ranker` takes traced; most rankers have none."""
    return getattr(ranker, "numbers", {})


def is_dot_product(ranker: Ranker) -> bool:
    """Tells whether a score is the product of an item's row and of one vector of the user."""
    return getattr(ranker, "dot_product", False)


def shares_negatives(ranker: Ranker) -> bool:
    """Tells whether a ranker's loss holds each target against the negatives of the whole batch."""
    return getattr(ranker, "shares_negatives", False)


class Ranker(Protocol):
    """Describes LCR-SER or a baseline: pure functions over parameters, and embedding rows of a
    batch.

    Attributes:
      tables: the embedding tables it reads, of 'user', 'item', 'word' (`lcrsr.embedding`).
      width: D of the tables' rows.
      init_scale: standard deviation of these rows at the start.
      tasks: ('recommendation',), with 'search' where the loss wants batches that end in search
        examples, whose current query's words are `query` [S, W].
      trains_on_windows: whether `loss` also takes batches of windows
        (`input_pipelines.windows`), whose histories are encoded once for several targets.
      needs_whole_tables: whether the loss is over all items, whose gradients reach tables only
        where the task's `table_update` is 'dense'.

    A ranker may also have `numbers`, its arithmetic settings by name. `loss`, `score` and
    `score_catalogue` then take other values of them, traced, as keywords: one compiled program
    serves runs that differ in these alone. It may have `catalogue_chunk`, of how many items
    `score_catalogue` is best called with, and `popularity_weight`, which the first coordinate of an
    item's row times is a bias at the start (`lcrsr.spectral_start`), `shares_negatives`,
    `user_scale`, the standard deviation of users' rows at the start where it is not `init_scale`,
    and `starts_users`, where a user's row is all that it knows of a user and starts there too.
    Where `dot_product` is True a score is the product of an item's row and of the user's vector,
    float32 [B, D], which `user_vectors(params, users, rows)` returns; it takes `numbers` as `score`
    does.

    A ranker that answers searches, with 'search' in `tasks`, has
    `score_query(params, users, rows, items, query)`: scores float32 [B, V] of items [V, D] for the
    current queries' words, int32 [B, W], whose vectors are `rows['query']`. `represent` is given
    the queries too, as `query` of its batch and rows.
    """

    tables: tuple[str, ...]
    width: int
    init_scale: float
    tasks: tuple[str, ...]
    needs_whole_tables: bool
    trains_on_windows: bool

    def init(self, key: jax.Array, batch: Batch, rows: Rows) -> Params:
        """Returns random parameters of the network, the tables apart."""
        ...

    def loss(
        self, params: Params, batch: Batch, rows: Rows, tables: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the training loss without L2, and scalars to log.

        Args:
          rows: the batch's fields as vectors, `user` [B, D], `rec_items` [B, Lr, D] and so on.
          tables: whole tables, for losses over all items.
          key: of dropout.
        """
        ...

    def represent(self, params: Params, batch: Batch, rows: Rows) -> Any:
        """Returns what scoring needs of a batch's users, without dropout."""
        ...

    def score(self, params: Params, users: Any, rows: Rows) -> jax.Array:
        """Scores float32 [B, N] of every user's own candidates, `rows['candidates']` [B, N, D]."""
        ...

    def score_catalogue(
        self, params: Params, users: Any, rows: Rows, items: jax.Array
    ) -> jax.Array:
        """Scores float32 [B, V] of one list of items [V, D] for every user."""
        ...
