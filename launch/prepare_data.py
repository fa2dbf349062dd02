"""Reads a data set once into the form that training uses, checks it and prints its data card.

    python -m launch.prepare_data --dataset=csv_log --raw_dir=DIR [--cache_dir=~/.cache/lcrsr]

launch.train does the same on first use; this program is for looking at the data first.
"""

from __future__ import annotations

import json
import os

from absl import flags

from core.errors import UserError
from input_pipelines import log as log_lib
from input_pipelines import prepare, splits
from launch import cli

_DATASET = flags.DEFINE_string("dataset", None, "Name of a reader, such as csv_log or qilin.")
_RAW_DIR = flags.DEFINE_string("raw_dir", None, "Folder of the raw files.")
_CACHE_DIR = flags.DEFINE_string("cache_dir", "~/.cache/lcrsr", "Where prepared data is kept.")
_SEGMENTER = flags.DEFINE_string("segmenter", "characters", "Of Chinese queries; or jieba.")
_SPLIT = flags.DEFINE_string("split", "leave_one_out", "Split to check; or global_time.")


def main() -> None:
    if not _DATASET.value or not _RAW_DIR.value:
        raise UserError("expected --dataset=NAME and --raw_dir=DIR, found one missing; pass both")
    log, directory = prepare.prepare_log(
        _DATASET.value,
        os.path.abspath(os.path.expanduser(_RAW_DIR.value)),
        os.path.abspath(os.path.expanduser(_CACHE_DIR.value)),
        {"segmenter": _SEGMENTER.value},
    )
    parts = splits.split_log(log, _SPLIT.value)
    splits.check_leakage(log, parts)
    card = log_lib.describe(log) | {
        "split": _SPLIT.value,
        "examples": {n: len(getattr(parts, n)) for n in ("train", "validation", "test")},
        "leakage_check": "passed",
        "hash": log.hash,
        "prepared": directory,
    }
    print(json.dumps(card, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    cli.run(main)
