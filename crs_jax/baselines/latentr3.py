"""Answers searches after latent thoughts, as LatentR3 does, on CRS's decoder.

Paper: Zhang et al., "Reinforced Latent Reasoning for LLM-based Recommendation" (arXiv 2505.19092).
After the prompt the decoder reads K thoughts in place of words. A thought is the value of an
attention of one head (LatentRATT) from its last state over the states of the prompt and of earlier
thoughts. Stages: `align`, CRS's own; `latent_sft` trains decoder and attention on the cross-entropy
of the answers; `latent_rl` trains the attention alone, by GRPO over thoughts with noise

  r_g = r + sigma z_g, z_g ~ N(0, I), z_1 = 0;   R_g = -exp(mean -log p(token of the target | r_g))
  A_g = (R_g - mean of the batch's R_1) / L2 norm of these differences over the batch

whose ratio of token probabilities is clipped below at 1 - .2 and above at 1 + .28, without a KL.
Nothing is sampled from the decoder. The first update of a rollout thus follows the targets' log p,
each by its advantage: where noise costs most thoughts their reward, most advantages are negative
and the update lowers what the target has, as the released code would.

Settled here: the prompts are those of CRS that ask for the id at once, and the first code follows
the last thought, so that no thought at all is the aligned decoder. sigma counts in root mean
squares of the thought itself, since thoughts of Qwen3 and of a decoder from scratch have other
scales than the 1.5 of the released code was made for. The reward counts the end token too. The
first stage has the searches that CRS distils, where the paper trains on all of them.

Axis letters: B prompts, T prompt tokens, G trajectories, K thoughts, S states, A answer tokens, D
width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from ml_collections import config_dict

from core import seeds
from core.errors import UserError
from core.loop import steps_for
from core.partitioning import random_bits_impl
from core.schedules import rate_at
from core.settings import (
    Count,
    CountOrNone,
    Positive,
    Rate,
    Section,
    Settings,
    Weight,
    at_least,
    build,
)
from core.workdir import Workdir
from crs_jax import generation, lora
from crs_jax.decoder import Decoder, Segment, rotate
from crs_jax.decoder_experiment import ALIGN, DecoderExperiment
from crs_jax.generation import Place
from crs_jax.inference import Inference
from crs_jax.rl_task import rows_of_step
from crs_jax.settings import TunedSettings, sft_settings
from crs_jax.sft_task import SFTConfig, State, first_state, optimizer_of

_SFT, _RL = "latent_sft", "latent_rl"
# Begins the paths of the attention's parameters beside the decoder's.
_LATENT = "latent"
# U(-1/sqrt(D), 1/sqrt(D)), the start of the released code's layers.
_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThoughtSettings(Settings):
    """Says how the decoder thinks.

    Attributes:
      count: K.
      rope_theta: base of the attention's rotary positions over the whole width.
    """

    count: Count
    rope_theta: Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSettings(Settings):
    """Says what the first stage trains on.

    Attributes:
      examples: training searches, drawn as `config.distill.examples` of CRS; 0 for all.
    """

    examples: CountOrNone


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentRLSettings(Settings):
    """Says how the second stage trains.

    Attributes:
      batch_size: B, prompts a rollout.
      trajectories: G, the one without noise included.
      noise: sigma, in root mean squares of a thought.
      updates_per_rollout: updates on one draw of noise.
      clip_low, clip_high: how far a ratio counts below and above 1.
      warmup: share of the updates in which the rate rises; then it falls as a cosine.
      weight_decay, clip_norm: of AdamW.
    """

    batch_size: Count
    trajectories: Annotated[int, at_least(2)]
    noise: Weight
    updates_per_rollout: Count
    clip_low: Rate
    clip_high: Weight
    warmup: Rate
    weight_decay: Weight
    clip_norm: Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSettings(Settings):
    """Says how long the second stage trains; `steps` are rollouts."""

    steps: Count
    evals: Count
    learning_rate: Weight


class ThoughtAttention(nn.Module):
    """Makes a thought from states: LatentRATT, one head with biases and no output projection."""

    theta: float

    @nn.compact
    def __call__(
        self,
        state: jax.Array,
        states: jax.Array,
        position: jax.Array,
        positions: jax.Array,
        valid: jax.Array,
    ) -> jax.Array:
        """Returns a thought float32 [B, N, D].

        Args:
          state: [B, N, D], of the last position.
          states: [B, N, S, D], of all.
          position, positions: int32 [B] and [B, S].
          valid: bool [B, S].
        """
        width = state.shape[-1]

        def project(name: str, x: jax.Array) -> jax.Array:
            bias = nn.initializers.uniform(2 * width**-0.5)
            layer = nn.Dense(
                width,
                name=name,
                kernel_init=_uniform,
                bias_init=lambda key, shape, dtype: bias(key, shape, dtype) - width**-0.5,
            )
            return layer(x.astype(jnp.float32))

        query = rotate(project("query", state)[:, :, None], position[:, None], self.theta)[:, :, 0]
        keys = rotate(project("key", states)[..., None, :], positions[:, None], self.theta)
        scores = jnp.einsum("bnd,bnsd->bns", query, keys[..., 0, :]) * width**-0.5
        weights = jax.nn.softmax(jnp.where(valid[:, None], scores, -jnp.inf), -1)
        return jnp.einsum("bns,bnsd->bnd", weights, project("value", states))


def attention_params(width: int, theta: float, key: jax.Array) -> dict[str, jax.Array]:
    """Draws the attention's parameters, flat by path."""
    state, place = jnp.zeros((1, 1, width)), jnp.zeros((1, 1), jnp.int32)
    made = ThoughtAttention(theta).init(key, state, state[:, None], place[0], place, place == 0)
    return traverse_util.flatten_dict({_LATENT: made["params"]}, sep="/")


