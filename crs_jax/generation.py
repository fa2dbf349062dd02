"""Draws reasoning, answers by beams, and scores both, under one cache.

All functions run inside jit. Axis letters: B users, T prompt tokens, G trajectories a user, R
reasoning tokens, A tokens of a trajectory, K answers, L levels of an identifier, W words.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core import beam_search
from core.beam_search import Beams
from core.settings import Count, Rule, Settings, Weight
from core.trie import Trie
from crs_jax import beams as free_beams
from crs_jax.beams import FreeBeams
from crs_jax.decoder import Decoder, KeysValues, Segment

TOP_P = Rule("above 0 and at most 1", lambda share: 0 < share <= 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(Settings):
    """Says how reasoning is drawn.

    Attributes:
      max_tokens: R, the end token included.
      temperature: 0 takes the likeliest token.
      top_p: share of the probability that tokens are drawn from, the likeliest first.
    """

    max_tokens: Count
    temperature: Weight = 1.0
    top_p: Annotated[float, TOP_P] = 1.0


class Prompted(NamedTuple):
    """Prompts that have been read.

    Attributes:
      segment: their keys and values, one part a user.
      lengths: int32 [B].
      state: [B, D], after the last token.
    """

    segment: Segment
    lengths: jax.Array
    state: jax.Array


class Samples(NamedTuple):
    """Trajectories up to their end token, it included.

    Attributes:
      tokens: int32 [B, G, R]; 0 after the end.
      lengths: int32 [B, G].
      log_probs: float32 [B, G, R], of the drawn tokens at temperature 1 over the whole vocabulary;
        0 after the end.
      segment: keys and values, one part a trajectory.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probs: jax.Array
    segment: Segment


def read_prompts(network: Decoder, params: Any, tokens: jax.Array, lengths: jax.Array) -> Prompted:
    """Reads prompts int32 [B, T] of `lengths` [B], each at least 1; what follows is padding."""
    places = jnp.arange(tokens.shape[1])
    valid = places < lengths[:, None]
    positions = jnp.broadcast_to(places, tokens.shape)
    states, own = _apply(network, params, tokens[:, None], positions[:, None], valid[:, None])
    last = jnp.take_along_axis(states[:, 0], (lengths - 1)[:, None, None], 1)[:, 0]
    return Prompted(Segment(*own, valid[:, None]), lengths, last)


def _apply(network, params, tokens, positions, valid, past=()) -> tuple[jax.Array, KeysValues]:
    segments = valid.astype(jnp.int32)
    output: Any = network.apply({"params": params}, tokens, positions, segments, past)
    return output


def _logits(network: Decoder, params: Any, states: jax.Array) -> jax.Array:
    logits: Any = network.apply({"params": params}, states, method="logits")
    return logits


def draw(key: jax.Array, logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Draws a token int32 [...] from logits float32 [..., vocabulary]."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, -1, descending=True)
        shares = jax.nn.softmax(ordered, -1)
        # A token is in while those before it have not reached the share: the first one always is.
        inside = jnp.cumsum(shares, -1) - shares < sampling.top_p
        least = jnp.where(inside, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def sample(
    network: Decoder,
    params: Any,
    prompted: Prompted,
    key: jax.Array,
    count: int,
    sampling: Sampling,
    stops: tuple[int, ...],
) -> Samples:
    """Draws `count` (G) trajectories of each prompt; the prompt's cache is shared by them.

    Args:
      stops: a trajectory ends with any of these tokens.
    """
    c = network.config
    batch, limit = prompted.lengths.shape[0], sampling.max_tokens
    shape = (c.layers, batch, count, limit, c.kv_heads, c.head_dim)
    cache = KeysValues(jnp.zeros(shape, c.compute_dtype), jnp.zeros(shape, c.compute_dtype))
    empty = jnp.zeros((batch, count, limit), jnp.int32)
    state = jnp.broadcast_to(prompted.state[:, None], (batch, count, c.width))
    ending = jnp.asarray(stops, jnp.int32)

    def more(carry):
        place, done, *_ = carry
        return (place < limit) & ~done.all()

    def one(carry):
        place, done, state, tokens, lengths, log_probs, cache = carry
        logits = _logits(network, params, state)
        token = draw(jax.random.fold_in(key, place), logits, sampling)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, -1), token[..., None], -1)[..., 0]
        token = jnp.where(done, 0, token)
        before = jnp.broadcast_to(jnp.arange(limit) < place, (batch, count, limit))
        past = (prompted.segment, Segment(cache.keys, cache.values, before))
        positions = jnp.broadcast_to(prompted.lengths[:, None] + place, (batch, count))
        states, own = _apply(
            network, params, token[..., None], positions[..., None], ~done[..., None], past
        )
        cache = jax.tree.map(
            lambda held, new: jax.lax.dynamic_update_slice_in_dim(held, new, place, 3), cache, own
        )
        return (
            place + 1,
            done | (token[..., None] == ending).any(-1),
            states[:, :, 0],
            tokens.at[:, :, place].set(token),
            lengths + ~done,
            log_probs.at[:, :, place].set(jnp.where(done, 0.0, chosen)),
            cache,
        )

    start = (
        jnp.int32(0),
        jnp.zeros((batch, count), bool),
        state,
        empty,
        jnp.zeros((batch, count), jnp.int32),
        empty.astype(jnp.float32),
        cache,
    )
    _, _, _, tokens, lengths, log_probs, cache = jax.lax.while_loop(more, one, start)
    valid = jnp.arange(limit) < lengths[..., None]
    return Samples(tokens, lengths, log_probs, Segment(cache.keys, cache.values, valid))


