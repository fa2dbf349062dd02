"""A log whose users have few, many, simultaneous and no events, and batches of it of both forms."""

import numpy as np

from input_pipelines import batches
from input_pipelines.log import RawEvents, build_log
from input_pipelines.splits import split_log
from input_pipelines.windows import WindowBatches

NEGATIVES = 3


def log_of(most_clicks, users=24, seed=0):
    """Makes a log whose users click `most_clicks` times at most and no item twice."""
    rng = np.random.default_rng(seed)
    names = ("click_user", "click_item", "click_time")
    names += ("search_user", "search_time", "search_words", "search_clicks")
    events = {name: [] for name in names}
    for user in range(users):
        clicks = int(rng.integers(1, most_clicks + 1))
        # Every fourth user clicks twice at a time.
        times = np.arange(clicks) // (2 if user % 4 == 0 else 1) * 10 + 10
        events["click_user"] += [f"u{user}"] * clicks
        events["click_item"] += [f"i{n}" for n in rng.permutation(150)[:clicks]]
        events["click_time"] += times.tolist()
        # Every third user never searches; every fifth before the first click.
        for time in rng.integers(0 if user % 5 == 0 else 11, 10 * clicks + 20, clicks):
            if user % 3 == 0:
                break
            events["search_user"].append(f"u{user}")
            events["search_time"].append(int(time))
            words = rng.integers(0, 9, rng.integers(0, 3))
            events["search_words"].append([f"w{n}" for n in words])
            events["search_clicks"].append([f"i{n}" for n in rng.integers(0, 150, rng.integers(2))])
    items = [f"i{n}" for n in range(150)]
    return build_log("windows", RawEvents(**events, items=items))


def sources(log, length, targets, batch_size=32, **changes):
    """Returns (windows, the same targets one by one, examples)."""
    shape = batches.BatchShape(
        rec_length=length, search_length=length, words=2, clicks=1, candidates=1 + NEGATIVES
    )
    examples = split_log(log, "leave_one_out", min_history=0).train
    settings = {"batch_size": batch_size, "seed": 5, "negatives": NEGATIVES} | changes
    windows = WindowBatches(log, examples, shape, targets_per_window=targets, **settings)
    return windows, batches.TrainBatches(log, examples, shape, **settings), examples


def one_by_one(log, length, batch, examples):
    """Returns the batch in which the filled targets of a window batch have their own histories."""
    filled = np.flatnonzero(batch["mask"])
    index = {
        (int(user), int(log.rec_items[row])): number
        for number, (user, row) in enumerate(zip(examples.user, examples.target_row, strict=True))
    }
    indices = np.array(
        [index[int(batch["user"][t]), int(batch["candidates"][t, 0])] for t in filled]
    )
    shape = batches.BatchShape(
        rec_length=length, search_length=length, words=2, clicks=1, candidates=1 + NEGATIVES
    )
    alone = batches.assemble(log, examples, indices, shape, batch["candidates"][filled])
    return alone, indices, filled


def history(batch, target, side, names):
    """Returns what a target of a window batch sees of a side: its rows of some fields."""
    windows = len(batch["rec_items"])
    row = target // (len(batch["mask"]) // windows)
    first, end = batch[f"{side}_first"][target], batch[f"{side}_end"][target]
    return [batch[name][row, first:end] for name in names]
