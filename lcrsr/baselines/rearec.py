"""ReaRec: Think Before Recommend (Tang et al., 2025, arXiv 2503.22675), sections 3-4.

A SASRec that goes on for K implicit steps: the last state plus an embedding of the step is appended
to the sequence and encoded, and so on. ERL ranks with the mean of all states and pushes the steps'
distributions apart by a KL term; PRL ranks with the last state, teaches every earlier one at a
temperature that falls from step to step, and contrasts each state with the one reached from a
noised input. Losses are softmaxes over all items. Sizes of the losses follow the released code,
whose PRL starts the noise after two epochs; here it is there from the start.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.settings import Count, CountOrNone, Positive, Rate, Weight, one_of
from core.settings import Settings as Checked
from lcrsr import losses
from lcrsr.baselines.sequence import SequentialRanker
from lcrsr.baselines.two_histories import Attention
from lcrsr.history_encoder import Dropout
from lcrsr.ranker import Batch, Params, Rows
from lcrsr.views import Views, each_target, last_state

VARIANTS = ("erl", "prl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Sizes and losses.

    Attributes:
      variant: 'erl' or 'prl'.
      reasoning_steps: K; at least 1.
      temperature: of the softmax over items.
      kl_weight: of ERL's term that pushes steps apart.
      temperature_decay: PRL; step k is taught at temperature * decay^(K - k).
      progressive_weight, contrastive_weight: of PRL's two further losses.
      noise: PRL, standard deviation of what is added to a step's input.
    """

    width: Count
    layers: CountOrNone
    heads: Count
    dropout: Rate
    init_scale: Positive
    rec_length: int
    variant: Annotated[str, one_of(*VARIANTS)]
    reasoning_steps: Count
    temperature: Positive
    kl_weight: Weight = 0.0
    temperature_decay: Positive = 1.0
    progressive_weight: Weight = 0.0
    contrastive_weight: Weight = 0.0
    noise: Weight = 0.0

    def check(self) -> None:
        self.check_divisible("width", by="heads")


class Block(nn.Module):
    """Applies a pre-LN Transformer block over rows that follow earlier ones."""

    heads: int

    @nn.compact
    def __call__(
        self, x: jax.Array, before: jax.Array | None, mask: jax.Array, dropout: Dropout
    ) -> tuple[jax.Array, jax.Array]:
        """Lets x [B, Q, D] attend to the normalised rows `before` [B, L, D] and to itself.

        Args:
          mask: bool [B, L + Q] or [B, Q, L + Q].

        Returns:
          The new rows [B, Q, D], and `before` with x's normalised rows appended.
        """
        normal = nn.LayerNorm()(x)
        rows = normal if before is None else jnp.concatenate([before, normal], 1)
        x = x + dropout.at(0)(Attention(self.heads)(normal, rows, mask))
        hidden = nn.relu(nn.Dense(x.shape[-1])(nn.LayerNorm()(x)))
        return x + dropout.at(2)(nn.Dense(x.shape[-1])(dropout.at(1)(hidden))), rows


class Network(nn.Module):
    """Turns rows [V, L, D] of histories, or of windows, into states [B, K + 1, D] of all steps.

    The history's own state is the first.
    """

    settings: Settings

    def setup(self):
        s = self.settings
        normal = nn.initializers.normal(0.02)
        self.positions = self.param("positions", normal, (s.rec_length, s.width))
        self.steps = self.param("step_positions", normal, (s.reasoning_steps, s.width))
        self.blocks = [Block(s.heads) for _ in range(s.layers)]
        self.last_norm = nn.LayerNorm()

    def __call__(
        self,
        rows: jax.Array,
        valid: jax.Array,
        views: Views | None = None,
        *,
        deterministic: bool,
        noised: bool = False,
    ) -> Any:
        """States without noise; with `noised` also the states [B, K, D] after noised inputs."""
        s = self.settings
        dropout = Dropout(None, 0.0)
        if not deterministic:
            dropout = Dropout(self.make_rng("dropout"), s.dropout)
        length = rows.shape[1]
        places = slice(length) if views is None else views.places
        x = dropout.at(0)(rows * s.width**0.5 + self.positions[places])
        # A padded position sees itself, so that no row of the softmax is empty.
        eye = jnp.eye(length, dtype=bool)
        causal = jnp.tril(jnp.ones((length, length), bool)) if views is None else views.band()
        mask = (valid[:, None, :] | eye) & causal
        x, history = self.through(x, [None] * s.layers, mask, dropout.at(1))
        states = [last_state(self.last_norm(x), valid, views)]
        # Reasoning rows are seen by all that follow; of an empty history its first row is.
        if views is None:
            attended = valid | (~valid.any(-1, keepdims=True) & (jnp.arange(length) == 0))
        else:
            attended = views.never_empty(valid)
            history = [each_target(rows, len(attended)) for rows in history]
        plain, other = history, history
        after_noise = []
        for step in range(s.reasoning_steps):
            attended = jnp.pad(attended, ((0, 0), (0, 1)), constant_values=True)
            start = (states[-1] + self.steps[step])[:, None]
            drop = dropout.at(2 + step)
            x, plain = self.through(start, plain, attended, drop.at(0))
            states.append(self.last_norm(x)[:, 0])
            if noised:
                noise = s.noise * jax.random.normal(self.make_rng("noise"), start.shape)
                x, other = self.through(start + noise, other, attended, drop.at(1))
                after_noise.append(self.last_norm(x)[:, 0])
        if noised:
            return jnp.stack(states, 1), jnp.stack(after_noise, 1)
        return jnp.stack(states, 1)

    def through(self, x, before, mask, dropout):
        """Runs all blocks on rows [B, T, D] that follow the kept rows of each block."""
        rows = []
        for number, (block, earlier) in enumerate(zip(self.blocks, before, strict=True)):
            x, appended = block(x, earlier, mask, dropout.at(number))
            rows.append(appended)
        return x, rows


