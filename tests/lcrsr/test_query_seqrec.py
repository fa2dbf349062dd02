"""Query-SeqRec: its tokens and positions by hand, what each state sees, what replaces tokens."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from announced_batches import SIZES, batch_of

from lcrsr.baselines import query_seqrec
from lcrsr.baselines.two_histories import QUIET
from lcrsr.embedding import init_tables, look_up


def settings(**changes):
    return query_seqrec.Settings(
        **{"width": 8, "length": 6, "layers": 2, "heads": 2, "dropout": 0.0, "init_scale": 0.5}
        | {"replaced_items": 0.0, "replaced_queries": 0.0, "loss": "full_cross_entropy"}
        | changes
    )


def history():
    """One user: query (1, 2) with a click on 4, query (5) without any, clicks on 3 and 7."""
    return {
        "user": np.array([1], np.int32),
        "rec_items": np.array([[3, 7, 0, 0]], np.int32),
        "query_words": np.array([[[1, 2], [5, 0], [0, 0]]], np.int32),
        "clicked_items": np.array([[[4], [0], [0]]], np.int32),
        "rec_order": np.array([[2, 3, 0, 0]], np.int32),
        "search_order": np.array([[0, 1, 0]], np.int32),
        "candidates": np.array([[9, 1, 2]], np.int32),
        "labels": np.array([[1, 0, 0]], np.float32),
        "mask": np.ones(1, np.float32),
    }


@functools.cache
def made(**changes):
    ranker = query_seqrec.ranker(settings(**changes))
    tables = init_tables(jax.random.key(0), width=8, scale=0.5, **SIZES)
    batch = batch_of(np.random.default_rng(0), 8)
    return ranker, ranker.init(jax.random.key(1), batch, look_up(tables, batch)), tables


def test_tokens_and_what_follows_them():
    tables, batch = made()[2], history()
    rows = look_up(tables, batch)
    tokens = query_seqrec.tokens_of(batch, rows, 10)
    assert tokens.items[0].tolist() == [0, 4, 0, 3, 7, 0, 0, 0, 0, 0]
    assert tokens.queries[0].tolist() == [True, False, True] + 7 * [False]
    assert tokens.valid[0].tolist() == 5 * [True] + 5 * [False]
    words, items = tables["word"], tables["item"]
    expected = [(words[1] + words[2]) / 2, items[4], words[5], items[3], items[7]]
    np.testing.assert_allclose(tokens.rows[0, :5], expected, atol=1e-6)
    # query -> 4, (4 -> query is dropped), query -> 3, 3 -> 7, 7 -> the target 9.
    following, after = query_seqrec.next_items(tokens, jnp.array([9]), items[9][None])
    assert following[0].tolist() == [4, 0, 3, 7, 9, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(after[0][jnp.array([0, 2, 3, 4])], items[jnp.array([4, 3, 7, 9])])
    # The last tokens are kept.
    last = query_seqrec.tokens_of(batch, rows, 2)
    assert last.items.tolist() == [[3, 7]] and last.valid.all()


def test_without_searches_it_is_the_model_of_items_alone():
    batch = history()
    batch["query_words"][:] = batch["clicked_items"][:] = 0
    tokens = query_seqrec.tokens_of(batch, look_up(made()[2], batch), 4)
    assert tokens.items.tolist() == [[3, 7, 0, 0]] and not tokens.queries.any()
    batch["rec_items"][:] = 0
    tokens = query_seqrec.tokens_of(batch, look_up(made()[2], batch), 4)
    assert not tokens.valid.any()
    following, _ = query_seqrec.next_items(tokens, jnp.array([9]), jnp.zeros((1, 8)))
    assert following.tolist() == [[9, 0, 0, 0]]


def test_a_state_sees_nothing_that_follows():
    ranker, params, tables = made()
    tokens = query_seqrec.tokens_of(history(), look_up(tables, history()), 6)
    states = jax.jit(lambda t: ranker.network.apply({"params": params}, t, QUIET))
    before = states(tokens)
    after = states(tokens._replace(rows=tokens.rows.at[:, 3].add(1.0)))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(before[:, 3:5] - after[:, 3:5]).max(-1).min() > 1e-3


@pytest.mark.parametrize("kind", ["full_cross_entropy", "bce"])
def test_the_loss_is_that_of_the_kept_positions(kind):
    ranker, params, tables = made(loss=kind)
    batch = history()

    @jax.jit
    def both(tables):
        rows = look_up(tables, batch)
        loss, _ = ranker.loss(params, batch, rows, tables, jax.random.key(0))
        tokens = query_seqrec.tokens_of(batch, rows, 6)
        return loss, ranker.network.apply({"params": params}, tokens, QUIET)

    loss, states = both(tables)
    items, each = np.asarray(tables["item"]), []
    for state, wanted in zip(np.asarray(states)[0][[0, 2, 3, 4]], (4, 3, 7, 9), strict=True):
        if kind == "bce":
            logits = items[[wanted, 1, 2]] @ state
            each.append(np.mean(np.log1p(np.exp(logits * [-1, 1, 1]))))
        else:
            logits = items[1:] @ state
            each.append(np.log(np.exp(logits).sum()) - logits[wanted - 1])
    assert float(loss) == pytest.approx(np.mean(each), rel=1e-4)


def test_what_replaces_tokens_comes_from_the_batch():
    tables = made()[2]
    batch = batch_of(np.random.default_rng(2), 8)
    rows = look_up(tables, batch)
    tokens = query_seqrec.tokens_of(batch, rows, 6)
    negatives = rows["candidates"][:, 1:].reshape(-1, 8)

    def known(vectors, among):
        distance = np.abs(np.asarray(vectors)[:, None] - np.asarray(among)[None]).max(-1)
        return (distance.min(1) < 1e-6).all()

    both = query_seqrec.replaced(tokens, negatives, 1.0, 1.0, jax.random.key(0))
    items = tokens.valid & ~tokens.queries
    assert known(both.rows[items], negatives)
    assert known(both.rows[tokens.queries], tokens.rows[tokens.queries])
    assert np.abs(both.rows - tokens.rows)[tokens.queries].max() > 1e-3
    np.testing.assert_array_equal(both.rows[~tokens.valid], 0)
    none = query_seqrec.replaced(tokens, negatives, 0.0, 0.0, jax.random.key(0))
    np.testing.assert_array_equal(none.rows, tokens.rows)
