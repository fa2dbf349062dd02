"""Trains the decoder by reinforcement as a `core.task.Task`: R-GRPO or GRPO, 3.3 of CRS.

A step draws G reasonings a prompt, lets a beam of K answers follow each, and updates on these
rollouts `updates_per_rollout` times. Axis letters: B prompts, G trajectories, K answers, L codes of
an id, A tokens of a trajectory.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from core import grpo, seeds
from core.loop import steps_for
from core.partitioning import Partition, own_rows, random_bits_impl
from core.settings import Count, Positive, Rule, Settings, Weight, at_least, one_of
from core.trie import Trie
from crs_jax import generation, lora, r_grpo, rewards
from crs_jax.decoder import Decoder
from crs_jax.generation import TOP_P, Sampling
from crs_jax.sft_task import first_state, optimizer_of

State = dict[str, Any]


class Tokens(NamedTuple):
    """Holds the control tokens of a vocabulary."""

    think: int
    end_think: int
    end: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLConfig(Settings):
    """Says how a stage of reinforcement learning trains.

    Attributes:
      algorithm: 'r_grpo' (Eq. 7) or 'grpo'.
      batch_size: B, prompts a rollout.
      trajectories, answers: G and K.
      updates_per_rollout: updates on one set of rollouts.
      max_reasoning: tokens of a reasoning at most, </think> included.
      temperature, top_p: of the reasoning.
      length_limit: L of Eq. 4.
      accuracy_weights: w of Eq. 5, one a k-means level; the de-duplication level is not scored.
      prefix_accuracy: a level counts only where those before it match; printed is False.
      constrained: answers of rollouts come from the trie; then Eq. 6 is always 1.
      log_base: of the ranks in Eq. 7.
      clip_eps, kl_weight: epsilon and beta of Eq. 8.
      mask_correct_when_negative: trajectories below the group's mean whose o* holds the target are
        left out of the update.
      weight_decay, clip_norm: of AdamW.
    """

    algorithm: Annotated[str, one_of(*r_grpo.ALGORITHMS)]
    batch_size: Count
    trajectories: Annotated[int, at_least(2)]
    answers: Count
    updates_per_rollout: Count
    max_reasoning: Count
    temperature: Weight
    top_p: Annotated[float, TOP_P]
    length_limit: Count
    accuracy_weights: tuple[Weight, ...]
    prefix_accuracy: bool
    constrained: bool
    log_base: Annotated[float, Rule("above 1", lambda base: base > 1)] = math.e
    clip_eps: Weight
    kl_weight: Weight
    mask_correct_when_negative: bool
    weight_decay: Weight
    clip_norm: Positive

    def check(self) -> None:
        if sum(self.accuracy_weights) <= 1:
            raise ValueError(
                f"expected accuracy_weights of a sum above 1, the length reward's maximum, found "
                f"{self.accuracy_weights}"
            )

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            max_tokens=self.max_reasoning, temperature=self.temperature, top_p=self.top_p
        )


class Rollouts(NamedTuple):
    """Trajectories with the answer that each is optimised for.

    Attributes:
      tokens: int32 [B, G, A]: the reasoning, </think>, the codes of o*'s answer, the end token; 0
        beyond, and nothing after a reasoning that has not ended.
      lengths: int32 [B, G], |o*|.
      advantages: float32 [G, B].
      has_target: bool [B, G], o* holds the whole target.
      statistics: to log.
    """

    tokens: jax.Array
    lengths: jax.Array
    advantages: jax.Array
    has_target: jax.Array
    statistics: dict[str, jax.Array]


def trajectory(
    reasoning: jax.Array, lengths: jax.Array, complete: jax.Array, answer: jax.Array, end: int
) -> tuple[jax.Array, jax.Array]:
    """Returns (tokens int32 [B, G, R+L+1], |o*| [B, G]) of reasoning with an answer and the end
    token.

    Args:
      reasoning: int32 [B, G, R], </think> its last token where `complete` [B, G].
      lengths: int32 [B, G].
      answer: int32 [B, G, L]; not a part of what is not complete.
    """
    codes = answer.shape[-1]
    total = lengths + jnp.where(complete, codes + 1, 0)
    places = jnp.arange(reasoning.shape[-1] + codes + 1)
    padded = jnp.pad(reasoning, ((0, 0), (0, 0), (0, codes + 1)))
    ending = jnp.concatenate([answer, jnp.full_like(answer[..., :1], end)], -1)
    after = jnp.clip(places - lengths[..., None], 0, codes)
    tokens = jnp.where(places < lengths[..., None], padded, jnp.take_along_axis(ending, after, -1))
    return jnp.where(places < total[..., None], tokens, 0), total


def roll_out(
    network: Decoder,
    params: Any,
    batch: dict[str, jax.Array],
    key: jax.Array,
    config: RLConfig,
    trie: Trie,
    controls: Tokens,
    advantages_of: Callable[[jax.Array], jax.Array] = grpo.advantages,
) -> Rollouts:
    """Rolls out both stages and rewards them, Eq. 3-7.

    Args:
      advantages_of: rewards [G, B] -> advantages [G, B].
    """
    stops = (controls.end_think, controls.end)
    prompted = generation.read_prompts(network, params, batch["prompts"], batch["lengths"])
    samples = generation.sample(
        network, params, prompted, key, config.trajectories, config.sampling, stops
    )
    place = generation.after_reasoning(prompted, samples, stops)
    codes = batch["targets"].shape[-1]
    answers: Any
    if config.constrained:
        answers = generation.constrained_answers(network, params, place, trie, config.answers)
    else:
        answers = generation.free_answers(network, params, place, codes, config.answers)
    # The prompt ends in <think>, which is a part of what Eq. 3 looks at.
    opened = jnp.full_like(samples.tokens[..., :1], controls.think)
    whole = jnp.concatenate([opened, samples.tokens], -1)
    reasoning = rewards.reasoning(whole, controls.think, controls.end_think)
    targets = batch["targets"][:, None, None]
    accuracies = rewards.accuracy(
        answers.tokens, targets, config.accuracy_weights, prefix=config.prefix_accuracy
    )
    flat = answers.tokens.reshape(-1, *answers.tokens.shape[2:])
    validities = rewards.validity(trie, flat).reshape(accuracies.shape)
    each = rewards.total(reasoning, config.length_limit, accuracies, validities)
    outcome = r_grpo.outcome(jnp.moveaxis(each, 0, 1), config.algorithm, config.log_base)
    chosen = jnp.take_along_axis(answers.tokens, outcome.answer.T[..., None, None], 2)[:, :, 0]
    tokens, lengths = trajectory(
        samples.tokens, samples.lengths, reasoning.complete, chosen, controls.end
    )
    has_target = (chosen == batch["targets"][:, None]).all(-1) & reasoning.complete
    advantages = advantages_of(outcome.reward)
    mask = batch["mask"]
    users = jnp.maximum(mask.sum(), 1.0)

    def mean(values):
        return (values.astype(jnp.float32).mean(1) * mask).sum() / users

    answered = reasoning.complete
    statistics = {
        "reward": mean(outcome.reward.T),
        "complete": mean(answered),
        "reasoning_tokens": mean(reasoning.length),
        "length_reward": mean(rewards.length(reasoning.length, config.length_limit)),
        "first_accuracy": mean(accuracies[..., 0] * answered),
        "accuracy": mean(accuracies.mean(-1) * answered),
        "validity": mean(validities.mean(-1) * answered),
        "target_below_mean": mean(has_target & (advantages.T < 0)),
    }
    return Rollouts(tokens, lengths, advantages, has_target, statistics)


def update(
    network: Decoder,
    config: RLConfig,
    state: State,
    batch: dict[str, Any],
    rollouts: Rollouts,
    learning_rate: jax.Array,
) -> tuple[State, dict[str, jax.Array]]:
    """Makes the updates of one set of rollouts, Eq. 8.

    Args:
      batch: its `prompts`, `lengths` and `mask` count.

    Returns:
      The state after them, and statistics of the loss.
    """
    optimizer, params = optimizer_of(config), state["params"]

    def log_probs(trained):
        return jnp.moveaxis(
            generation.teacher_forced(
                network,
                lora.whole(params, trained),
                batch["prompts"],
                batch["lengths"],
                rollouts.tokens,
                rollouts.lengths,
            ),
            0,
            1,
        )

    old, reference = log_probs(params["trained"]), log_probs(state["reference"])
    counts = jnp.arange(rollouts.tokens.shape[-1]) < rollouts.lengths[..., None]
    if config.mask_correct_when_negative:
        counts &= ~(rollouts.has_target & (rollouts.advantages.T < 0))[..., None]
    counts = jnp.moveaxis(counts, 0, 1)

    def loss_of(trained):
        value, statistics = r_grpo.objective(
            log_probs(trained),
            old,
            reference,
            rollouts.advantages,
            counts,
            batch["mask"],
            clip_eps=config.clip_eps,
            kl_weight=config.kl_weight,
        )
        return -value, statistics

    def once(carry, _):
        trained, moments = carry
        (loss, statistics), gradient = jax.value_and_grad(loss_of, has_aux=True)(trained)
        updates, moments = optimizer.update(gradient, moments, trained)
        trained = optax.apply_updates(trained, optax.tree.scale(-learning_rate, updates))
        return (trained, moments), {"loss": loss, **statistics}

    start = (params["trained"], state["optimizer"])
    (trained, moments), every = jax.lax.scan(once, start, length=config.updates_per_rollout)
    return {
        **state,
        "step": state["step"] + 1,
        "params": {**params, "trained": trained},
        "optimizer": moments,
    }, {name: values.mean() for name, values in every.items()}


@functools.lru_cache
def rl_step(network: Decoder, config: RLConfig, controls: Tokens, impl: str = "rbg") -> Any:
    """Makes (state, batch, rate) -> (state, statistics); one function, and so one compilation,
    serves all stages and seeds.

    Args:
      impl: of the random bits, `core.partitioning.random_bits_impl`.
    """

    def step(state: State, batch: dict[str, Any], learning_rate: jax.Array) -> Any:
        params, trie = state["params"], batch["trie"]
        key = jax.random.fold_in(jax.random.key(batch["seed"], impl=impl), state["step"])
        rollouts = roll_out(network, lora.whole(params), batch, key, config, trie, controls)
        state, statistics = update(network, config, state, batch, rollouts, learning_rate)
        return state, statistics | rollouts.statistics

    return step


def rows_of_step(
    seed: int, stage: str, count: int, size: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows int [B] of a step's batch and their mask float32 [B].

    Each epoch is a random order of all rows; what its last batch lacks is row 0, masked.

    Args:
      seed, stage: of the order.
      count: rows in all.
      size: B.
      step: from 0.
    """
    epoch, place = divmod(step, steps_for(count, size))
    order = np.random.default_rng(seeds.stream(seed, stage, "order", epoch)).permutation(count)
    rows = order[place * size : (place + 1) * size]
    mask = (np.arange(size) < len(rows)).astype(np.float32)
    return np.pad(rows, (0, size - len(rows))), mask


