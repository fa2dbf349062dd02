"""LARES: Latent Reasoning for Sequential Recommendation (Liu et al., 2025, arXiv 2505.16865).

A causal Transformer encodes the history once; a second one, shared by all steps, refines the states
of all positions T times from a random start, each time from the mean of the state and the encoding.
The last event's state after T steps scores items by dot product. T is drawn for every pass in
training and is `mean_steps` in use, so that the depth can be chosen after training. Two contrastive
losses draw together histories of the same target, and the last and an earlier step.

Readings. The release contrasts a history with any other training history of its target; here it is
the next one in the batch, or the history itself in a second pass where there is none, and targets
that are the same, or of the same user, are never each other's negatives. On Amazon Beauty 7% of the
targets have another in a batch of 256, and 22% in the release's 1,024, so that this contrast is
mostly one between two passes there. Similarities are dot products, as in the released script; its
default file has cosines. In use the states start at 0, the mean of what they start at in training,
where the release draws them anew at every call. The earlier step is drawn from all T, the last one
among them, and counts nothing where T is 1, as released. The layer norms add 1e-6 to the variance,
the release 1e-12.

The second stage (`policy_task`) is GRPO: each of a group's trajectories has a start and a number of
steps T of its own, and the loss is -mean over trajectories of 1/T sum_i (rho_i A - beta k3_i), with
rho_i = p_i / sg p_i and p_i the target's probability among all items after step i; the reward is
that of the ranking of all items after the last step. Readings: no pass has dropout, where the
release's policy has it and its reference has none; items' rows stay as stage 1 left them; products
score in both stages, as in the released script; and an example counts where the policy's own first
trajectories rank its target among the best, where the release chooses examples beforehand by three
passes of stage 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core import grpo, metrics
from core.settings import Count, Positive, Rate, Weight, at_least
from core.settings import Settings as Checked
from lcrsr import losses
from lcrsr.baselines.sequence import SequentialRanker, visible
from lcrsr.ranker import Batch, Params, Rows
from lcrsr.ranker_task import State
from lcrsr.reinforce import PolicyTask
from lcrsr.views import Views, last_state

# A pass has at most so many times the mean number of steps.
_MOST = 3
# Trajectories that tell whether an example counts in the second stage.
_TELLING = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Sizes and losses.

    Attributes:
      layers, core_layers: of the encoder, and of what every step applies.
      loss: of `losses.LOSSES`, of the next item.
      mean_steps: k; steps in use, and about the mean in training.
      start_scale: omega times sigma, of the states that training starts from; 0: from zero.
      target_weight, step_weight: alpha and gamma, of the contrast between histories of one target,
        and between steps.
      temperature: of both.
    """

    width: Count
    ffn_width: Count
    layers: Count
    core_layers: Count
    heads: Count
    dropout: Rate
    init_scale: Positive
    loss: losses.OfVectors
    rec_length: int
    mean_steps: Count
    start_scale: Weight
    target_weight: Weight
    step_weight: Weight
    temperature: Positive

    def check(self) -> None:
        self.check_divisible("width", by="heads")


class Blocks(nn.Module):
    """Applies post-LN Transformer blocks: LN(x + MHA(x)), then LN(x + FFN(x)) with GELU."""

    layers: int
    heads: int
    ffn_width: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        def dropped(x):
            return nn.Dropout(self.dropout, deterministic=deterministic)(x)

        width = x.shape[-1]
        for _ in range(self.layers):
            attend = nn.MultiHeadDotProductAttention(
                num_heads=self.heads, dropout_rate=self.dropout, deterministic=deterministic
            )
            x = nn.LayerNorm()(x + dropped(attend(x, x, mask=mask)))
            hidden = nn.Dense(width)(nn.gelu(nn.Dense(self.ffn_width)(x)))
            x = nn.LayerNorm()(x + dropped(hidden))
        return x