def think(
    network: Decoder,
    params: Any,
    prompts: jax.Array,
    lengths: jax.Array,
    settings: ThoughtSettings,
    noise: jax.Array | None = None,
) -> Place:
    """Reads prompts and thinks; returns where the answers begin.

    Args:
      params: of the decoder, and of the attention under 'latent'.
      prompts, lengths: int32 [B, T] and [B].
      noise: float [B, G, K, D], in root mean squares of a thought; None is one trajectory without
        any.
    """
    batch, limit = prompts.shape
    trajectories = 1 if noise is None else noise.shape[1]
    valid = jnp.arange(limit) < lengths[:, None]
    positions = jnp.broadcast_to(jnp.arange(limit), prompts.shape)
    read: Any = network.apply(
        {"params": params}, prompts[:, None], positions[:, None], valid[:, None].astype(jnp.int32)
    )
    states, own = read
    past: tuple[Segment, ...] = (Segment(own.keys, own.values, valid[:, None]),)
    state = jnp.take_along_axis(states, (lengths - 1)[:, None, None, None], 2)[:, :, 0]
    attention = ThoughtAttention(settings.rope_theta)
    for k in range(settings.count):
        position = lengths - 1 + k
        thought: Any = attention.apply(
            {"params": params[_LATENT]}, state, states, position, positions, valid
        )
        thought = jnp.broadcast_to(thought, (batch, trajectories, thought.shape[-1]))
        if noise is not None:
            scale = jnp.sqrt(jnp.square(thought).mean(-1, keepdims=True))
            thought += noise[:, :, k] * jax.lax.stop_gradient(scale)
        place = jnp.broadcast_to((position + 1)[:, None, None], (batch, trajectories, 1))
        read = network.apply(
            {"params": params},
            thought[:, :, None].astype(network.config.compute_dtype),
            place,
            jnp.ones_like(place),
            past,
            method="read_embedded",
        )
        new, own = read
        past = (*past, Segment(own.keys, own.values, jnp.ones_like(place, bool)))
        states = jnp.broadcast_to(states, (batch, trajectories, *states.shape[2:]))
        states, state = jnp.concatenate([states, new], 2), new[:, :, 0]
        positions = jnp.concatenate([positions, place[:, 0]], 1)
        valid = jnp.pad(valid, ((0, 0), (0, 1)), constant_values=True)
    last = jnp.broadcast_to((lengths - 1 + settings.count)[:, None], (batch, trajectories))
    state = jnp.broadcast_to(state, (*last.shape, state.shape[-1]))
    return Place(past, jnp.zeros_like(last), last, state)


def answer_log_probs(
    network: Decoder,
    params: Any,
    batch: dict[str, jax.Array],
    settings: ThoughtSettings,
    noise: jax.Array | None = None,
) -> jax.Array:
    """Returns log p of each token of a batch's answers, float32 [B, G, A]."""
    place = think(network, params, batch["prompts"], batch["lengths"], settings, noise)
    answers = batch["answers"][:, None]
    answers = jnp.broadcast_to(answers, (*place.position.shape, answers.shape[-1]))
    return generation.answer_token_log_probs(network, params, place, answers)


