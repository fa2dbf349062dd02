"""Beam search against the enumeration of every path, on a made-up network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import beam_search
from core import trie as tries

WORDS = 12


def log_softmax(logits):
    high = logits.max()
    return logits - high - np.log(np.exp(logits - high).sum())


class Network:
    """Logits that depend on every token of the prefix and on its place."""

    def __init__(self, length, seed=0, batch=2):
        rng = np.random.default_rng(seed)
        self.length = length
        self.embedding = rng.standard_normal((length, WORDS, 8)).astype(np.float32)
        self.head = 2 * rng.standard_normal((batch, 8, WORDS)).astype(np.float32)
        self.start = np.array([3, 5][:batch], np.int32)

    def logits(self, user, prefix):
        state = sum(self.embedding[i, token] for i, token in enumerate(prefix))
        return np.tanh(state) @ self.head[user]

    def cache(self):
        return {"state": jnp.zeros((len(self.start), 1, 8))}

    def step(self, level, tokens, cache):
        state = cache["state"] + jnp.asarray(self.embedding)[level, tokens]
        return jnp.einsum("bkd,bdw->bkw", jnp.tanh(state), self.head), {"state": state}

    def score(self, user, codes, allowed=None):
        """Log-likelihood of codes; among `allowed(prefix)` only where given."""
        prefix, total = [self.start[user]], 0.0
        for code in codes:
            logits = self.logits(user, prefix).astype(np.float64)
            if allowed is not None:
                others = [w for w in range(WORDS) if w not in allowed(tuple(prefix[1:]))]
                logits[others] = -np.inf
            total += log_softmax(logits)[code]
            prefix.append(code)
        return total


def catalogue(count=40, length=3, seed=0):
    rng = np.random.default_rng(seed)
    every = np.unique(rng.integers(0, WORDS - 2, (4 * count, length)), axis=0)
    return rng.permutation(every)[:count]


def run(network, trie, width, **settings):
    @functools.partial(jax.jit, static_argnums=1)
    def search(trie, width):
        return beam_search.search(
            network.step, network.cache(), network.start, trie, width, **settings
        )

    return jax.tree.map(np.asarray, search(trie, width))


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("width", [40, 70])
def test_a_beam_as_wide_as_the_catalogue_ranks_every_item(width, renormalise):
    codes = catalogue()
    network = Network(3)

    def allowed(prefix):
        return {int(c[len(prefix)]) for c in codes if tuple(c[: len(prefix)]) == prefix}

    beams = run(network, tries.build(codes), width, renormalise=renormalise)
    for user in range(2):
        exact = [network.score(user, c, allowed if renormalise else None) for c in codes]
        order = np.argsort(exact)[::-1]
        assert beams.items[user].tolist() == order.tolist()
        np.testing.assert_allclose(beams.scores[user], np.array(exact)[order], atol=1e-4)
        np.testing.assert_array_equal(beams.tokens[user], codes[order])


def test_padding_after_the_end_of_a_shorter_identifier_costs_nothing():
    # Token 0 is the padding: what follows it is no part of an identifier.
    codes = np.array([[4, 1, 0], [4, 2, 1], [7, 1, 0], [8, 3, 1]])
    network = Network(3)
    beams = run(network, tries.build(codes), 4, padding=0)
    for user in range(2):
        exact = [network.score(user, c[: 2 if c[2] == 0 else 3]) for c in codes]
        order = np.argsort(exact)[::-1]
        assert beams.items[user].tolist() == order.tolist()
        np.testing.assert_allclose(beams.scores[user], np.array(exact)[order], atol=1e-5)


def plain_beam_search(network, user, codes, width):
    """Written with lists: at each level keep the best prefixes of items."""
    beams = [((), 0.0)]
    for level in range(codes.shape[1]):
        longer = []
        for prefix, score in beams:
            read = [network.start[user], *prefix]
            log_p = log_softmax(network.logits(user, read).astype(np.float64))
            follow = {int(c[level]) for c in codes if tuple(c[:level]) == prefix}
            longer += [((*prefix, w), score + log_p[w]) for w in follow]
        beams = sorted(longer, key=lambda b: -b[1])[:width]
    return beams


@pytest.mark.parametrize("width", [1, 4])
def test_a_narrow_beam_agrees_with_a_beam_search_in_lists(width):
    codes = catalogue(80, 4, seed=1)
    network = Network(4, seed=1)
    beams = run(network, tries.build(codes), width)
    rows = {tuple(c): i for i, c in enumerate(codes.tolist())}
    for user in range(2):
        expected = plain_beam_search(network, user, codes, width)
        assert beams.items[user].tolist() == [rows[p] for p, _ in expected]
        np.testing.assert_allclose(beams.scores[user], [s for _, s in expected], atol=1e-4)


def test_each_user_finds_their_own_candidates_only():
    codes = catalogue(60, 3, seed=2)
    network = Network(3, seed=2)
    candidates = np.array([[4, 9, 30, 31, 2, 0], [8, 8, 17, 59, 1, 6]])
    valid = np.array([[True] * 5 + [False], [True] * 6])
    trie = tries.of_candidates(codes, candidates, valid)
    beams = run(network, trie, 10)
    for user in range(2):
        own = sorted(set(candidates[user][valid[user]].tolist()))
        exact = sorted(((network.score(user, codes[i]), i) for i in own), reverse=True)
        assert beams.items[user][:5].tolist() == [i for _, i in exact]
        np.testing.assert_allclose(beams.scores[user][:5], [s for s, _ in exact], atol=1e-4)
        # Both have five distinct candidates: the sixth place is no item, and item 0 is not there.
        assert beams.items[user][5:].tolist() == [-1]
        assert np.all(beams.scores[user][5:] == -np.inf) and np.all(beams.tokens[user][5:] == 0)


def test_never_an_identifier_outside_the_trie_and_never_one_twice():
    for seed in range(2):
        codes = catalogue(50, 3, seed)
        trie = tries.build(codes)
        beams = run(Network(3, seed), trie, 20)
        np.testing.assert_array_equal(tries.find(trie, beams.tokens), beams.items)
        assert beams.items.min() >= 0
        assert all(len(set(row)) == 20 for row in beams.items.tolist())


def test_the_likeliest_tokens_may_all_be_forbidden():
    codes = np.array([[0, 0], [1, 1]])

    def step(level, tokens, cache):
        logits = jnp.zeros((1, tokens.shape[1], WORDS)).at[..., 2:].set(90.0)
        return logits.at[..., 1].set(-jnp.inf), cache

    beams = beam_search.search(step, (), jnp.zeros(1, jnp.int32), tries.build(codes), 5)
    # Probability zero is still an item, ranked last, ahead of nothing at all.
    assert beams.items.tolist() == [[0, 1]]
    assert beams.scores[0, 0] == pytest.approx(-2 * (90 + np.log(10)), rel=1e-6)
    assert beams.scores[0, 1] <= np.finfo(np.float32).min


def test_a_broken_network_or_a_trie_of_another_vocabulary_shows_as_nan():
    def broken(level, tokens, cache):
        return jnp.full((1, tokens.shape[1], WORDS), jnp.nan), cache

    def fine(level, tokens, cache):
        return jnp.zeros((1, tokens.shape[1], WORDS)), cache

    start = jnp.zeros(1, jnp.int32)
    beams = beam_search.search(broken, (), start, tries.build(np.array([[0, 0], [1, 1]])), 2)
    assert sorted(beams.items[0].tolist()) == [0, 1] and np.all(np.isnan(beams.scores))
    beyond = tries.build(np.array([[0, 0], [0, WORDS]]))
    beams = beam_search.search(fine, (), start, beyond, 2)
    scores = dict(zip(beams.items[0].tolist(), beams.scores[0].tolist()))
    assert scores[0] == pytest.approx(-2 * np.log(WORDS)) and np.isnan(scores[1])


def test_the_first_step_reads_one_beam_and_no_step_follows_the_last_code():
    codes = catalogue(40, 3)
    trie = tries.build(codes)
    widths = []
    network = Network(3)

    def step(level, tokens, cache):
        widths.append((level, tokens.shape[1]))
        return network.step(level, tokens, cache)

    beam_search.search(step, network.cache(), network.start, trie, 30)
    second = len(np.unique(codes[:, :2], axis=0))
    assert widths == [(0, 1), (1, len(set(codes[:, 0]))), (2, min(30, second))]


def test_a_beam_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        run(Network(3), tries.build(catalogue()), 0)
