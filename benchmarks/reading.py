"""Measures how soon a prepared folder can be read, and how many training examples a second follow.

    python -m benchmarks.reading --data_dir=D [--split=global_time] [--batches=500] [--window=16]

Batches of 1024 examples with 30 clicks and 30 searches of 5 words and 5 clicks, a target and 4
negatives, through tf.data where TensorFlow is installed; --window reads windows of so many targets.
The start is counted from before the prepared folder is opened to the first batch, importing
TensorFlow included; so are splitting and the leakage check, unless the folder has them already
(`input_pipelines.reading_index`). CPU seconds count all threads: on a shared machine they say what
the clock on the wall cannot.
"""

from __future__ import annotations

from absl import flags

from core import cli


def define_flags() -> None:
    flags.DEFINE_string("data_dir", None, "Folder that launch.prepare_data has written.")
    flags.DEFINE_string("split", "global_time", "Or leave_one_out.")
    flags.DEFINE_integer("window", 1, "More than 1: targets of a window.", lower_bound=1)
    flags.DEFINE_integer("batches", 500, "Counted after the first.", lower_bound=1)


cli.begin(__name__, define_flags)

import itertools
import json
import resource
import time
from typing import Any

from core.errors import UserError
from input_pipelines import batches, reading_index, splits
from input_pipelines.prepared_log import load_log
from input_pipelines.windows import WindowBatches

_BATCH = 1024
_NEGATIVES = 4
_SHAPE = batches.BatchShape(
    rec_length=30, search_length=30, words=5, clicks=5, candidates=1 + _NEGATIVES
)


def main() -> None:
    values = flags.FLAGS
    if not values.data_dir:
        raise UserError("expected --data_dir=D, found none; pass what launch.prepare_data wrote")
    began, began_cpu = time.monotonic(), time.process_time()
    log = load_log(values.data_dir)
    parts = reading_index.split_of(log, values.split, splits.MOST_VALIDATION, values.data_dir)
    if not len(parts.train):
        raise UserError(f"expected training examples in {values.data_dir}, found none")
    touched = reading_index.touched_of(log, values.data_dir)
    settings: dict[str, Any] = dict(batch_size=_BATCH, seed=0, negatives=_NEGATIVES)
    source = (
        WindowBatches(
            *(log, parts.train, _SHAPE),
            **settings,
            targets_per_window=values.window,
            touched=touched,
            keep=reading_index.keeper(log, values.data_dir),
        )
        if values.window > 1
        else batches.TrainBatches(log, parts.train, _SHAPE, **settings, touched=touched)
    )
    stream = source.stream(0)
    next(stream)
    started, started_cpu = time.monotonic(), time.process_time()
    taken = itertools.islice(stream, values.batches)
    examples = sum(int(batch["mask"].sum()) for batch in taken)
    seconds, cpu = time.monotonic() - started, time.process_time() - started_cpu
    measured = {
        "seconds_to_first_batch": round(started - began, 1),
        "cpu_seconds_to_first_batch": round(started_cpu - began_cpu, 1),
        "examples_per_second": round(examples / seconds),
        "examples_per_cpu_second": round(examples / cpu),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    cli.run(main)