class Place(NamedTuple):
    """Says where answers begin.

    Attributes:
      past: what was read before `token`.
      token: int32 [B, G], the last token before an answer, not read yet.
      position: int32 [B, G], of that token.
      state: [B, G, D], after the last token, where it is read already; then `token` is not read.
    """

    past: tuple[Segment, ...]
    token: jax.Array
    position: jax.Array
    state: jax.Array | None = None


def after_reasoning(prompted: Prompted, samples: Samples, stops: tuple[int, ...]) -> Place:
    """Returns the place after the reasoning of samples and `stops[0]`, </think>.

    A trajectory that has not ended, or ended otherwise, is ended by </think> too.
    """
    ends = (samples.tokens[..., None] == jnp.asarray(stops)).any(-1)
    valid = samples.segment.valid & ~ends
    position = prompted.lengths[:, None] + valid.sum(-1)
    past = (prompted.segment, samples.segment._replace(valid=valid))
    return Place(past, jnp.full(position.shape, stops[0], jnp.int32), position)


def after_prompt(prompted: Prompted, tokens: jax.Array) -> Place:
    """Returns the place at once after prompts int32 [B, T], whose last token is read again; G is
    1.
    """
    last = prompted.lengths[:, None] - 1
    valid = prompted.segment.valid & (jnp.arange(tokens.shape[1]) < last[..., None])
    token = jnp.take_along_axis(tokens, last, 1)
    return Place((prompted.segment._replace(valid=valid),), token, last)


def _beam_step(network: Decoder, params: Any, place: Place) -> tuple[Any, Any]:
    """Returns (step, cache) of `core.beam_search`, its users being all trajectories B*G."""
    c = network.config
    batch, count = place.token.shape

    def step(level, tokens, cache):
        beams = tokens.shape[1]
        if not level and place.state is not None:
            return _logits(network, params, place.state).reshape(batch * count, 1, -1), cache
        written = cache.keys.shape[3]
        rows = (batch, count * beams, 1)
        positions = jnp.broadcast_to((place.position + level)[..., None], (batch, count, beams))
        past = place.past
        if written:
            # [B*G, J, layers, t, K, E] as a segment with a part a row.
            own = jax.tree.map(
                lambda a: jnp.moveaxis(a, 2, 0).reshape(
                    c.layers, batch, count * beams, *a.shape[3:]
                ),
                cache,
            )
            valid = jnp.ones((batch, count * beams, written), bool)
            past = (*past, Segment(own.keys, own.values, valid))
        states, new = _apply(
            network,
            params,
            tokens.reshape(rows),
            positions.reshape(rows),
            jnp.ones(rows, bool),
            past,
        )
        new = jax.tree.map(
            lambda a: jnp.moveaxis(a.reshape(c.layers, batch * count, beams, *a.shape[3:]), 0, 2),
            new,
        )
        cache = jax.tree.map(lambda held, row: jnp.concatenate([held, row], 3), cache, new)
        return _logits(network, params, states).reshape(batch * count, beams, -1), cache

    nothing = jnp.zeros((batch * count, 1, c.layers, 0, c.kv_heads, c.head_dim), c.compute_dtype)
    return step, KeysValues(nothing, nothing)


def _by_user(beams: Any, shape: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda array: array.reshape(*shape, *array.shape[1:]), beams)