def pushed_apart(logits: jax.Array) -> jax.Array:
    """Returns ERL's regulariser [B]: the mean over ordered pairs of steps of KL(p_i || p_j), p_j
    fixed.

    Args:
      logits: [B, T, V] of every step; minus infinity for padding.
    """
    steps = logits.shape[1]
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    finite = jnp.where(p > 0, log_p, 0.0)
    entropy = (p * finite).sum(-1)
    cross = jnp.einsum("bin,bjn->bij", p, jax.lax.stop_gradient(finite))
    divergence = entropy[:, :, None] - cross
    off_diagonal = ~jnp.eye(steps, dtype=bool)
    return (divergence * off_diagonal).sum((1, 2)) / (steps * (steps - 1))


def contrasted(states: jax.Array, noised: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns PRL's contrastive loss [B]: each noised state against the clean ones of all users.

    Args:
      states, noised: [B, K, D], the latter already divided by the temperature.
      mask: [B], 0 for users that are no negatives.
    """
    logits = jnp.einsum("bkd,ckd->bkc", noised, states)
    own = jnp.eye(len(mask), dtype=bool)
    logits = jnp.where((own | (mask > 0))[:, None, :], logits, -jnp.inf)
    positive = jnp.einsum("bkd,bkd->bk", noised, states)
    return (jax.nn.logsumexp(logits, -1) - positive).mean(-1)


class ReaRec(SequentialRanker):
    """Ranks by reasoning states over a history: a `Ranker`."""

    def __init__(self, settings: Settings):
        super().__init__(
            Network(settings),
            width=settings.width,
            init_scale=settings.init_scale,
            loss=losses.FULL,
        )
        self.settings = settings

    def init(self, key: jax.Array, batch: Batch, rows: Rows) -> Params:
        init = functools.partial(self.network.init, deterministic=True)
        return jax.jit(init)({"params": key}, *self.history(batch, rows))["params"]

    def user(self, states: jax.Array) -> jax.Array:
        """Returns the vector [B, D] to rank with, of the states [B, K + 1, D]."""
        return states.mean(1) if self.settings.variant == "erl" else states[:, -1]

    def loss(
        self, params: Params, batch: Batch, rows: Rows, tables: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        s = self.settings
        progressive = s.variant == "prl"
        noise_key, dropout_key = jax.random.split(key)
        output: Any = self.network.apply(
            {"params": params},
            *self.history(batch, rows),
            deterministic=False,
            noised=progressive,
            rngs={"dropout": dropout_key, "noise": noise_key},
        )
        target = losses.any_target(batch["candidates"], batch["mask"])

        def logits_of(vectors, temperature):
            return ((vectors @ tables["item"].T) / temperature).at[..., 0].set(-jnp.inf)

        def cross_entropy(logits):
            own = jnp.take_along_axis(logits, target[:, None], -1)[:, 0]
            return jax.nn.logsumexp(logits, -1) - own

        def mean(each):
            return (each * batch["mask"]).sum() / jnp.maximum(batch["mask"].sum(), 1.0)

        states = output[0] if progressive else output
        click = mean(cross_entropy(logits_of(self.user(states), s.temperature)))
        if not progressive:
            apart = mean(pushed_apart(logits_of(states, s.temperature)))
            return click - s.kl_weight * apart, {"cross_entropy": click, "kl": apart}
        steps = s.reasoning_steps
        taught = [
            mean(cross_entropy(logits_of(states[:, k], s.temperature * decay)))
            for k, decay in enumerate(s.temperature_decay ** (steps - k) for k in range(steps))
        ]
        progressive_loss = jnp.stack(taught).mean()
        contrast = mean(contrasted(states[:, 1:], output[1] / s.temperature, batch["mask"]))
        total = click + s.progressive_weight * progressive_loss + s.contrastive_weight * contrast
        return total, {
            "cross_entropy": click,
            "progressive": progressive_loss,
            "contrastive": contrast,
        }

    def represent(self, params: Params, batch: Batch, rows: Rows) -> jax.Array:
        return self.user(super().represent(params, batch, rows))


def ranker(settings: Settings) -> ReaRec:
    return ReaRec(settings)
