"""Batches in which one of a user's searches announces the next click, and training on them."""

import jax
import jax.numpy as jnp
import numpy as np

from lcrsr.ranker_task import RankerTask, TrainConfig

ITEMS, WORDS, USERS = 12, 18, 4
REC, SEARCHES = 4, 3
SIZES = {"num_users": USERS, "num_items": ITEMS, "num_words": WORDS}


def batch_of(rng, size=48, search_rows=0):
    """One of the searches names the next click; its other searches and its clicks are noise."""
    target = rng.integers(1, ITEMS + 1, size)
    rec = rng.integers(1, ITEMS + 1, (size, REC))
    rec[np.arange(REC) >= rng.integers(0, REC + 1, size)[:, None]] = 0
    count = rng.integers(1, SEARCHES + 1, size)
    words = rng.integers(ITEMS + 1, WORDS + 1, (size, SEARCHES, 2))
    words[np.arange(size), rng.integers(0, count)] = target[:, None]
    words[np.arange(SEARCHES) >= count[:, None]] = 0
    clicks = rng.integers(0, ITEMS + 1, (size, SEARCHES, 1)) * (words[..., :1] != 0)
    steps = rng.permuted(np.tile(np.arange(1, ITEMS), (size, 1)), axis=1)
    others = 1 + (target[:, None] - 1 + steps) % ITEMS
    lengths = (rec != 0).sum(1)
    # All clicks before all searches.
    batch = {
        "user": rng.integers(1, USERS + 1, size),
        "rec_items": rec,
        "query_words": words,
        "clicked_items": clicks,
        "rec_order": np.where(rec != 0, np.arange(REC), 0),
        "search_order": np.where(words[..., 0] != 0, lengths[:, None] + np.arange(SEARCHES), 0),
        "candidates": np.concatenate([target[:, None], others[:, :4]], 1),
    }
    if search_rows:
        batch["query"] = np.stack([target, 0 * target], 1)[size - search_rows :]
    return {name: value.astype(np.int32) for name, value in batch.items()} | {
        "labels": np.eye(1, 5, dtype=np.float32).repeat(size, 0),
        "mask": np.ones(size, np.float32),
    }


def task_of(ranker, search_rows=0, batch_of=batch_of):
    """The training of a ranker on these batches."""
    rng = np.random.default_rng(0)
    return RankerTask(
        name="train",
        ranker=ranker,
        config=TrainConfig(
            lambda_l2=0.0,
            user_dropout=0.0,
            table_update="dense" if ranker.needs_whole_tables else "touched_rows",
        ),
        table_sizes=SIZES,
        example_batch=batch_of(rng),
        batches=lambda step: iter(lambda: batch_of(rng, 48, search_rows), None),
        steps_per_epoch=10,
        batch_size=48,
        evaluate=lambda params, tables: {},
        selection="ndcg@5/neg99",
        seed=0,
    )


def trained(ranker, search_rows=0, steps=300, batch_of=batch_of):
    """The state after `steps` updates at a rate of .01, and the last step's statistics."""
    task = task_of(ranker, search_rows, batch_of)
    state, step, batches = task.init(), jax.jit(task.train_step), task.batches(0)
    for _ in range(steps):
        state, stats = step(state, next(batches), jnp.float32(1e-2))
    return state, stats