def constrained_answers(
    network: Decoder, params: Any, place: Place, trie: Trie, width: int
) -> Beams:
    """Returns the likeliest items of a trie: Beams of [B, G, K] and [B, G, K, L]."""
    step, cache = _beam_step(network, params, place)
    beams = beam_search.search(step, cache, place.token.reshape(-1), trie, width)
    return _by_user(beams, place.token.shape)


def answer_log_probs(network: Decoder, params: Any, place: Place, answers: jax.Array) -> jax.Array:
    """Returns log p of given answers int32 [B, N, L] in nats, float32 [B, N]; all words compete.

    Each answer sees what was read before and its own tokens alone.

    Args:
      place: of one trajectory a prompt; its cache is shared by the answers.
    """
    return answer_token_log_probs(network, params, place, answers).sum(-1)


def answer_token_log_probs(
    network: Decoder, params: Any, place: Place, answers: jax.Array
) -> jax.Array:
    """Returns log p of each token of answers int32 [B, N, L], float32 [B, N, L].

    Args:
      place: of one trajectory a prompt, which all its answers share, or of N.
    """
    shape, first = answers.shape, int(place.state is not None)
    tokens = jnp.concatenate(
        [jnp.broadcast_to(place.token[..., None], (*shape[:2], 1)), answers[..., :-1]], -1
    )[..., first:]
    positions = place.position[..., None] + jnp.arange(first, shape[-1])
    positions = jnp.broadcast_to(positions, tokens.shape)
    states, _ = _apply(network, params, tokens, positions, jnp.ones(tokens.shape, bool), place.past)
    if place.state is not None:
        before = jnp.broadcast_to(place.state[:, :, None], (*shape[:2], 1, states.shape[-1]))
        states = jnp.concatenate([before, states], 2)
    return token_log_probs(network, params, states, answers)


def free_answers(network: Decoder, params: Any, place: Place, length: int, width: int) -> FreeBeams:
    """Returns the likeliest sequences of `length` tokens, whatever they mean: [B, G, K, L], [B,
    G, K].
    """
    step, cache = _beam_step(network, params, place)
    beams = free_beams.search(step, cache, place.token.reshape(-1), length, width)
    return _by_user(beams, place.token.shape)


def token_log_probs(
    network: Decoder, params: Any, states: jax.Array, targets: jax.Array, chunk: int = 128
) -> jax.Array:
    """Returns log p of targets int32 [B, N, A] from the states [B, N, A, D] before them, float32.

    In chunks of tokens that are computed again in the backward pass: logits of a whole batch over
    150,000 words would be most of a chip.

    Args:
      chunk: tokens of a user whose logits over the whole vocabulary are held at once.
    """

    @jax.checkpoint
    def of(part):
        states, targets = part
        logits = _logits(network, params, states)
        chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, -1)

    count = targets.shape[-1]
    size = max(1, chunk // targets.shape[1])
    if count <= size:
        return of((states, targets))
    chunks = -(-count // size)
    spare = chunks * size - count
    states = jnp.pad(states, ((0, 0), (0, 0), (0, spare), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, 0), (0, spare)))

    def cut(array):
        shape = (*array.shape[:2], chunks, size, *array.shape[3:])
        return jnp.moveaxis(array.reshape(shape), 2, 0)

    log_probs = jnp.moveaxis(jax.lax.map(of, (cut(states), cut(targets))), 0, 2)
    return log_probs.reshape(*targets.shape)[..., :count]


def teacher_forced(
    network: Decoder,
    params: Any,
    prompts: jax.Array,
    lengths: jax.Array,
    answers: jax.Array,
    answer_lengths: jax.Array,
) -> jax.Array:
    """Returns log p of each token of trajectories after their prompts, float32 [B, G, A]; 0 at
    padding.

    The prompt is read once for all trajectories.

    Args:
      prompts, lengths: int32 [B, T] and [B].
      answers, answer_lengths: int32 [B, G, A] and [B, G].
    """
    prompted = read_prompts(network, params, prompts, lengths)
    batch, count, limit = answers.shape
    valid = np.arange(limit) < answer_lengths[..., None]
    positions = jnp.broadcast_to(lengths[:, None, None] + np.arange(limit), answers.shape)
    states, _ = _apply(network, params, answers, positions, valid, (prompted.segment,))
    first = jnp.broadcast_to(prompted.state[:, None, None], (batch, count, 1, states.shape[-1]))
    before = jnp.concatenate([first, states[:, :, :-1]], 2)
    return jnp.where(valid, token_log_probs(network, params, before, answers), 0.0)
