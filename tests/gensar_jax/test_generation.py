"""Scores of generated identifiers are the network's teacher-forced log-likelihoods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import trie as tries
from gensar_jax.generation import generate
from gensar_jax.t5.config import of_size
from gensar_jax.t5.network import Transformer

WORDS, LENGTH = 30, 4
BEHAVIOUR = 9


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(10, WORDS - 2, (60, LENGTH)), axis=0)
    inputs = rng.integers(1, WORDS, (3, 7))
    inputs[1, 4:] = 0
    network = Transformer(of_size("tiny", WORDS))
    token = jnp.ones((1, 1), jnp.int32)
    init = jax.jit(functools.partial(network.init, enable_dropout=False))
    params = init(jax.random.key(0), token, token, token)["params"]
    return network, params, jnp.asarray(inputs, jnp.int32), codes


def teacher_forced(network, params, inputs, forced, codes):
    """Sums of log p of `codes` [V, L] after each prompt [B, V], without any cache."""
    users, items = len(inputs), len(codes)
    targets = np.concatenate([np.broadcast_to(forced, (items, len(forced))), codes], 1)
    shifted = np.concatenate([np.zeros((items, 1), int), targets[:, :-1]], 1)
    logits = jax.jit(functools.partial(network.apply, enable_dropout=False))(
        {"params": params},
        jnp.repeat(inputs, items, 0),
        jnp.asarray(np.tile(shifted, (users, 1)), jnp.int32),
        jnp.asarray(np.tile(targets, (users, 1)), jnp.int32),
    )
    logits = np.asarray(logits, np.float64)[:, len(forced) :]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_p, np.tile(codes, (users, 1))[..., None], -1)
    return picked.sum((1, 2)).reshape(users, items)


@pytest.mark.parametrize("forced", [[BEHAVIOUR], []])
def test_raw_scores_are_teacher_forced_log_likelihoods(setting, forced):
    network, params, inputs, codes = setting
    expected = teacher_forced(network, params, inputs, np.array(forced, int), codes)
    prefix = jnp.broadcast_to(jnp.asarray(forced, jnp.int32), (3, len(forced)))
    run = jax.jit(functools.partial(generate, network, width=len(codes)))
    beams = run(params, inputs, prefix, tries.build(codes))
    order = np.argsort(-expected, 1)
    np.testing.assert_array_equal(beams.items, order)
    np.testing.assert_allclose(beams.scores, np.take_along_axis(expected, order, 1), atol=1e-4)
    # Prompts and behaviour matter, so agreement is not agreement of constants.
    assert np.ptp(expected, 0).max() > 0.1


def test_candidates_of_each_user_in_a_narrow_and_in_a_full_beam(setting):
    network, params, inputs, codes = setting
    expected = teacher_forced(network, params, inputs, np.array([BEHAVIOUR]), codes)
    rng = np.random.default_rng(1)
    candidates = np.stack([rng.permutation(len(codes))[:20] for _ in range(3)])
    prefix = jnp.full((3, 1), BEHAVIOUR, jnp.int32)

    @functools.partial(jax.jit, static_argnums=0)
    def run(width):
        trie = tries.of_candidates(codes, candidates, np.ones_like(candidates, bool))
        return generate(network, params, inputs, prefix, trie, width)

    everything, narrow = run(20), run(5)
    own = np.take_along_axis(expected, candidates, 1)
    order = np.argsort(-own, 1)
    np.testing.assert_array_equal(everything.items, np.take_along_axis(candidates, order, 1))
    for user in range(3):
        scores = dict(zip(candidates[user].tolist(), own[user]))
        items = narrow.items[user].tolist()
        assert len(set(items)) == 5
        np.testing.assert_allclose(narrow.scores[user], [scores[i] for i in items], atol=1e-4)
