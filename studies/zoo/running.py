"""Trains the runs of a zoo: every method's trials, then the seeds of its best trial.

What a run has taken stands beside its folder, so that a zoo that was stopped or killed goes on, and
a finished run is not opened again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from core import results
from core.errors import Preempted, UserError
from core.files import read_json, write_atomically
from core.loop import NotFinite
from core.stages import stage_order
from core.termination import stop_if_terminated
from core.workdir import Workdir
from experiments.evaluate import evaluate
from experiments.methods import check_settings, open_experiment
from experiments.restored import Restored
from experiments.train import train
from input_pipelines.dataset import Dataset
from studies.zoo.plans import Method

_LOG = logging.getLogger(__name__)
_REMEDY = "remove the file, and run the same command again"
_PASSES = 3  # over a batch of users, of which the fastest counts


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Holds what a run came to.

    Attributes:
      validation: what decides, of the last stage that was selected by it; None where the run is not
        through.
      metric: its name.
      seconds: that training took, compilation and tests included, over all its starts but those
        that were killed.
      stopped: why it will not end, such as a loss that is not finite; '' otherwise.
      tested: the protocols of the zoo against which it was then tested, where the data have them.
    """

    validation: float | None = None
    metric: str = ""
    seconds: float = 0.0
    stopped: str = ""
    tested: str = ""

    @property
    def ended(self) -> bool:
        return self.validation is not None or bool(self.stopped)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Holds what a method's chosen settings cost beside training.

    Attributes:
      parameters: numbers that its first seed scores with, tables included.
      user_ms: milliseconds to rank the whole catalogue for a user, in batches of the config's size.
    """

    parameters: int
    user_ms: float


@dataclasses.dataclass(frozen=True)
class Finished:
    """Holds a method whose runs are through.

    Attributes:
      trials: the outcome of each.
      chosen: the number of the best; None where all stopped.
      seeds: outcomes of the chosen trial's runs by their folder, without those that stopped.
      stopped: what stopped runs, by name.
      cost: of the chosen settings; None where nothing was trained to its end.
    """

    method: Method
    trials: tuple[Outcome, ...]
    chosen: int | None
    seeds: Mapping[str, Outcome]
    stopped: Mapping[str, str]
    cost: Cost | None

    @property
    def seconds(self) -> float:
        """Returns the mean seconds of training a seed."""
        return float(np.mean([outcome.seconds for outcome in self.seeds.values()]))


def check_method(method: Method) -> None:
    """Finds what is wrong with a method's data and settings before anything is written.

    Raises:
      UserError: the data does not have what the method needs, and so on; names the method.
    """
    try:
        data = Dataset(method.config)
        for trial in range(len(method.trials)):
            config, path = method.run(trial, 0)
            check_settings(config)
            Workdir(path).check_log(data.log.hash)
        open_experiment(method.run(0, 0)[0], data).check_data()
    except UserError as error:
        raise UserError(f"{method.name}: {error}") from error


def run_method(method: Method, seeds: int) -> None:
    """Trains a method's trials with its first seed, and the best trial with the others.

    Raises:
      core.errors.Preempted: SIGTERM or Ctrl-C; everything until then is saved.
      UserError: a mistake in the data or the workdir.
    """
    for trial in range(len(method.trials)):
        _run(method, trial, 0)
    outcomes = [_outcome(method, trial, 0) for trial in range(len(method.trials))]
    chosen = choose(outcomes)
    if chosen is None:
        return
    for seed in range(seeds):
        _run(method, chosen, seed)
    paths = [method.run(chosen, seed)[1] for seed in range(seeds)]
    ended = [path for seed, path in enumerate(paths) if not _outcome(method, chosen, seed).stopped]
    for path in ended:
        if not os.path.isdir(path):
            raise UserError(
                f"expected the finished run {path}, found no such folder; remove "
                f"{_outcome_file(path)}, and the same command trains it again"
            )
        _test(method, path)
        outcome = _read(_outcome_file(path), Outcome)
        _write(_outcome_file(path), dataclasses.replace(outcome, tested=_protocols(method)))
    if not os.path.exists(_cost_file(method)):
        stop_if_terminated(f"the costs of {method.name}")
        text = json.dumps(dataclasses.asdict(_measure(ended[0])))
        write_atomically(_cost_file(method), text + "\n")


def choose(outcomes: list[Outcome]) -> int | None:
    """Returns the number of the best trial on validation, the first of equal ones."""
    values = [-np.inf if one.validation is None else one.validation for one in outcomes]
    best = int(np.argmax(values))
    return None if values[best] == -np.inf else best


def read_method(method: Method, seeds: int) -> Finished | None:
    """Returns what a method came to; None where a run of it is not through."""
    trials = tuple(_outcome(method, trial, 0) for trial in range(len(method.trials)))
    if not all(outcome.ended for outcome in trials):
        return None
    names = [f"{method.name}, trial {trial}" for trial in range(len(trials))]
    stopped = {name: one.stopped for name, one in zip(names, trials, strict=True) if one.stopped}
    chosen = choose(list(trials))
    if chosen is None:
        return Finished(method, trials, None, {}, stopped, None)
    of_seeds: dict[str, Outcome] = {}
    for seed in range(seeds):
        outcome, (config, path) = _outcome(method, chosen, seed), method.run(chosen, seed)
        if not outcome.ended or not (outcome.stopped or outcome.tested == _protocols(method)):
            return None
        if outcome.stopped:
            stopped[f"{method.name}, seed {config.seed}"] = outcome.stopped
        else:
            of_seeds[path] = outcome
    if not os.path.exists(_cost_file(method)):
        return None
    cost = _read(_cost_file(method), Cost)
    return Finished(method, trials, chosen, of_seeds, stopped, cost)


def _run(method: Method, trial: int, seed: int) -> None:
    before = _outcome(method, trial, seed)
    if before.ended:
        return
    config, path = method.run(trial, seed)
    stop_if_terminated(f"trial {trial}, seed {config.seed} of {method.name}")
    of_trials = f"trial {trial + 1} of {len(method.trials)}"
    _LOG.info("%s: %s, seed %d", method.name, of_trials, config.seed)
    file, started = _outcome_file(path), time.monotonic()

    def seconds() -> float:
        return round(before.seconds + time.monotonic() - started, 3)

    try:
        train(config, path)
        metric, value = _validation(path)
        outcome = Outcome(value, metric, seconds())
    except Preempted:
        _write(file, Outcome(seconds=seconds()))
        raise
    except NotFinite as error:
        outcome = Outcome(seconds=seconds(), stopped=str(error))
        _LOG.warning("%s: %s", method.name, error)
    _write(file, outcome)


def _validation(path: str) -> tuple[str, float]:
    """Returns the name and value of what decides on validation, of the run's last own stage."""
    rows = [row for row in Workdir(path).read_results()["rows"] if row["split"] == "test"]
    selected = [row for row in rows if row.get("validation") and row["stage"] != "control"]
    if selected:
        last = max(selected, key=lambda row: stage_order(row["stage"]))["validation"]
        return last["metric"], last["value"]
    restored = Restored(path)
    metric = restored.experiment.selection
    name, _, protocol = metric.partition("/")
    sums = restored.experiment.evaluate(restored.params, restored.tables, "validation", protocol)
    return metric, sums.means()[name]


