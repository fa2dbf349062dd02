"""One list of items for all users is scored as each user's own candidates are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_batches import ITEMS, USERS, ragged_batch

from lcrsr import aggregation
from lcrsr.evaluation import Evaluator

B, D, N, F = 6, 4, 9, 7
ROWS = {"search": 8, "rec": 5}


def normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def arguments(rows_scale=1.0):
    """Weights, and users of full, holey, short and empty sides, whose garbage is in their masks."""
    rng = np.random.default_rng(0)
    weights = aggregation.ScorerWeights(
        *(normal(rng, D, D) for _ in range(2)),
        *(normal(rng, D, F) for _ in range(4)),
        normal(rng, F),
        ((normal(rng, F, 3), normal(rng, 3)), (normal(rng, 3, 1), normal(rng, 1))),
    )
    sides = {}
    for name, length in ROWS.items():
        mask = np.zeros((B, length), bool)
        mask[0] = True
        mask[1, ::2] = True
        mask[2, -1] = True
        mask[3, :2] = True
        mask[4 if name == "rec" else 5, 1:4] = True  # the other side of 4 and of 5 is empty
        rows = rows_scale * normal(rng, B, length, D)
        sides[name] = aggregation.Side((jnp.where(mask[..., None], rows, 50.0),), jnp.asarray(mask))
    return weights, sides["rec"], sides["search"], normal(rng, B, D), normal(rng, N, D)


def both_ways(attention, **changes):
    weights, rec, search, user, items = arguments(**changes)

    @jax.jit
    def scores():
        own = jnp.broadcast_to(items, (B, N, D))
        return [
            aggregation.score(weights, rec, search, user, candidates, attention)
            for candidates in (items, own)
        ]

    return (np.asarray(scores) for scores in scores())


@pytest.mark.parametrize("users", ["one by one", "together"])
@pytest.mark.parametrize("attention", aggregation.ATTENTIONS)
def test_equals_candidates_of_each_user(attention, users, monkeypatch):
    if users == "together":  # as on accelerators
        monkeypatch.setattr(
            jax.lax, "platform_dependent", lambda *operands, cpu, default: default(*operands)
        )
        monkeypatch.setattr(jax.lax, "switch", None)
    shared, own = both_ways(attention)
    # Not for an empty side: an ablation's mean is none there, which the model never asks for.
    asked = slice(4) if attention == "mean" else slice(B)
    np.testing.assert_allclose(shared[asked], own[asked], rtol=1e-5, atol=1e-5)
    assert np.ptp(own[asked], axis=0).min() > 0.1 and np.ptp(own[asked], axis=1).min() > 0.1


def test_logits_beyond_the_range_of_exp():
    shared, own = both_ways("bilinear", rows_scale=300.0)
    assert np.isfinite(shared).all()
    np.testing.assert_allclose(shared, own, rtol=1e-5)


def test_a_nan_is_not_hidden():
    weights, rec, search, user, items = arguments()
    rec = rec._replace(parts=(rec.parts[0].at[1, 2].set(jnp.nan),))
    score = jax.jit(aggregation.score, static_argnames="attention")
    scores = score(weights, rec, search, user, items, attention="bilinear")
    np.testing.assert_array_equal(np.isnan(scores).all(1), np.arange(B) == 1)


class Products:
    """A `Ranker` whose scores are products of the tables' rows."""

    tables = ("user", "item")

    def __init__(self, chunk):
        self.catalogue_chunk, self.asked = chunk, set()

    def represent(self, params, batch, rows):
        return rows["user"]

    def score_catalogue(self, params, users, rows, items):
        self.asked.add(len(items))
        return users @ items.T


# 21 rows, padding among them: in even chunks of a multiple of 16, as far as they may be so large.
@pytest.mark.parametrize(("most", "chunk"), [(7, 7), (9, 9), (20, 16), (500, 21)])
def test_the_best_of_the_catalogue_in_chunks(most, chunk):
    batch, ranker = ragged_batch(), Products(most)
    rng = np.random.default_rng(0)
    tables = {"user": normal(rng, USERS + 1, D), "item": normal(rng, ITEMS + 1, D)}
    unseen = np.zeros((B, 1), np.int32)
    items, best = Evaluator(ranker, ("hr@1",)).top_k({}, tables, batch, unseen, ITEMS)
    assert ranker.asked == {chunk}
    scores = np.asarray(tables["user"])[batch["user"]] @ np.asarray(tables["item"])[1:].T
    np.testing.assert_array_equal(items, 1 + np.argsort(-scores))
    np.testing.assert_allclose(best, -np.sort(-scores), atol=1e-5)


def test_a_full_ranking_keeps_its_best():
    batch, rng = ragged_batch(), np.random.default_rng(1)
    tables = {"user": normal(rng, USERS + 1, D), "item": normal(rng, ITEMS + 1, D)}
    scores = np.asarray(tables["user"])[batch["user"]] @ np.asarray(tables["item"]).T
    target = batch["candidates"][:, 0]
    # All but four items are seen by the first user, the target among them.
    seen = np.zeros((B, ITEMS - 4), np.int32)
    seen[0] = np.setdiff1d(np.arange(1, ITEMS + 1), [2, 5, 7, 11])
    batch = batch | {"mask": np.ones(B, np.float32)}
    sums = Evaluator(Products(500), ("hr@1",)).full({}, tables, [(batch, seen)], keep=8)
    best = sums.rankings()["best"]
    assert best.shape == (B, 8) and best.dtype == np.int32
    left = {2, 5, 7, 11, int(target[0])}
    ordered = sorted(left, key=lambda item: -scores[0, item])
    assert best[0].tolist() == ordered + [0] * (8 - len(left))
    np.testing.assert_array_equal(best[1:], 1 + np.argsort(-scores[1:, 1:])[:, :8])
    # The same ranks as without lists.
    plain = Evaluator(Products(500), ("hr@1",)).full({}, tables, [(batch, seen)])
    assert plain.rankings().keys() == {"above", "tied"}
    for name, values in plain.rankings().items():
        np.testing.assert_array_equal(values, sums.rankings()[name])
