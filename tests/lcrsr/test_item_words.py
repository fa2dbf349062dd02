"""Words as part of items' vectors: they carry what was learnt over to items never trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcrsr.baselines import sasrec
from lcrsr.embedding import with_item_words
from lcrsr.evaluation import Evaluator
from lcrsr.ranker_task import RankerTask, TrainConfig

# Items 1..12 with the words 1 and 2 in turns; training sees 1..8 alone.
ITEMS, SEEN = 12, 8
WORDS = np.concatenate([[[0, 0]], [[1 + item % 2, 0] for item in range(1, ITEMS + 1)]])


def batch_of(rng, items, size=64):
    """One click, then an item with the same word among one of each word."""
    last = rng.choice(np.arange(1, SEEN + 1), size)
    target = rng.choice(items, size)
    target = np.where((target - last) % 2, target - 1 + 2 * (target == min(items)), target)
    other = np.where(target == max(items), target - 1, target + 1)
    return {
        "user": np.ones(size, np.int32),
        "rec_items": last[:, None].astype(np.int32),
        "query_words": np.zeros((size, 1, 1), np.int32),
        "clicked_items": np.zeros((size, 1, 1), np.int32),
        "candidates": np.stack([target, other], 1).astype(np.int32),
        "labels": np.eye(1, 2, dtype=np.float32).repeat(size, 0),
        "mask": np.ones(size, np.float32),
    }


def trained(item_words):
    ranker = sasrec.ranker(
        sasrec.Settings(
            width=8, layers=1, heads=1, dropout=0.0, init_scale=0.1, rec_length=1, loss="bce"
        )
    )
    rng = np.random.default_rng(0)
    task = RankerTask(
        name="train",
        ranker=ranker,
        config=TrainConfig(lambda_l2=0.0, user_dropout=0.0, table_update="dense"),
        table_sizes={"num_users": 1, "num_items": ITEMS, "num_words": 2},
        example_batch=batch_of(rng, range(1, SEEN + 1)),
        batches=lambda step: iter(lambda: batch_of(rng, range(1, SEEN + 1)), None),
        steps_per_epoch=1,
        batch_size=64,
        evaluate=lambda params, tables: {},
        selection="ndcg@5/neg99",
        seed=0,
        item_words=item_words,
    )
    state, step, batches = task.init(), jax.jit(task.train_step), task.batches(0)
    for _ in range(150):
        state, _ = step(state, next(batches), jnp.float32(1e-2))
    return Evaluator(ranker, ("hr@1",), item_words=item_words), state


def test_items_never_trained_are_ranked_by_their_words():
    test = batch_of(np.random.default_rng(1), range(SEEN + 1, ITEMS + 1), 200)
    hits = {}
    for name, words in {"with": WORDS, "without": None}.items():
        evaluator, state = trained(words)
        sums = evaluator.sampled(state["params"], state["tables"], [test])
        hits[name] = sums.means()["hr@1"]
        assert ("word" in state["tables"]) == (name == "with")
        seen = np.zeros((200, 1), np.int32)
        top, _ = evaluator.top_k(state["params"], state["tables"], test, seen, ITEMS // 2)
        same = np.mean((top - test["rec_items"]) % 2 == 0)
        assert (same > 0.9) == (name == "with"), same
    assert hits["with"] > 0.95 and 0.2 < hits["without"] < 0.8, hits


def test_vectors_by_hand():
    tables = {
        "item": jnp.arange(6.0).reshape(3, 2).at[0].set(0),
        "word": jnp.array([[0.0, 0.0], [10.0, 20.0], [30.0, 50.0]]),
    }
    vectors = with_item_words(tables, np.array([[0, 0], [1, 2], [2, 0]]))
    # Item 1: [2, 3] + the mean of both words; item 2: [4, 5] + its one word.
    np.testing.assert_allclose(vectors["item"], [[0, 0], [22, 38], [34, 55]])
    assert with_item_words(tables, None) is tables


def test_touched_rows_are_refused():
    with pytest.raises(ValueError, match="dense"):
        RankerTask(
            name="train",
            ranker=None,
            config=TrainConfig(lambda_l2=0.0, user_dropout=0.0, table_update="touched_rows"),
            table_sizes={},
            example_batch={},
            batches=None,
            steps_per_epoch=1,
            batch_size=1,
            evaluate=None,
            selection="",
            seed=0,
            item_words=WORDS,
        )
