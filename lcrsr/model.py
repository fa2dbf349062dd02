"""Defines LCR-SER's network: Eq. 1-8 and 10 over embedded rows.

The embedding tables are not parameters of the network (`lcrsr.embedding`): it sees vectors and the
batch's ids, the latter for masks alone.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from core.settings import Count, CountOrNone, Positive, Rate, Settings, SomeWidths, one_of
from lcrsr import aggregation, attention, history_encoder, latent_reasoning
from lcrsr import query as query_lib
from lcrsr.history_encoder import Dropout, SideHistory
from lcrsr.latent_reasoning import SideWeights, States
from lcrsr.views import views_of

Batch = dict[str, jax.Array]
Rows = dict[str, jax.Array]
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SCORERS = ("mlp", "dot_product")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Shapes of the network, and how it reads what the equations leave open.

    Attributes:
      width, ffn_width, heads, layers: D, the FFN's hidden width, H, layers a side.
      max_steps: K at most, the static length of the scan; 0 is legal.
      rec_length, search_length: L of both histories.
      dropout: rate, in training only.
      block: 'post_ln', or 'printed' (Eq. 1 and 4 literally).
      self_context: 'symmetric', or 'printed' (Eq. 5 with its erratum).
      attention: of Eq. 8: 'bilinear', 'scaled_dot' or 'mean'.
      scorer: 'mlp' (Eq. 8 and 10), or 'dot_product' with one vector a user (`lcrsr.query`).
      mlp_widths: hidden widths of Eq. 10.
      init_scale: standard deviation of the tables' rows at the start; the first layer of Eq. 10
        starts scaled to it.
      dtype: of the computation, 'float32' or 'bfloat16'; parameters, softmax and logits stay
        float32.
    """

    width: Count = 64
    ffn_width: Count = 64
    heads: Count = 2
    layers: Count = 1
    max_steps: CountOrNone = 3
    rec_length: int = 30
    search_length: int = 30
    dropout: Rate = 0.1
    block: Annotated[str, one_of(*history_encoder.BLOCKS)] = "post_ln"
    self_context: Annotated[str, one_of(*latent_reasoning.SELF_CONTEXTS)] = "symmetric"
    attention: Annotated[str, one_of(*aggregation.ATTENTIONS)] = "bilinear"
    scorer: Annotated[str, one_of(*SCORERS)] = "mlp"
    mlp_widths: SomeWidths = (200, 80)
    init_scale: Positive = 0.1
    dtype: Annotated[str, one_of(*_DTYPES)] = "float32"

    def check(self) -> None:
        self.check_divisible("width", by="heads")


@flax.struct.dataclass
class Histories:
    """Holds both sides' encoded histories."""

    rec: SideHistory
    search: SideHistory


@flax.struct.dataclass
class Outputs:
    """Holds what training needs.

    Attributes:
      logits: of the candidates, [B, N].
      cross, plain: the states with and without cross-attention, for Eq. 9.
      query: [B, D] of the dot product; None where Eq. 10 scores.
    """

    logits: jax.Array
    cross: States
    plain: States
    histories: Histories
    query: jax.Array | None


class Encoder(nn.Module):
    """Holds one side's layers, positions and learned start of an empty history."""

    config: ModelConfig
    length: int

    @nn.compact
    def __call__(self) -> tuple[SideWeights, jax.Array, jax.Array, jax.Array | None]:
        c = self.config
        layers = tuple(
            history_encoder.Layer(c.width, c.ffn_width, name=f"layer_{i}")()
            for i in range(c.layers)
        )
        normal = nn.initializers.normal(0.02)
        steps = self.param("step_positions", normal, (c.max_steps, c.width))
        positions = self.param("positions", normal, (self.length, c.width))
        # About the norm of the encoder's outputs, which a layer norm ends.
        empty_start = self.param("empty_start", nn.initializers.normal(1.0), (c.width,))
        recency = None
        if c.scorer == "dot_product":
            start = query_lib.recency(self.length, c.init_scale)
            recency = self.param("recency", lambda key: start)
        return SideWeights(layers, steps), positions, empty_start, recency