def rewards(log_probs: jax.Array) -> jax.Array:
    """Returns R, minus the perplexity of each answer, [B, G] of log p [B, G, A]."""
    return -jnp.exp(-log_probs.mean(-1))


def advantages(reward: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns A of rewards [B, G], whose first trajectory has no noise; 0 where all are equal.

    Args:
      mask: [B], 0 for prompts that do not count.
    """
    counts = mask[:, None]
    baseline = (reward[:, 0] * mask).sum() / jnp.maximum(mask.sum(), 1.0)
    difference = (reward - baseline) * counts
    norm = jnp.sqrt(jnp.square(difference).sum())
    # Equal rewards differ from their mean by a rounding.
    unequal = norm > 1e-6 * jnp.sqrt((jnp.square(reward) * counts).sum())
    shares = jnp.where(unequal, difference / jnp.where(unequal, norm, 1.0), 0.0)
    return jax.lax.stop_gradient(shares)


def objective(
    log_probs: jax.Array,
    old: jax.Array,
    advantage: jax.Array,
    mask: jax.Array,
    settings: LatentRLSettings,
) -> tuple[jax.Array, jax.Array]:
    """Returns what is maximised, and the share of ratios beyond the clip.

    Args:
      log_probs, old: [B, G, A] of the current and the rollout's parameters.
      advantage: [B, G].
      mask: [B].
    """
    ratio = jnp.exp(log_probs - jax.lax.stop_gradient(old))
    clipped = jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
    gain = jnp.minimum(ratio * advantage[..., None], clipped * advantage[..., None])
    prompts = jnp.maximum(mask.sum(), 1.0)

    def mean(values: jax.Array) -> jax.Array:
        return (values.mean((1, 2)) * mask).sum() / prompts

    return mean(gain), mean((ratio != clipped).astype(jnp.float32))


def _updated(state: State, trained: Any, moments: Any) -> State:
    params = {**state["params"], "trained": trained}
    return {**state, "step": state["step"] + 1, "params": params, "optimizer": moments}


@functools.lru_cache
def latent_sft_step(network: Decoder, config: SFTConfig, settings: ThoughtSettings) -> Any:
    """Makes (state, batch, rate) -> (state, statistics) of the first stage."""
    optimizer = optimizer_of(config)

    def step(state: State, batch: dict[str, Any], learning_rate: jax.Array) -> Any:
        params, mask = state["params"], batch["mask"]

        def loss_of(trained: Any) -> jax.Array:
            log_probs = answer_log_probs(network, lora.whole(params, trained), batch, settings)
            return -(log_probs.mean((1, 2)) * mask).sum() / jnp.maximum(mask.sum(), 1.0)

        loss, gradient = jax.value_and_grad(loss_of)(params["trained"])
        updates, moments = optimizer.update(gradient, state["optimizer"], params["trained"])
        rate = learning_rate * batch["rate"]
        trained = optax.apply_updates(params["trained"], optax.tree.scale(-rate, updates))
        return _updated(state, trained, moments), {"loss": loss}

    return step


@functools.lru_cache
def latent_rl_step(
    network: Decoder, config: LatentRLSettings, settings: ThoughtSettings, impl: str = "rbg"
) -> Any:
    """Makes (state, batch, rate) -> (state, statistics) of the second stage.

    Args:
      impl: of the random bits, `core.partitioning.random_bits_impl`.
    """
    optimizer = optimizer_of(config)

    def step(state: State, batch: dict[str, Any], learning_rate: jax.Array) -> Any:
        params, mask = state["params"], batch["mask"]
        key = jax.random.fold_in(jax.random.key(batch["seed"], impl=impl), state["step"])
        shape = (len(mask), config.trajectories, settings.count, network.config.width)
        noise = config.noise * jax.random.normal(key, shape).at[:, 0].set(0.0)

        def log_probs_of(trained: Any) -> jax.Array:
            whole = lora.whole(params, trained)
            return answer_log_probs(network, whole, batch, settings, noise)

        old = log_probs_of(params["trained"])
        reward = rewards(old)
        advantage = advantages(reward, mask)
        rate = learning_rate * batch["rate"]

        def loss_of(trained: Any) -> tuple[jax.Array, jax.Array]:
            gain, clipped = objective(log_probs_of(trained), old, advantage, mask, config)
            return -gain, clipped

        def once(carry: Any, _: None) -> Any:
            trained, moments = carry
            (loss, clipped), gradient = jax.value_and_grad(loss_of, has_aux=True)(trained)
            updates, moments = optimizer.update(gradient, moments, trained)
            trained = optax.apply_updates(trained, optax.tree.scale(-rate, updates))
            return (trained, moments), {"loss": loss, "clipped": clipped}

        start = (params["trained"], state["optimizer"])
        (trained, moments), every = jax.lax.scan(once, start, length=config.updates_per_rollout)
        prompts = jnp.maximum(mask.sum(), 1.0)
        better = (reward[:, 1:] > reward[:, :1]).mean(1)
        statistics = {name: values.mean() for name, values in every.items()} | {
            "reward": (reward[:, 0] * mask).sum() / prompts,
            "reward_of_noise": (reward[:, 1:].mean(1) * mask).sum() / prompts,
            "noise_is_better": (better * mask).sum() / prompts,
        }
        return _updated(state, trained, moments), statistics

    return step


class LatentTask:
    """Trains one of the two stages, as a `core.task.Task`.

    Args:
      name: of the stage; each draws its own order and noise.
      step: of the stage.
      config: with `batch_size`, `warmup` and the settings of AdamW.
      prompts, lengths: int32 [E, T] and [E].
      answers: int32 [E, A].
      max_steps: updates, or rollouts.
      initial: makes the parameters before the first update.
      evaluate, selection, tables, seed: as of `crs_jax.sft_task.SFTTask`.
    """

    partition = None

    def __init__(
        self,
        name: str,
        step: Any,
        config: SFTConfig | LatentRLSettings,
        *,
        prompts: np.ndarray,
        lengths: np.ndarray,
        answers: np.ndarray,
        max_steps: int,
        initial: Callable[[], Any],
        evaluate: Callable[[Any, Any], dict[str, float]],
        selection: str,
        tables: dict[str, np.ndarray],
        seed: int,
    ):
        self.name, self.selection, self.batch_size = name, selection, config.batch_size
        self.config, self.max_steps, self.train_step = config, max_steps, step
        self._data = {"prompts": prompts, "lengths": lengths, "answers": answers}
        self._initial, self._evaluate, self._tables = initial, evaluate, tables
        self._seed = seed
        self.steps_per_epoch = steps_for(len(prompts), config.batch_size)

    def init(self) -> State:
        return first_state(self._initial(), self.config, self._tables, None)

    def batches(self, start_step: int) -> Iterator[dict[str, Any]]:
        """Yields batches from a step on: each epoch is a random order, its last batch masked."""
        count, size, step = len(self._data["prompts"]), self.batch_size, start_step
        noise = np.uint32(seeds.number(self._seed, self.name, "rollouts"))
        while True:
            rows, mask = rows_of_step(self._seed, self.name, count, size, step)
            rate = np.float32(rate_at(jnp.int32(step), self.max_steps, self.config.warmup))
            batch = {name: array[rows] for name, array in self._data.items()}
            yield batch | {"mask": mask, "rate": rate, "seed": noise}
            step += 1

    def evaluate(self, state: State) -> dict[str, float]:
        return self._evaluate(state["params"], state["tables"])


class LatentInference(Inference):
    """Answers prompts after thoughts, or at once; other arguments are those of `Inference`."""

    def __init__(self, *inputs: Any, settings: ThoughtSettings, batch_size: int):
        super().__init__(*inputs, max_reasoning=1, batch_size=batch_size)
        self._settings = settings

    def begin(self, whole, prompts, lengths, reason: bool) -> tuple[Place, Any, Any]:
        if not reason:
            return super().begin(whole, prompts, lengths, reason)
        place = think(self.network, whole, prompts, lengths, self._settings)
        return place, prompts[:, :0], lengths * 0


def with_attention(params: Any, attention: dict[str, jax.Array]) -> Any:
    """Adds an attention's parameters to those of a decoder that are trained."""
    return {**params, "trained": {**params["trained"], **attention}}


def attention_alone(params: Any) -> Any:
    """Keeps all parameters but the attention's as they are."""
    every = {**params.get("kept", {}), **params["trained"]}
    own = {path for path in every if path.startswith(f"{_LATENT}/")}
    return {
        "trained": {path: leaf for path, leaf in every.items() if path in own},
        "kept": {path: leaf for path, leaf in every.items() if path not in own},
    }


class LatentR3Experiment(DecoderExperiment):
    """Stages align, latent_sft and latent_rl.

    Raises:
      UserError: as `DecoderExperiment`, or more than one device.
    """

    stages = (_RL, _SFT, ALIGN)
    writes_reasoning = False

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        return {
            **super().sections(config),
            "thoughts": Section((ThoughtSettings,)),
            _SFT: Section((LatentSettings, TunedSettings)),
            _RL: Section((LatentRLSettings, StepSettings)),
        }

    @classmethod
    def check_settings(cls, config: config_dict.ConfigDict) -> None:
        super().check_settings(config)
        if (config.mesh.data, config.mesh.model) != (1, 1):
            raise UserError(
                f"expected one device for latentr3, found config.mesh of {config.mesh.data} x "
                f"{config.mesh.model}; set both to 1"
            )

    def made_inference(self) -> Inference:
        return LatentInference(
            *(self.network, self.controls, self.trie),
            settings=self._thoughts(),
            batch_size=self.config.eval.batch_size,
        )

    def _thoughts(self) -> ThoughtSettings:
        return build(ThoughtSettings, self.config.thoughts.to_dict(), section="thoughts")

    def algorithm_of(self, stage: str) -> str | None:
        return "latent_grpo" if stage == _RL else None

    def any_task(self, stage: str) -> Any:
        nothing = (np.zeros((1, 1), np.int32), np.ones(1, np.int32), np.zeros((1, 1), np.int32))
        if stage == _SFT:
            return self._sft_of_thoughts(nothing, self.start_shapes())
        if stage == _RL:
            return self._rl_of_thoughts(nothing, self._begun(self.start_shapes()))
        return super().any_task(stage)

    def _begun(self, params: Any) -> Any:
        key = jax.random.key(seeds.number(self.config.seed, "latent"))
        theta = self._thoughts().rope_theta
        return with_attention(params, attention_params(self.network.config.width, theta, key))

    def run(self, workdir: Workdir) -> None:
        """Trains every stage, or continues, and reads the test split once for each."""
        self.begin(workdir)
        params = self.aligned(workdir)
        settings = self.config.latent_sft
        task = self._sft_of_thoughts(self._asked_and_answered(self.fine_tuned_on()), params)
        params = self.train_and_test(workdir, task, settings.learning_rate, settings.evals)
        settings = self.config.latent_rl
        every = np.arange(len(self.examples.train))
        task = self._rl_of_thoughts(self._asked_and_answered(every), params)
        self.train_and_test(workdir, task, settings.learning_rate, settings.evals)

    def fine_tuned_on(self) -> np.ndarray:
        """Returns the training examples of the first stage, int [E], those that CRS distils."""
        count, most = len(self.examples.train), self.config.latent_sft.examples
        return self.examples.chosen("distill", count, most)

    def _asked_and_answered(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns prompts [E, T], their lengths [E] and answers with their end [E, A]."""
        prompts, lengths = self.asked("train", False)
        answers = self.examples.item_tokens[self.examples.train.item[rows]]
        ends = np.full((len(rows), 1), self.controls.end, np.int32)
        return prompts[rows], lengths[rows], np.concatenate([answers, ends], 1)

    def _sft_of_thoughts(self, data: tuple[np.ndarray, ...], params: Any) -> LatentTask:
        config = sft_settings(self.config)
        step = latent_sft_step(self.network, config, self._thoughts())
        steps = round(self.config.latent_sft.epochs * steps_for(len(data[0]), config.batch_size))
        copied = lora.copies(params)
        return self._task(_SFT, step, config, data, max(1, steps), lambda: self._begun(copied()))

    def _rl_of_thoughts(self, data: tuple[np.ndarray, ...], params: Any) -> LatentTask:
        names = [field.name for field in dataclasses.fields(LatentRLSettings)]
        values = {name: self.config.latent_rl[name] for name in names}
        config = build(LatentRLSettings, values, section=_RL)
        step = latent_rl_step(self.network, config, self._thoughts(), random_bits_impl(None))
        copied = lora.copies(attention_alone(params))
        return self._task(_RL, step, config, data, self.config.latent_rl.steps, copied)

    def _task(
        self,
        stage: str,
        step: Any,
        config: SFTConfig | LatentRLSettings,
        data: tuple[np.ndarray, ...],
        steps: int,
        initial: Callable[[], Any],
    ) -> LatentTask:
        prompts, lengths, answers = data
        return LatentTask(
            stage,
            step,
            config,
            prompts=prompts,
            lengths=lengths,
            answers=answers,
            max_steps=steps,
            initial=initial,
            evaluate=self.validate,
            selection=self.config.eval.selection,
            tables=self.tables(stage),
            seed=self.config.seed,
        )
