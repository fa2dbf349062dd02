"""Noised reasoning trajectories and their GRPO loss: Eq. 13-17 on LCR-SER.

The noise is part of a trajectory: every policy (current, old, reference) encodes the histories
with its own parameters and adds the same perturbation to its own h^(0). No dropout anywhere, so
that the ratio is 1 at the first update and the KL term starts at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from core import grpo, metrics
from core.partitioning import BATCH_AXES, Partition
from lcrsr.embedding import Tables, look_up
from lcrsr.model import LCRSER, Histories

POLICIES = ("softmax", "sigmoid")
TRAINABLE = ("all", "dense", "reasoning")
# Candidates that a device scores at once, over its users and their trajectories: one hidden layer
# of 200 for them takes 105 MB, and a gradient keeps several.
MOST_SCORED = 2**17
# Parameters that only the reasoning steps use.
_REASONING_NAMES = ("mca", "mca_norm", "step_positions")


class Noise(NamedTuple):
    """Perturbations of h^(0), float [G, B, D] a side; the first trajectory's are zero."""

    rec: jax.Array
    search: jax.Array


class Policy(NamedTuple):
    """Holds what scores: the network's parameters and the tables it reads."""

    params: Any
    tables: Tables


def draw_noise(
    key: jax.Array, histories: Histories, *, trajectories: int, gamma: float | jax.Array
) -> Noise:
    """Draws gamma * rms(h^(0)) * eps with eps ~ N(0, 1), none on the first trajectory, Eq. 14.

    The RMS is taken over D of each user's h^(0), a side, of the policy that rolls out: gamma is
    relative to the state it perturbs.
    """

    def side(key, start):
        scale = gamma * jnp.sqrt(jnp.mean(jnp.square(start), -1, keepdims=True))
        scale = scale.astype(start.dtype)  # a traced gamma would widen it
        eps = jax.random.normal(key, (trajectories, *start.shape), start.dtype)
        return jax.lax.stop_gradient(eps.at[0].set(0.0) * scale)

    rec_key, search_key = jax.random.split(key)
    return Noise(side(rec_key, histories.rec.start), side(search_key, histories.search.start))


def encode(model: LCRSER, params: Any, batch: Any, rows: Any) -> Histories:
    histories: Any = model.apply(
        {"params": params}, batch, rows, deterministic=True, method=LCRSER.encode
    )
    return histories


