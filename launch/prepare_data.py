"""Reads a data set once into the form that training uses, checks it and prints its data card.

    python -m launch.prepare_data --dataset=csv_log --raw_dir=R --data_dir=D --split=S [--shards=N]
    python -m launch.prepare_data --append --dataset=csv_log --raw_dir=NEW --data_dir=D
    python -m launch.prepare_data --validate --data_dir=D [--split=global_time]

D is whole or absent: after a kill the same command begins anew. `launch.train --config.data_dir=D`
uses it as it is. --append joins the events of new files to D, at once or not at all. Without
--data_dir the result is kept in the cache, where launch.train finds it when it is given the raw
files.
"""

from __future__ import annotations

from absl import flags

from core import cli
from core.errors import UserError


def define_flags() -> None:
    flags.DEFINE_string("dataset", None, "Name of a reader, such as csv_log or qilin.")
    flags.DEFINE_string("raw_dir", None, "Folder of the raw files.")
    flags.DEFINE_string("data_dir", None, "Folder of the prepared data; default in the cache.")
    flags.DEFINE_bool("validate", False, "Check what stands in --data_dir instead of preparing it.")
    flags.DEFINE_bool("append", False, "Join the raw files' events to the log in --data_dir.")
    flags.DEFINE_enum("engine", "local", ["local", "beam"], "What reads csv_log: Apache Beam too.")
    flags.DEFINE_string("beam_options", "", "Of Beam: --runner=... and those of the runner.")
    flags.DEFINE_integer("shards", 0, "Of --data_dir, by user; 0: one piece.", 0, 4096)
    flags.DEFINE_string("segmenter", "characters", "Of Chinese queries; or jieba.")
    flags.DEFINE_string("columns", "", "Other names of columns: user=user_id,session= (csv_log).")
    flags.DEFINE_string("time_unit", "infer", "Of times; or seconds, positions, ... (csv_log).")
    flags.DEFINE_string("split", "leave_one_out", "Split to check; or global_time.")


def check_flags() -> None:
    given = flags.FLAGS
    if given.validate:
        if not given.data_dir or given.dataset or given.raw_dir or given.shards:
            raise UserError("expected --validate with --data_dir=D alone; pass the prepared folder")
    elif not given.dataset or not given.raw_dir:
        raise UserError("expected --dataset=NAME and --raw_dir=DIR, found one missing; pass both")
    elif given.engine == "beam" and (given.append or not given.data_dir):
        raise UserError("expected --engine=beam with --data_dir=D and no --append; prepare D anew")
    elif given.beam_options and given.engine != "beam":
        raise UserError("expected --engine=beam with --beam_options, found local; pass it")
    elif given.shards and (given.append or not given.data_dir):
        raise UserError("expected --shards with --data_dir=D and no --append; prepare D anew")
    elif given.append and (not given.data_dir or "://" in given.data_dir):
        raise UserError("expected --append with --data_dir=D of this machine; pass the folder")


cli.begin(__name__, define_flags, check_flags)

import json
import sys
from typing import Any

from core.files import expanded
from core.object_store import fetched, sent, whole_place
from core.progress import Bars
from input_pipelines import data_card, prepare, reading_index, splits
from input_pipelines.log import Log


def main() -> None:
    given = flags.FLAGS
    data_dir = whole_place(given.data_dir, "--data_dir") if given.data_dir else ""
    if given.validate:
        directory = fetched(data_dir, "--data_dir")
        card = _card(prepare.validate_prepared(directory), directory)
    else:
        with sent(data_dir, "--data_dir") as folder:
            log, directory = _prepare(folder)
            card = _card(log, directory)
    print(json.dumps(card | {"prepared": data_dir or directory}, indent=2, ensure_ascii=False))


def _card(log: Log, directory: str) -> dict[str, Any]:
    given, card = flags.FLAGS, data_card.describe(log)
    if given.validate:
        parts = splits.split_log(log, given.split)
        splits.check_leakage(log, parts)
    else:
        parts = reading_index.split_of(log, given.split, splits.MOST_VALIDATION, directory)
        reading_index.touched_of(log, directory)
    splits.warn_of_told_targets(log, parts)
    return card | splits.describe(log, parts) | {"leakage_check": "passed", "hash": log.hash}


def _prepare(data_dir: str) -> tuple[Log, str]:
    given = flags.FLAGS
    if given.split not in splits.SPLITS:  # found before an hour of reading
        raise UserError(f"expected --split of {', '.join(splits.SPLITS)}, found {given.split!r}")
    raw_dir = fetched(whole_place(given.raw_dir, "--raw_dir"), "--raw_dir")
    options = {name: given[name].value for name in ("segmenter", "columns", "time_unit")}
    with Bars(sys.stderr.isatty()) as bars:
        if not data_dir:
            cache = expanded("~/.cache/lcrsr", "the cache")  # config.cache_dir's default
            return prepare.prepare_log(given.dataset, raw_dir, cache, options, bars.report)
        where = (given.dataset, raw_dir, data_dir, options, bars.report)
        if given.append:
            return prepare.append_into(*where), data_dir
        beam_options = given.beam_options if given.engine == "beam" else None
        return prepare.prepare_into(*where, beam_options, given.shards), data_dir


if __name__ == "__main__":
    cli.run(main)