def _test(method: Method, path: str) -> None:
    """Tests a run of the chosen trial against the protocols that its training left out."""
    workdir = Workdir(path)
    restored: Restored | None = None
    for stage in dict.fromkeys(row["stage"] for row in workdir.read_results()["rows"]):
        for protocol in method.config.eval.protocols:
            tested = {(stage, p) for stage, _, p in results.tested(workdir)}
            if (stage, protocol) in tested:
                continue
            stop_if_terminated(f"the test of {method.name} against {protocol}")
            if restored is None or restored.stage != stage:
                restored = Restored(path, stage)
            if protocol in restored.data.possible("test", (protocol,)):
                evaluate(restored, "test", protocol)


def _measure(path: str) -> Cost:
    restored = Restored(path)
    experiment = restored.experiment
    held = restored.params, restored.tables, experiment.fitted_arrays()
    batch, seen = next(restored.data.full("test"))
    fastest = np.inf
    for _ in range(1 + _PASSES):  # the first one compiles
        started = time.perf_counter()
        experiment.evaluator.full(restored.params, restored.tables, [(batch, seen)])
        fastest = min(fastest, time.perf_counter() - started)
    parameters = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(held))
    return Cost(parameters, 1000 * fastest / len(batch["mask"]))


def _protocols(method: Method) -> str:
    return ", ".join(method.config.eval.protocols)


def _outcome_file(path: str) -> str:
    return f"{path}.json"


def _cost_file(method: Method) -> str:
    return os.path.join(method.folder, "cost.json")


def _outcome(method: Method, trial: int, seed: int) -> Outcome:
    file = _outcome_file(method.run(trial, seed)[1])
    return _read(file, Outcome) if os.path.lexists(file) else Outcome()


def _write(file: str, outcome: Outcome) -> None:
    os.makedirs(os.path.dirname(file), exist_ok=True)
    write_atomically(file, json.dumps(dataclasses.asdict(outcome)) + "\n")


def _read(file: str, kind: Any) -> Any:
    """Reads a dataclass of numbers and texts. Raises UserError where the file is another."""
    values = read_json(file, "what a run of the zoo came to", _REMEDY)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    texts = {"metric", "stopped", "tested"}
    fits = values.keys() == fields.keys() and all(
        isinstance(value, str)
        if name in texts
        else (name == "validation" and value is None)
        or (isinstance(value, int | float) and not isinstance(value, bool))
        for name, value in values.items()
    )
    if not fits:
        raise UserError(
            f"expected {', '.join(fields)} of a run in {file}, found {values!r:.80}; {_REMEDY}"
        )
    return kind(**values)
