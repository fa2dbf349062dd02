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


def define_flags() -> None:
    flags.DEFINE_string("dataset", None, "Name of a reader, such as csv_log or qilin.")
    flags.DEFINE_string("raw_dir", None, "Folder of the raw files.")
    flags.DEFINE_string("cache_dir", "~/.cache/lcrsr", "Where prepared data is kept.")
    flags.DEFINE_string("segmenter", "characters", "Of Chinese queries; or jieba.")
    flags.DEFINE_string("split", "leave_one_out", "Split to check; or global_time.")


def main() -> None:
    if not flags.FLAGS.dataset or not flags.FLAGS.raw_dir:
        raise UserError("expected --dataset=NAME and --raw_dir=DIR, found one missing; pass both")
    log, directory = prepare.prepare_log(
        flags.FLAGS.dataset,
        os.path.abspath(os.path.expanduser(flags.FLAGS.raw_dir)),
        os.path.abspath(os.path.expanduser(flags.FLAGS.cache_dir)),
        {"segmenter": flags.FLAGS.segmenter},
    )
    parts = splits.split_log(log, flags.FLAGS.split)
    splits.check_leakage(log, parts)
    card = log_lib.describe(log) | {
        "split": flags.FLAGS.split,
        "examples": {n: len(getattr(parts, n)) for n in ("train", "validation", "test")},
        "leakage_check": "passed",
        "hash": log.hash,
        "prepared": directory,
    }
    print(json.dumps(card, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    cli.run(main, define_flags)