class LCRSER(nn.Module):
    """Computes the network; every method takes `Rows` gathered from the tables for its `Batch`.

    `active_steps` is a traced int32 in [0, max_steps]: one compilation serves every K.
    """

    config: ModelConfig

    def setup(self):
        c = self.config
        self.rec = Encoder(c, c.rec_length)
        self.search = Encoder(c, c.search_length)
        if c.scorer == "mlp":
            self.scorer = aggregation.Scorer(c.width, c.mlp_widths, c.init_scale)
        else:
            self.query = query_lib.Query(c.width)

    def __call__(
        self, batch: Batch, rows: Rows, active_steps: jax.Array, *, deterministic: bool
    ) -> Outputs:
        """Computes everything that training needs, Eq. 1-8 and 10.

        Raises:
          AssertionError: `rows` and `batch` disagree in shape.
        """
        histories = self.encode(batch, rows, deterministic=deterministic)
        starts = (histories.rec.start, histories.search.start)
        cross = self.reason(histories, *starts, cross=True, deterministic=deterministic)
        plain = self.reason(histories, *starts, cross=False, deterministic=deterministic)
        if self.config.scorer == "mlp":
            logits = self.score(histories, cross, active_steps, rows["user"], rows["candidates"])
            return Outputs(logits, cross, plain, histories, None)
        query = self._query(histories, self._final(histories, cross, active_steps))
        logits = query_lib.scores(query, self._cast(rows["candidates"]))
        return Outputs(logits, cross, plain, histories, query)

    def encode(self, batch: Batch, rows: Rows, *, deterministic: bool) -> Histories:
        """Embeds and encodes both histories, 3.2.1 and Eq. 1, of users or of windows."""
        d = self.config.width
        chex.assert_shape(rows["rec_items"], (*batch["rec_items"].shape, d))
        chex.assert_shape(rows["query_words"], (*batch["query_words"].shape, d))
        chex.assert_shape(rows["clicked_items"], (*batch["clicked_items"].shape, d))
        dropout = self._dropout(deterministic)
        rec_mask = jnp.not_equal(batch["rec_items"], 0)
        words = jnp.not_equal(batch["query_words"], 0)
        clicks = jnp.not_equal(batch["clicked_items"], 0)
        search_mask = words.any(-1) | clicks.any(-1)
        queries = _mean_of_valid(rows["query_words"], words)
        clicked = _mean_of_valid(rows["clicked_items"], clicks)
        return Histories(
            rec=self._encode_side(
                self.rec, rows["rec_items"], rec_mask, dropout.at(0), views_of(batch, "rec")
            ),
            search=self._encode_side(
                self.search,
                queries + clicked,
                search_mask,
                dropout.at(1),
                views_of(batch, "search"),
            ),
        )

    def reason(
        self,
        histories: Histories,
        rec_start: jax.Array,
        search_start: jax.Array,
        *,
        cross: bool,
        deterministic: bool,
        steps: int | None = None,
    ) -> States:
        """Computes Eq. 2-6 from given starts h^(0) [B, D]; `cross=False` leaves MCA out (Eq. 9).

        `steps` takes the first so many alone: h^(k) does not depend on how many follow.
        """
        c = self.config
        rec, search = (
            weights._replace(step_positions=weights.step_positions[:steps])
            for weights in (self._cast(self.rec()[0]), self._cast(self.search()[0]))
        )
        return latent_reasoning.reason(
            rec,
            search,
            histories.rec,
            histories.search,
            rec_start,
            search_start,
            cross=cross,
            heads=c.heads,
            block=c.block,
            self_context=c.self_context,
            dropout=self._dropout(deterministic),
        )

    def score(
        self,
        histories: Histories,
        states: States,
        active_steps: jax.Array,
        user_rows: jax.Array | None,
        candidate_rows: jax.Array,
    ) -> jax.Array:
        """Logits [B, N] of candidates [B, N, D], or [N, D] shared by all users.

        They are those of Eq. 8 and 10, or dot products. `active_steps` may be an array [B, 1] too:
        a number a user.
        """
        if self.config.scorer == "dot_product":
            query = self._query(histories, self._final(histories, states, active_steps))
            return query_lib.scores(query, self._cast(candidate_rows))
        rec, search = self._sides(histories, states, active_steps)
        return aggregation.score(
            self._cast(self.scorer()),
            rec,
            search,
            self._cast(user_rows),
            self._cast(candidate_rows),
            self.config.attention,
        )

    def score_every_k(
        self,
        histories: Histories,
        states: States,
        user_rows: jax.Array | None,
        candidate_rows: jax.Array,
    ) -> jax.Array:
        """Logits [K+1, B, N] for 0..K active steps from one pass: h^(k) does not depend on K."""
        if self.config.scorer == "dot_product":

            def every(history, reasoned):
                return jnp.moveaxis(jnp.concatenate([history.start[:, None], reasoned], 1), 1, 0)

            final = every(histories.rec, states.rec), every(histories.search, states.search)
            return query_lib.scores(self._query(histories, final), self._cast(candidate_rows))

        def side(history, reasoned):
            return aggregation.Side((history.hidden,), history.row_mask), reasoned

        return aggregation.score_every_k(
            self._cast(self.scorer()),
            side(histories.rec, states.rec),
            side(histories.search, states.search),
            self._cast(user_rows),
            self._cast(candidate_rows),
            self.config.attention,
        )

    def user_vectors(
        self, histories: Histories, states: States, active_steps: jax.Array
    ) -> jax.Array:
        """Returns q float32 [B, D] of the dot product; `active_steps` as of `score`."""
        query = self._query(histories, self._final(histories, states, active_steps))
        return query.astype(jnp.float32)

    def _query(self, histories: Histories, final: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Returns q [..., B, D] of both sides' last states [..., B, D]."""
        weights = self._cast(self.query())
        return query_lib.query(weights, (histories.rec, final[0]), (histories.search, final[1]))

    def _final(self, histories: Histories, states: States, active_steps: jax.Array):
        return tuple(
            latent_reasoning.final_state(reasoned, history.start, active_steps)
            for reasoned, history in (
                (states.rec, histories.rec),
                (states.search, histories.search),
            )
        )

    def _sides(self, histories: Histories, states: States, active_steps: jax.Array):
        def side(history, reasoned):
            b, steps, _ = reasoned.shape
            active = jnp.broadcast_to(jnp.arange(steps) < active_steps, (b, steps))
            return aggregation.Side(
                (history.hidden, reasoned), jnp.concatenate([history.row_mask, active], 1)
            )

        return side(histories.rec, states.rec), side(histories.search, states.search)

    def _encode_side(self, encoder, rows, mask, dropout, views) -> SideHistory:
        c = self.config
        weights, positions, empty_start, recency = self._cast(encoder())
        places = slice(rows.shape[1]) if views is None else views.places
        rows = self._cast(rows)
        inputs = jnp.where(mask[..., None], rows + positions[places], 0.0)
        encoded = history_encoder.encode(
            weights.layers,
            inputs,
            mask,
            empty_start,
            heads=c.heads,
            block=c.block,
            dropout=dropout,
            views=views,
        )
        if recency is None:
            return encoded
        latest = query_lib.recent(recency, rows, encoded.mask)
        return dataclasses.replace(encoded, recent=latest)

    def _dropout(self, deterministic: bool) -> Dropout:
        if deterministic or self.config.dropout == 0.0:
            return Dropout(None, 0.0)
        return Dropout(self.make_rng("dropout"), self.config.dropout)

    def _cast(self, tree: Any) -> Any:
        return attention.cast(tree, _DTYPES[self.config.dtype])


def _mean_of_valid(rows: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the mean over the second last axis of rows [..., W, D] where valid [..., W]; zero
    if none is.
    """
    count = jnp.maximum(valid.sum(-1), 1)[..., None].astype(rows.dtype)
    return jnp.where(valid[..., None], rows, 0.0).sum(-2) / count
