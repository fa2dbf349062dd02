"""Measures how soon a prepared folder can be read, and how many training examples a second follow.

    python -m benchmarks.reading --data_dir=D [--split=global_time] [--batches=500]

Batches of 1024 examples with 30 clicks and 30 searches of 5 words and 5 clicks, a target and 4
negatives, through tf.data where TensorFlow is installed. The start is counted from before the
prepared folder is opened to the first batch, splitting, the leakage check and importing
TensorFlow included. CPU seconds count all threads: on a shared machine they say what the
clock on the wall cannot.
"""

from __future__ import annotations

from absl import flags

from core import cli


def define_flags() -> None:
    flags.DEFINE_string("data_dir", None, "Folder that launch.prepare_data has written.")
    flags.DEFINE_string("split", "global_time", "Or leave_one_out.")
    flags.DEFINE_integer("batches", 500, "Counted after the first.", lower_bound=1)


cli.begin(__name__, define_flags)

import itertools
import json
import resource
import time

from core.errors import UserError
from input_pipelines import batches, splits
from input_pipelines.prepared_log import load_log

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
    parts = splits.split_log(log, values.split)
    splits.check_leakage(log, parts)
    if not len(parts.train):
        raise UserError(f"expected training examples in {values.data_dir}, found none")
    source = batches.TrainBatches(
        log, parts.train, _SHAPE, batch_size=_BATCH, seed=0, negatives=_NEGATIVES
    )
    stream = source.stream(0)
    next(stream)
    started, started_cpu = time.monotonic(), time.process_time()
    count = sum(1 for _ in itertools.islice(stream, values.batches))
    seconds, cpu = time.monotonic() - started, time.process_time() - started_cpu
    measured = {
        "seconds_to_first_batch": round(started - began, 1),
        "cpu_seconds_to_first_batch": round(started_cpu - began_cpu, 1),
        "examples_per_second": round(count * _BATCH / seconds),
        "examples_per_cpu_second": round(count * _BATCH / cpu),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    cli.run(main)
