"""Begins a run with what another run has learnt, on newer data.

    python -m launch.train --config=... --from=W --config.data_dir=D2

The stage `train` of the finished run W goes on. Rows of users, items and words are found by their
names, which are the user's own ids; a row that is new is the mean of W's trained rows, with moments
of zero, as at the start of any run. The network's parameters, its moments and the count of updates
are W's. All of it is saved as the first checkpoint of the new run, so that W need not be there to
go on after a stop, and `continued.json` in the run's folder says what came from where.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from core import checksums
from core.errors import UserError
from core.loop import begin_stage, restore_best
from core.mirrors import copied_run
from core.workdir import Workdir, settings
from experiments.methods import experiment_class
from experiments.restored import open_run, read_run_config
from input_pipelines import kept_data
from input_pipelines.dataset import Dataset
from input_pipelines.log import Log
from input_pipelines.splits import Examples
from lcrsr.ranker_experiment import RankerExperiment

_LOG = logging.getLogger(__name__)
RECORD = "continued.json"
STAGE = "train"
# Settings of the data that say what an event means to the model, or what is held out. Those of this
# list do not.
_FREE = ("columns", "kept_events", "candidates_seed", "max_validation", "time_unit")
_TABLES = {"user": "user_ids", "item": "item_ids", "word": "words"}


@dataclasses.dataclass(frozen=True)
class Matched:
    """Says where the rows of a table come from.

    Attributes:
      source: int64 [n+1], the row of the earlier table for each row of the new one; -1 where the
        earlier one has none.
      gone: rows of the earlier table, without padding, that the new one has no use for.
    """

    source: np.ndarray
    gone: int

    @property
    def counts(self) -> dict[str, int]:
        """Counts the rows by where they come from, without padding."""
        matched = int((self.source[1:] >= 0).sum())
        return {"kept": matched, "new": len(self.source) - 1 - matched, "gone": self.gone}


def match(earlier: Sequence[str], newer: Sequence[str]) -> Matched:
    """Matches rows by their names; row 0 is padding in both."""
    places = {name: row for row, name in enumerate(earlier) if row}
    source = np.array([0, *(places.get(name, -1) for name in newer[1:])], np.int64)
    return Matched(source, len(earlier) - 1 - int((source[1:] >= 0).sum()))


def grown(table: np.ndarray, matched: Matched, new_row: np.ndarray) -> np.ndarray:
    """Returns a table [n+1, D] with the matched rows of an earlier one.

    Args:
      table: the earlier one; a row beyond those with names stays the last, as the row of the users
        that training has not seen.
      new_row: [D], of what the earlier table has no row for.
    """
    rows = np.where(matched.source[:, None] >= 0, table[matched.source], new_row)
    rows[0] = 0.0
    named = matched.counts["kept"] + matched.gone
    return np.concatenate([rows, table[1 + named :]])


def mean_of_trained(table: np.ndarray, moments: Sequence[np.ndarray], names: int) -> np.ndarray:
    """Returns the mean [D] of the rows that training has changed, in double precision till the end.

    Args:
      table: [R, D], row 0 is padding.
      moments: of Adam, each [R, D]; the last, of squares, is zero where no gradient ever came.
      names: rows that count, 1 to this one; where none of them was trained all do.
    """
    rows = table[1 : names + 1]
    trained = np.any(moments[-1][1 : names + 1] != 0, axis=1)
    if trained.any():
        rows = rows[trained]
    return rows.mean(0, dtype=np.float64).astype(table.dtype)


def grown_state(state: Mapping[str, Any], matches: Mapping[str, Matched]) -> dict[str, Any]:
    """Returns the state of `lcrsr.ranker_task.RankerTask` for the rows of newer data.

    Args:
      state: of the earlier run, whole on one device.
      matches: of 'user', 'item' and 'word'.
    """
    tables, table_states = {}, {}
    for name, table in state["tables"].items():
        matched = matches[name]
        values = np.asarray(table)
        moments = [np.asarray(moment) for moment in state["table_states"][name]]
        counts = matched.counts
        mean = mean_of_trained(values, moments, counts["kept"] + counts["gone"])
        tables[name] = jnp.asarray(grown(values, matched, mean))
        zero = np.zeros_like(mean)
        table_states[name] = tuple(jnp.asarray(grown(m, matched, zero)) for m in moments)
    return {**state, "tables": tables, "table_states": table_states}


def check_settings(earlier: config_dict.ConfigDict, config: config_dict.ConfigDict) -> None:
    """Refuses settings with which what was learnt would mean something else.

    Raises:
      UserError: another method, data set, model, or reading of histories; names the first setting.
    """
    # As config.json has them: it knows no tuples.
    before, now = (settings(json.loads(json.dumps(c.to_dict()))) for c in (earlier, config))
    for key in sorted(before.keys() | now.keys(), key=lambda key: (key.count("."), key)):
        section, _, name = key.rpartition(".")
        binding = key in ("method", "dataset") or key.startswith("model.")
        if not binding and not (section == "data" and name not in (*_FREE, "train_negatives")):
            continue
        if before.get(key) != now.get(key):
            raise UserError(
                f"expected config.{key}={before.get(key)!r} as in the run {config.continue_from} "
                f"that --from names, found {now.get(key)!r}; set it, or train anew without --from"
            )


def _check_same_data(earlier: config_dict.ConfigDict, config: config_dict.ConfigDict) -> None:
    before, now = earlier.data.to_dict(), config.data.to_dict()
    differing = [k for k in now if k != "kept_events" and before.get(k) != now[k]]
    if differing:
        key = differing[0]
        raise UserError(
            f"expected newer data than those of the run {config.continue_from}, found the same "
            f"with config.data.{key}={now[key]!r} instead of {before.get(key)!r}; bring newer "
            "data, or train anew without --from"
        )


class Continuation:
    """Holds what a run begins with that goes on from another one.

    Args:
      config: of the new run, resolved, with `continue_from`.
      data: of the new run.

    Attributes:
      state: of the stage `train`, for the new run's tables, on one device.
      record: what `continued.json` says.

    Raises:
      UserError: the other run is not finished, or its data cannot have been earlier ones of the
        same kind.
    """

    def __init__(self, config: config_dict.ConfigDict, data: Dataset):
        path = config.continue_from
        workdir = Workdir(copied_run(path, "--from"))
        experiment = open_run(workdir, 1, kept=kept_data.is_kept(workdir.path))
        log = experiment.data.log
        if log.hash == data.log.hash:
            _check_same_data(experiment.config, config)
        _check_logs(log, data.log, path)
        state = _finished(workdir, experiment)
        _check_not_told(_whole(experiment), data, path)
        matches = {
            name: match(getattr(log, names).tolist(), getattr(data.log, names).tolist())
            for name, names in _TABLES.items()
        }
        counts = {name: matched.counts for name, matched in matches.items()}
        if not counts["item"]["kept"]:
            raise UserError(
                f"expected items of the run {path} in the newer data, found none of its "
                f"{log.num_items} ids among {data.log.num_items}; correct --config.data_dir or "
                "--from"
            )
        self.state = grown_state(state, matches)
        self.record = {
            "from": path,
            "stage": STAGE,
            "step": int(state["step"]),
            "from_hash": log.hash,
            "hash": data.log.hash,
            "rows": {name: counts[name] for name in self.state["tables"]},
        }

    def begin(self, workdir: Workdir, experiment: RankerExperiment) -> None:
        """Writes the record, and the state as the first checkpoint of the new run.

        Raises:
          UserError: the network is of other sizes, or something cannot be written.
        """
        checksums.write_sealed(workdir.file(RECORD), self.record)
        task = experiment.train_task()
        begin_stage(workdir, STAGE, self.state, experiment.loop_config(task))
        for name, counts in self.record["rows"].items():
            _LOG.info(
                "%s rows of %s: %d kept, %d new, %d gone",
                *(name, self.record["from"], counts["kept"], counts["new"], counts["gone"]),
            )


def _finished(workdir: Workdir, experiment: RankerExperiment) -> Any:
    """Returns the best state of the stage `train` of a run that has finished it."""
    remedy = "let it finish: the same command continues it"
    if not os.path.isdir(os.path.join(workdir.path, "checkpoints", STAGE)):
        raise UserError(
            f"expected a finished run in --from={workdir.path}, found no checkpoint; {remedy}"
        )
    state, progress = restore_best(workdir, STAGE, experiment.abstract_state(STAGE))
    if not progress.finished:
        raise UserError(
            f"expected a finished run in --from={workdir.path}, found one at step "
            f"{progress.step} of stage {STAGE}; {remedy}"
        )
    return state


def _check_logs(earlier: Log, newer: Log, path: str) -> None:
    if earlier.time_unit != newer.time_unit:
        raise UserError(
            f"expected times in {earlier.time_unit} as in the data of the run {path}, found "
            f"{newer.time_unit}; write the newer data in that unit, or set "
            f"--config.data.time_unit={earlier.time_unit}"
        )


def trained_on(earlier: Dataset, newer: Log, examples: Examples) -> np.ndarray:
    """Tells which targets of newer data are training clicks of earlier data, bool [E].

    A click is the same where user and item have the same names and the time is the same.
    """
    log, rows = earlier.log, earlier.splits.training_rows
    users, items = (
        match(getattr(newer, names).tolist(), getattr(log, names).tolist()).source
        for names in ("user_ids", "item_ids")
    )
    owners = np.repeat(np.arange(log.num_users + 1), np.diff(log.rec_offsets))[rows]
    clicked = items[np.asarray(log.rec_items)[rows]]
    before = np.stack([users[owners], clicked, np.asarray(log.rec_times)[rows]], 1)
    held = examples.target_row
    targets = np.stack(
        [examples.user, np.asarray(newer.rec_items)[held], np.asarray(newer.rec_times)[held]], 1
    ).astype(np.int64)
    _, numbers = np.unique(np.concatenate([before, targets]), axis=0, return_inverse=True)
    numbers = numbers.reshape(-1)
    return np.isin(numbers[len(before) :], numbers[: len(before)])


def _check_not_told(earlier: Dataset | None, data: Dataset, path: str) -> None:
    """Refuses test targets that the earlier run was trained on.

    Raises:
      UserError: there are some.
    """
    if earlier is None:
        _LOG.warning(
            "%s keeps no events and its data are not where they were: that it was not trained on "
            "what is held out now is not checked",
            path,
        )
        return
    told = {
        name: trained_on(earlier, data.log, getattr(data.splits, name))
        for name in ("validation", "test")
    }
    if count := int(told["test"].sum()):
        raise UserError(
            f"expected test clicks that the run {path} was not trained on, found {count} of "
            f"{len(told['test'])} that it was; bring data that go on after its own, under a split "
            "by time (leave_one_out or global_time)"
        )
    if count := int(told["validation"].sum()):
        _LOG.warning(
            "%s was trained on %d of %d validation clicks: selection is a little too hopeful",
            *(path, count, len(told["validation"])),
        )


def _whole(experiment: RankerExperiment) -> Dataset | None:
    """Returns the whole data of an earlier run, None where they cannot be had any more."""
    if not isinstance(experiment.data, kept_data.KeptData):
        return experiment.data
    try:
        whole = Dataset(experiment.config)
    except UserError:
        return None
    return whole if whole.log.hash == experiment.data.log.hash else None


def begins_from_another(config: config_dict.ConfigDict, path: str) -> bool:
    """Tells whether a run is still to begin with what another has learnt, which must fit it.

    Args:
      config: of the run, resolved.
      path: the run's folder.

    Raises:
      UserError: the method cannot go on from another run; or that run is not there, of another
        method or of other sizes.
    """
    folder = os.path.join(Workdir(path).path, "checkpoints", STAGE)
    # What a killed save has left is no checkpoint.
    begun = os.path.isdir(folder) and any(name.isdecimal() for name in os.listdir(folder))
    if not config.get("continue_from") or begun:
        return False
    if jax.process_count() > 1:
        raise UserError(
            f"expected one process to begin a run with --from, found {jax.process_count()}; begin "
            "it with one, and the same command continues with several"
        )
    if not issubclass(experiment_class(config), RankerExperiment):
        raise UserError(
            f"expected LCR-SER or a baseline that is trained with --from, found {config.method}, "
            "which starts anew on every data; leave --from out"
        )
    check_settings(read_run_config(Workdir(copied_run(config.continue_from, "--from"))), config)
    return True