class Core(nn.Module):
    """Applies one step to the mean of the states and the encoding, [V, L, D]: LN, then blocks."""

    blocks: Blocks

    @nn.compact
    def __call__(self, mean: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        return self.blocks(nn.LayerNorm()(mean), mask, deterministic)


def refined(
    step: Callable[[jax.Array, jax.Array], jax.Array],
    start: jax.Array,
    encoded: jax.Array,
    steps: int | jax.Array,
    earlier: int | jax.Array,
    most: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns the states S_T, and those after an earlier step, of S_i = step((S_{i-1} + H) / 2, i).

    Args:
      step: a function of states [V, L, D] and of the number of steps before.
      start, encoded: S_0 and H [V, L, D].
      steps: T, 0 to `most`; steps beyond it are not computed.
      earlier: number of the earlier step, 1 to T.
      most: how many steps the compiled program has.
    """
    # The backward pass computes a step again and keeps its start alone.
    step = jax.checkpoint(step)

    def go_on(states, number):
        now, chosen = states
        now = jax.lax.cond(
            number < steps, lambda now: step((now + encoded) / 2, number), lambda now: now, now
        )
        return (now, jnp.where(number + 1 == earlier, now, chosen)), None

    return jax.lax.scan(go_on, (start, start), jnp.arange(most))[0]


def trajectories(
    step: Callable[[jax.Array, jax.Array], jax.Array],
    starts: jax.Array,
    encoded: jax.Array,
    steps: jax.Array,
    most: int,
    last: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Returns what `last` makes of the states after each step of each trajectory, [S, G, ...].

    Args:
      step, encoded: as in `refined`.
      starts: S_0 of each trajectory, [G, V, L, D].
      steps: T of each, int32 [G]; what stands after them in a trajectory means nothing.
      most: S.
      last: a function of one trajectory's states.
    """
    every = jax.checkpoint(jax.vmap(step, (0, None)))
    longest = steps.max()

    def go_on(states, number):
        states = jax.lax.cond(
            number < longest,
            lambda states: every((states + encoded) / 2, number),
            lambda states: states,
            states,
        )
        return states, jax.vmap(last)(states)

    return jax.lax.scan(go_on, starts, jnp.arange(most))[1]


def steps_drawn(key: jax.Array, mean: int) -> jax.Array:
    """Draws T = min(Poisson(r) + 1, 3k) with r log-normal about the mean k: int32."""
    rate_key, count_key = jax.random.split(key)
    rate = jnp.exp(math.log(mean) - 0.125 + 0.5 * jax.random.normal(rate_key))
    return jnp.minimum(jax.random.poisson(count_key, rate) + 1, _MOST * mean)


class Network(nn.Module):
    """Turns rows [V, L, D] of histories, or of windows, into users' vectors [B, D]."""

    settings: Settings

    @nn.compact
    def __call__(
        self,
        rows: jax.Array,
        valid: jax.Array,
        views: Views | None = None,
        steps: jax.Array | None = None,
        earlier: jax.Array | None = None,
        *,
        deterministic: bool,
        starts: jax.Array | None = None,
    ) -> Any:
        """Vectors after `mean_steps`; with `steps` those after them and after an earlier step.

        With `starts` [G, V, L, D] and `steps` [G] the vectors [S, G, B, D] after each step.
        """
        s = self.settings
        length = rows.shape[1]
        normal = nn.initializers.normal(0.02)
        positions = self.param("positions", normal, (s.rec_length, s.width))
        places = slice(length) if views is None else views.places
        x = nn.LayerNorm()(rows + positions[places])
        x = nn.Dropout(s.dropout, deterministic=deterministic)(x)
        mask = visible(valid, views, causal=True)
        sizes = s.heads, s.ffn_width, s.dropout
        encoded = Blocks(s.layers, *sizes)(x, mask, deterministic)
        # Parameters by hand: what `scan` and `cond` run must be a plain function.
        core = Core(Blocks(s.core_layers, *sizes, parent=None), parent=None)
        params = self.param(
            "core", lambda key: core.init({"params": key}, encoded, mask, True)["params"]
        )
        start = jnp.zeros_like(encoded)
        key = None
        if not deterministic:
            start = s.start_scale * jax.random.truncated_normal(
                self.make_rng("start"), -3.0, 3.0, encoded.shape
            )
            key = self.make_rng("dropout")

        def step(mean, number):
            rngs = {} if key is None else {"dropout": jax.random.fold_in(key, number)}
            return core.apply({"params": params}, mean, mask, deterministic, rngs=rngs)

        if starts is not None:
            assert steps is not None

            def vectors(states):
                return last_state(states, valid, views)

            most = _MOST * s.mean_steps
            return trajectories(step, starts, encoded, steps, most, vectors)
        if steps is None:
            states, _ = refined(step, start, encoded, s.mean_steps, 0, s.mean_steps)
            return last_state(states, valid, views)
        assert earlier is not None
        both = refined(step, start, encoded, steps, earlier, _MOST * s.mean_steps)
        return tuple(last_state(states, valid, views) for states in both)


def next_of_target(targets: jax.Array, counts: jax.Array) -> jax.Array:
    """Returns for each of B targets the place of the next one of the same item, round the batch.

    A target that is alone has its own place.

    Args:
      targets: item ids [B].
      counts: bool [B], targets that there are.
    """
    places = jnp.arange(len(targets))
    ahead = (places - places[:, None] - 1) % len(targets)
    same = (targets[:, None] == targets) & counts
    return jnp.argmin(jnp.where(same, ahead, len(targets)), axis=1).astype(jnp.int32)


def contrasted(
    first: jax.Array, second: jax.Array, others: jax.Array, counts: jax.Array, temperature: float
) -> jax.Array:
    """Returns half of NCE(first, second) + NCE(second, first), of vectors [B, D].

    Args:
      others: bool [B, B], which rows are negatives of which.
      counts: bool [B], rows that the mean is over.
    """
    allowed = others | jnp.eye(len(first), dtype=bool)
    logits = first @ second.T / temperature
    own = jnp.diagonal(logits)
    summed = sum(
        jax.nn.logsumexp(jnp.where(allowed, each, -jnp.inf), -1) - own
        for each in (logits, logits.T)
    )
    return (summed * counts).sum() / jnp.maximum(counts.sum(), 1) / 2


class LARES(SequentialRanker):
    """Ranks by refined states of a history: a `Ranker`."""

    def __init__(self, settings: Settings):
        super().__init__(
            Network(settings),
            width=settings.width,
            init_scale=settings.init_scale,
            loss=settings.loss,
        )
        self.settings = settings

    def loss(
        self, params: Params, batch: Batch, rows: Rows, tables: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        s = self.settings
        history = self.history(batch, rows)
        # How many steps a pass has comes from a generator that knows Poisson's distribution.
        plain = jax.random.key(jax.random.bits(jax.random.fold_in(key, 0), dtype=jnp.uint32))
        steps_keys = jax.random.split(plain, 3)

        def vectors(number, history, steps, earlier):
            start_key, dropout_key = jax.random.split(jax.random.fold_in(key, number))
            return self.network.apply(
                {"params": params},
                *history,
                steps,
                earlier,
                deterministic=False,
                rngs={"start": start_key, "dropout": dropout_key},
            )

        users: Any = vectors(1, history, steps_drawn(steps_keys[0], s.mean_steps), 0)[0]
        value = losses.of_vectors(self.kind, users, batch, rows, tables["item"])
        stats = {self.kind: value}
        if s.target_weight == s.step_weight == 0.0:
            return value, stats
        steps = steps_drawn(steps_keys[1], s.mean_steps)
        earlier = jax.random.randint(steps_keys[2], (), 1, steps + 1)
        last, before = vectors(2, history, steps, earlier)
        again, _ = vectors(3, history, steps, earlier)
        counts, targets = batch["mask"] > 0, batch["candidates"][:, 0]
        same = (targets[:, None] == targets) | (batch["user"][:, None] == batch["user"])
        others = counts & ~same
        partner = again[next_of_target(targets, counts)]
        of_targets = contrasted(last, partner, others, counts, s.temperature)
        of_steps = contrasted(last, before, others, counts, s.temperature)
        of_steps = jnp.where(steps > 1, of_steps, 0.0)
        stats |= {"target_contrast": of_targets, "step_contrast": of_steps}
        return value + s.target_weight * of_targets + s.step_weight * of_steps, stats


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforceSettings(Checked):
    """Holds the settings of the second stage.

    Attributes:
      trajectories: G.
      reward: a metric's name, over all items.
      lambda_kl: beta.
      within: examples count whose target is among so many best of one of the first three
        trajectories.
    """

    trajectories: Annotated[int, at_least(2)]
    reward: metrics.MetricName
    lambda_kl: Weight
    within: Count


def advantages(rewards: jax.Array) -> jax.Array:
    """Returns (r - mean r) / (s + 1e-4), [G, B], with the sample deviation s of each group."""
    rewards = jax.lax.stop_gradient(rewards)
    return (rewards - rewards.mean(0)) / (rewards.std(0, ddof=1) + 1e-4)


def policy_loss(
    log_prob: jax.Array,
    reference: jax.Array,
    advantage: jax.Array,
    steps: jax.Array,
    mask: jax.Array,
    kl_weight: float | jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss of the second stage, and what to log.

    Args:
      log_prob, reference: of the target after each step, of both policies, float [S, G, B].
      advantage: [G, B].
      steps: T of each trajectory, int32 [G].
      mask: [B], 0 for examples that do not count.
      kl_weight: beta.
    """
    most = len(log_prob)
    counts = (jnp.arange(most)[:, None] < steps)[..., None]
    # A step that was not taken gains nothing and is nowhere near or far.
    log_prob, reference = (jnp.where(counts, x, 0.0) for x in (log_prob, reference))
    of_steps = advantage * counts

    def of_trajectory(log_prob, reference, advantage):
        old = jax.lax.stop_gradient(log_prob)
        return grpo.objective(log_prob, old, reference, advantage, mask, kl_weight=kl_weight)

    # The mean over all places of a trajectory is T / S of that over the steps it took.
    over = jax.vmap(of_trajectory, in_axes=(1, 1, 1))
    values, stats = over(log_prob, reference, of_steps)
    kl = (stats["kl"] * most / steps).mean()
    unequal = ((advantage != 0).any(0) * mask).sum() / jnp.maximum(mask.sum(), 1.0)
    return -(values * most / steps).mean(), {"kl": kl, "unequal_groups": unequal}


class LARESPolicyTask(PolicyTask):
    """Tunes a LARES of the first stage."""

    def __init__(self, *, ranker: LARES, config: ReinforceSettings, **of_policy: Any):
        super().__init__(
            trainable="dense",
            updates_per_rollout=1,
            numbers={"lambda_kl": config.lambda_kl},
            **of_policy,
        )
        self._ranker, self._config = ranker, config

    def loss(
        self,
        state: State,
        params: Params,
        rows: Rows,
        batch: Batch,
        key: jax.Array,
        numbers: Any,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        s, config = self._ranker.settings, self._config
        history = self._ranker.history(batch, rows)
        items = state["tables"]["item"]
        # Of rows that count nothing too a finite probability: a product with 0 leaves no NaN.
        targets = losses.any_target(batch["candidates"], batch["mask"])
        start_key, steps_key = jax.random.split(key)
        shape = (config.trajectories, *rows["rec_items"].shape)
        starts = s.start_scale * jax.random.truncated_normal(start_key, -3.0, 3.0, shape)
        keys = jax.random.split(steps_key, config.trajectories)
        steps = jax.vmap(steps_drawn, (0, None))(keys, s.mean_steps)

        def vectors(params) -> Any:
            return self._ranker.network.apply(
                {"params": params}, *history, steps, deterministic=True, starts=starts
            )

        def scores(vectors):
            return (vectors @ items.T).astype(jnp.float32).at[..., 0].set(-jnp.inf)

        def own(logits):
            place = jnp.broadcast_to(targets[:, None], (*logits.shape[:-1], 1))
            return jnp.take_along_axis(logits, place, -1)

        @jax.checkpoint
        def log_prob(vectors):
            logits = scores(vectors)
            return own(logits)[..., 0] - jax.nn.logsumexp(logits, -1)

        ours, theirs = vectors(params), vectors(state["reference"]["params"])
        last = jax.lax.stop_gradient(ours[steps - 1, jnp.arange(len(steps))])
        logits = scores(last)
        above = (logits > own(logits)).sum(-1)
        tied = (logits == own(logits)).sum(-1) - 1
        rewards = metrics.metric(config.reward)(above, tied)
        within = (above[:_TELLING] < config.within).any(0)
        mask = batch["mask"] * within
        value, stats = policy_loss(
            jax.lax.map(log_prob, ours),
            jax.lax.map(log_prob, theirs),
            advantages(rewards),
            steps,
            mask,
            numbers["lambda_kl"],
        )
        examples = jnp.maximum(batch["mask"].sum(), 1.0)
        reward = (rewards.mean(0) * batch["mask"]).sum() / examples
        counted = mask.sum() / examples
        return value, stats | {"loss": value, "reward": reward, "counted": counted}


def policy_task(ranker: LARES, config: ReinforceSettings, **of_policy: Any) -> LARESPolicyTask:
    """Makes the second stage; further arguments are those of any `PolicyTask`."""
    return LARESPolicyTask(ranker=ranker, config=config, **of_policy)


def ranker(settings: Settings) -> LARES:
    return LARES(settings)
