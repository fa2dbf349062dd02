"""Sampling and beams of the decoder against whole passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import trie as tries
from crs_jax import generation
from crs_jax.decoder import Decoder, init_params
from crs_jax.decoder_config import DecoderConfig
from crs_jax.generation import Sampling

TEXT, STOP = 12, 7
CONFIG = DecoderConfig(
    text_rows=TEXT, new_rows=6, width=12, layers=2, heads=4, kv_heads=2, head_dim=6, mlp_dim=16
)
NETWORK = Decoder(CONFIG)
PROMPTS = np.array([[5, 6, 7, 8], [9, 1, 0, 0]], np.int32)
LENGTHS = np.array([4, 2], np.int32)
IDENTIFIERS = np.array([[12, 15], [12, 16], [13, 15], [14, 17]])


@functools.cache
def params():
    # Large enough that the distributions are far from uniform.
    return jax.tree.map(lambda leaf: leaf * 5, init_params(CONFIG, jax.random.key(0)))


@functools.cache
def trie():
    return tries.build(IDENTIFIERS)


@functools.partial(jax.jit, static_argnames=("count", "sampling"))
def sampled(params, key, count, sampling):
    prompted = generation.read_prompts(NETWORK, params, PROMPTS, LENGTHS)
    return generation.sample(NETWORK, params, prompted, key, count, sampling, (STOP,)), prompted


@jax.jit
def answered(params, samples, prompted):
    place = generation.after_reasoning(prompted, samples, (STOP,))
    held = generation.constrained_answers(NETWORK, params, place, trie(), 4)
    free = generation.free_answers(NETWORK, params, place, 2, 3)
    return held, free


@jax.jit
def log_probs(params, answers, lengths):
    return generation.teacher_forced(NETWORK, params, PROMPTS, LENGTHS, answers, lengths)


def full_log_probs(params, tokens):
    """By one plain pass, float [Q, W]."""
    return np.asarray(_plain(params, np.pad(tokens, (0, 16 - len(tokens)))))[: len(tokens)]


@jax.jit
def _plain(params, row):
    row, places = row[None, None], jnp.arange(16)[None, None]
    logits = NETWORK.apply({"params": params}, row, places, jnp.ones_like(row), method="read")
    return jax.nn.log_softmax(logits[0, 0], -1)


def test_sampled_log_probabilities_equal_a_teacher_forced_pass():
    samples, _ = sampled(params(), jax.random.key(1), 5, Sampling(max_tokens=7))
    tokens, lengths = np.asarray(samples.tokens), np.asarray(samples.lengths)
    for row, length in zip(tokens.reshape(-1, 7), lengths.reshape(-1), strict=True):
        # Nothing after the first end, and an end unless all places are taken.
        assert (row[: length - 1] != STOP).all() and (row[length:] == 0).all()
        assert length == 7 or row[length - 1] == STOP
    assert len(np.unique(tokens[0], axis=0)) > 1 and lengths.min() < 7
    forced = log_probs(params(), samples.tokens, samples.lengths)
    np.testing.assert_allclose(samples.log_probs, forced, atol=1e-4)
    # And both a plain pass over prompt and trajectory.
    whole = np.concatenate([PROMPTS[1, :2], tokens[1, 2]])
    plain = full_log_probs(params(), whole)[1:-1]
    length = lengths[1, 2]
    np.testing.assert_allclose(
        forced[1, 2, :length], plain[np.arange(length), tokens[1, 2, :length]], atol=1e-4
    )


@pytest.mark.slow
def test_greedy_and_a_narrow_nucleus_take_the_likeliest_token():
    greedy, _ = sampled(params(), jax.random.key(1), 1, Sampling(max_tokens=4, temperature=0.0))
    narrow = Sampling(max_tokens=4, top_p=1e-6)
    again, _ = sampled(params(), jax.random.key(2), 1, narrow)
    np.testing.assert_array_equal(greedy.tokens, again.tokens)
    first = full_log_probs(params(), PROMPTS[0])[-1].argmax()
    assert int(greedy.tokens[0, 0, 0]) == first


def test_temperature_and_top_p_shape_the_draws():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.split(jax.random.key(0), 4000)

    def shares(sampling):
        drawn = jax.vmap(lambda key: generation.draw(key, logits, sampling))(keys)
        return np.bincount(np.asarray(drawn), minlength=4) / 4000

    np.testing.assert_allclose(shares(Sampling(max_tokens=1)), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    # .5 + .3 reach .7, so that the rest is out: 5/8 and 3/8.
    cut = shares(Sampling(max_tokens=1, top_p=0.7))
    np.testing.assert_allclose(cut, [0.625, 0.375, 0, 0], atol=0.03)
    # Temperature 1/2 squares: .25, .09, .0225, .0025 of .365.
    cold = shares(Sampling(max_tokens=1, temperature=0.5))
    np.testing.assert_allclose(cold, [0.685, 0.247, 0.062, 0.007], atol=0.03)
    with pytest.raises(ValueError, match="top_p"):
        Sampling(max_tokens=1, top_p=0.0)


def test_answers_are_scored_after_the_reasoning_and_its_end():
    trie()  # built outside of tracing
    samples, prompted = sampled(params(), jax.random.key(1), 5, Sampling(max_tokens=7))
    held, free = answered(params(), samples, prompted)
    for user, row in ((0, 0), (1, 2), (1, 4)):
        tokens = np.asarray(samples.tokens)[user, row, : samples.lengths[user, row]]
        before = [*PROMPTS[user, : LENGTHS[user]], *tokens[tokens != STOP], STOP]
        after = full_log_probs(params(), np.array(before))[-1]
        second = {a: full_log_probs(params(), np.array([*before, a]))[-1] for a in (12, 13, 14)}
        expected = np.array([after[a] + second[a][b] for a, b in IDENTIFIERS])
        order = np.argsort(-expected)
        np.testing.assert_array_equal(held.items[user, row], order)
        np.testing.assert_allclose(held.scores[user, row], expected[order], atol=1e-4)
        np.testing.assert_array_equal(held.tokens[user, row], IDENTIFIERS[order])
        # Any tokens at all: the likeliest first one is that of the best beam's parents.
        first = np.asarray(free.tokens)[user, row, :, 0]
        assert set(first) <= set(np.argsort(-np.asarray(after))[:3].tolist())
        a, b = np.asarray(free.tokens)[user, row, 0]
        found = after[a] + full_log_probs(params(), np.array([*before, a]))[-1][b]
        assert float(free.scores[user, row, 0]) == pytest.approx(float(found), abs=1e-4)


def test_answers_at_once_after_the_prompt():
    @jax.jit
    def answer(params):
        prompted = generation.read_prompts(NETWORK, params, PROMPTS, LENGTHS)
        place = generation.after_prompt(prompted, PROMPTS)
        return generation.constrained_answers(NETWORK, params, place, trie(), 4)

    trie()
    answers = answer(params())
    for user in (0, 1):
        prompt = PROMPTS[user, : LENGTHS[user]]
        after = full_log_probs(params(), prompt)[-1]
        best = int(answers.items[user, 0, 0])
        a, b = IDENTIFIERS[best]
        expected = after[a] + full_log_probs(params(), np.array([*prompt, a]))[-1][b]
        assert float(answers.scores[user, 0, 0]) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.slow
def test_log_probabilities_in_chunks_are_those_of_one_pass():
    states = jax.random.normal(jax.random.key(0), (2, 1, 7, CONFIG.width))
    targets = jax.random.randint(jax.random.key(1), (2, 1, 7), 0, 18)
    whole = generation.token_log_probs(NETWORK, params(), states, targets)
    cut = generation.token_log_probs(NETWORK, params(), states, targets, chunk=3)
    np.testing.assert_allclose(cut, whole, atol=1e-5)