class RLTask:
    """Trains by reinforcement on the prompts of one subset, as a `core.task.Task`.

    Args:
      name: of the stage; each stage draws its own order and its own rollouts.
      network, config, controls: see there.
      prompts, lengths: int32 [E, T] and [E], ending in <think>.
      targets: int32 [E, L], tokens of the items.
      trie: of the catalogue.
      max_steps: rollouts.
      initial: makes the parameters before the first update; they stay the reference policy.
      evaluate, selection, tables, seed, partition: as of `SFTTask`.
    """

    def __init__(
        self,
        name: str,
        network: Decoder,
        config: RLConfig,
        controls: Tokens,
        *,
        prompts: np.ndarray,
        lengths: np.ndarray,
        targets: np.ndarray,
        trie: Trie,
        max_steps: int,
        initial: Callable[[], Any],
        evaluate: Callable[[Any, Any], dict[str, float]],
        selection: str,
        tables: dict[str, np.ndarray],
        seed: int,
        partition: Partition | None = None,
    ):
        self.partition = partition
        self.name, self.selection, self.batch_size = name, selection, config.batch_size
        self.config, self.max_steps = config, max_steps
        self._data = {"prompts": prompts, "lengths": lengths, "targets": targets}
        # Put there once, not with every batch.
        trie = trie if partition is None else partition.put_whole(trie)
        self._constant = {"trie": trie, "seed": np.uint32(seeds.number(seed, name, "rollouts"))}
        self._initial, self._evaluate, self._tables = initial, evaluate, tables
        self._seed = seed
        self.steps_per_epoch = steps_for(len(prompts), config.batch_size)
        self.train_step = rl_step(network, config, controls, random_bits_impl(partition))

    def init(self) -> State:
        params = self._initial()
        state = first_state(params, self.config, self._tables, self.partition)
        return state | {"reference": jax.tree.map(jnp.copy, params["trained"])}

    def batches(self, start_step: int) -> Iterator[dict[str, Any]]:
        """Yields batches from a step on; each of several processes its part of the prompts."""
        count, size = len(self._data["prompts"]), self.batch_size
        step = start_step
        while True:
            rows, mask = rows_of_step(self._seed, self.name, count, size, step)
            own = own_rows(size)
            batch = {name: array[rows[own]] for name, array in self._data.items()}
            yield batch | self._constant | {"mask": mask[own]}
            step += 1

    def evaluate(self, state: State) -> dict[str, float]:
        return self._evaluate(state["params"], state["tables"])