def trajectories(
    model: LCRSER,
    params: Any,
    histories: Histories,
    noise: Noise,
    rows: dict[str, jax.Array],
    active_steps: jax.Array,
    partition: Partition | None = None,
    most_scored: int = MOST_SCORED,
) -> jax.Array:
    """Scores of every candidate on every trajectory, logits [G, B, N].

    The histories are encoded once, by the caller; reasoning and scoring are mapped over G. Where a
    device has many users they are scored in chunks, and a gradient scores each chunk anew instead
    of keeping the scorer's layers for all of them.

    Args:
      partition: the mesh over which the users are cut.
      most_scored: candidates that a device scores at once.
    """

    def of_users(histories, noise, user, candidates):
        def one(rec_noise, search_noise):
            states = model.apply(
                {"params": params},
                histories,
                histories.rec.start + rec_noise,
                histories.search.start + search_noise,
                cross=True,
                deterministic=True,
                method=LCRSER.reason,
            )
            return model.apply(
                {"params": params},
                histories,
                states,
                active_steps,
                user,
                candidates,
                method=LCRSER.score,
            )

        return jax.vmap(one)(noise.rec, noise.search)

    candidates = rows["candidates"]
    windows = histories.rec.hidden.shape[0]
    scored = noise.rec.shape[0] * candidates.shape[1] * (candidates.shape[0] // windows)
    chunks = chunk_count(windows // (partition.size if partition else 1), scored, most_scored)
    if chunks == 1:
        return of_users(histories, noise, rows.get("user"), candidates)

    def score_chunk(part):
        histories, noise, *rest = part
        scores = of_users(histories, Noise(*(jnp.moveaxis(n, 1, 0) for n in noise)), *rest)
        return jnp.moveaxis(scores, 0, 1)

    by_user = (
        histories,
        Noise(*(jnp.moveaxis(n, 0, 1) for n in noise)),
        rows.get("user"),
        candidates,
    )
    cut = jax.tree.map(lambda values: in_chunks(values, chunks, partition), by_user)
    # A scan keeps no value of a chunk by itself, so that nothing need be hidden from the compiler.
    of_all = jax.lax.map(jax.checkpoint(score_chunk, prevent_cse=False), cut)
    of_all = out_of_chunks(of_all, partition)
    return jnp.moveaxis(of_all, 1, 0)


def chunk_count(users: int, scored: int, most_scored: int) -> int:
    """Returns into how many equal chunks a device's users go, of `scored` candidates each.

    A chunk has `most_scored` candidates at most, or a single user. Users in windows stay together:
    then `users` counts windows.
    """
    return next(
        n
        for n in range(1, users + 1)
        if users % n == 0 and (users // n * scored <= most_scored or n == users)
    )


def in_chunks(values: jax.Array, chunks: int, partition: Partition | None) -> jax.Array:
    """Cuts [B, ...] into [chunks, B / chunks, ...]; every device's users are in every chunk."""
    devices = partition.size if partition else 1
    values = values.reshape(devices, chunks, -1, *values.shape[1:])
    values = jnp.moveaxis(values, 1, 0).reshape(chunks, -1, *values.shape[3:])
    return _cut_over_devices(values, partition)


def out_of_chunks(values: jax.Array, partition: Partition | None) -> jax.Array:
    """Returns [B, ...] again from what `in_chunks` gave."""
    devices, (chunks, _, *rest) = partition.size if partition else 1, values.shape
    values = _cut_over_devices(values, partition).reshape(chunks, devices, -1, *rest)
    return jnp.moveaxis(values, 0, 1).reshape(-1, *rest)


def _cut_over_devices(values: jax.Array, partition: Partition | None) -> jax.Array:
    if partition is None:
        return values
    sharding = NamedSharding(partition.mesh, PartitionSpec(None, BATCH_AXES))
    return jax.lax.with_sharding_constraint(values, sharding)


def target_log_prob(logits: jax.Array, policy: str) -> jax.Array:
    """Returns log pi(v_{L+1} | T_i), the target being column 0 of logits [..., N].

    'softmax' over the candidates; 'sigmoid' is Eq. 10 read as a probability.
    """
    logits = logits.astype(jnp.float32)
    if policy == "softmax":
        return jax.nn.log_softmax(logits, -1)[..., 0]
    if policy == "sigmoid":
        return jax.nn.log_sigmoid(logits[..., 0])
    raise ValueError(f"expected policy in {POLICIES}, found {policy!r}")


def grpo_loss(
    model: LCRSER,
    current: Policy,
    rows: dict[str, jax.Array],
    old: Policy | None,
    reference: Policy,
    batch: dict[str, Any],
    key: jax.Array,
    *,
    active_steps: jax.Array,
    num_trajectories: int,
    gamma: float | jax.Array,
    reward: str,
    policy: str,
    kl_weight: float | jax.Array,
    clip_eps: float | None,
    advantage_fn: Callable[[jax.Array], jax.Array] = grpo.advantages,
    partition: Partition | None = None,
    most_scored: int = MOST_SCORED,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns -J of Eq. 15 on a batch whose target is column 0 of its candidates.

    Args:
      current: the policy trained; gradients reach `current.params` and `rows`.
      rows: the current policy's embedding rows of the batch (gathered, so that gradients reach
        rows and not tables).
      old: the snapshot that rolls out; None means the current policy itself, whose ratio is
        pi / stop_gradient(pi), exactly 1.
      reference: the pre-trained policy.
      reward: a metric's name, over the candidates.
      advantage_fn: rewards [G, B] -> advantages [G, B].
      partition: the mesh over which the tables are cut.
      most_scored: candidates that a device scores at once.

    Returns:
      (loss, statistics).
    """
    chex.assert_rank([batch["candidates"], batch["mask"]], [2, 1])

    def score(params, histories, noise, rows) -> jax.Array:
        return trajectories(
            model, params, histories, noise, rows, active_steps, partition, most_scored
        )

    def log_prob_of(other: Policy, noise: Noise) -> tuple[jax.Array, jax.Array]:
        other_rows = look_up(other.tables, batch, partition)
        histories = encode(model, other.params, batch, other_rows)
        logits = score(other.params, histories, noise, other_rows)
        return target_log_prob(logits, policy), logits

    histories = encode(model, current.params, batch, rows)
    if old is None:
        start = histories
    else:
        start = encode(model, old.params, batch, look_up(old.tables, batch, partition))
    noise = draw_noise(key, start, trajectories=num_trajectories, gamma=gamma)
    logits = score(current.params, histories, noise, rows)
    log_prob = target_log_prob(logits, policy)
    if old is None:
        old_log_prob, rollout_logits = jax.lax.stop_gradient((log_prob, logits))
    else:
        old_log_prob, rollout_logits = jax.lax.stop_gradient(log_prob_of(old, noise))
    reference_log_prob, _ = jax.lax.stop_gradient(log_prob_of(reference, noise))
    rewards = metrics.metric(reward)(*metrics.target_ranks(rollout_logits))
    value, statistics = grpo.objective(
        log_prob,
        old_log_prob,
        reference_log_prob,
        advantage_fn(rewards),
        batch["mask"],
        kl_weight=kl_weight,
        clip_eps=clip_eps,
    )
    examples = jnp.maximum(batch["mask"].sum(), 1.0)

    def mean(values):
        return (values * batch["mask"]).sum() / examples

    return -value, statistics | {
        "loss": -value,
        "reward": mean(rewards.mean(0)),
        "reward_noise_free": mean(rewards[0]),
    }


def trainable_mask(params: Any, which: str) -> Any:
    """Returns a tree of Python booleans: which parameters of the network RL updates.

    'all' and 'dense' take every parameter ('all' also updates the tables, elsewhere); 'reasoning'
    those that only the reasoning steps use: cross-attention, its norm, the steps' positions.
    """
    if which not in TRAINABLE:
        raise ValueError(f"expected trainable in {TRAINABLE}, found {which!r}")

    def chosen(path, leaf):
        del leaf
        names = {getattr(part, "key", None) for part in path}
        return which != "reasoning" or not names.isdisjoint(_REASONING_NAMES)

    return jax.tree_util.tree_map_with_path(chosen, params)
