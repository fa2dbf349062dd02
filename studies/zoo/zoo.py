"""Runs a zoo, or a share of it, and shows it once all is through."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from core import metrics, run_schema
from core.errors import UserError
from core.files import read_json, write_atomically
from core.termination import watched
from core.workdir import Workdir, check_no_file, has_only_scaffolding
from studies.shares import share_of
from studies.zoo import tables
from studies.zoo.plans import ConfigOf, Method, Zoo, check_zoo, plan, whole_places
from studies.zoo.running import check_method, read_method, run_method

_PLAN = "zoo.json"


def run_zoo(
    zoo: Zoo,
    config_of: ConfigOf,
    known: Sequence[str],
    workdir_path: str,
    metric: str = "",
    share: str = "",
) -> str:
    """Trains what the zoo needs in `workdir_path`, and writes its table and page.

    Args:
      config_of: returns a method's config on the zoo's data set, and what it has to try.
      known: the names of methods.
      metric: with its protocol; it is tested and drawn. '' takes the one of validation.
      share: 'I/N' trains every N-th method from number I on; '' all of them.

    Returns:
      The table as Markdown; where other shares have methods to train, a line that says so.

    Raises:
      UserError: a mistake in the zoo, a config, the data or the workdir.
      core.errors.Preempted: SIGTERM or Ctrl-C; every run is saved.
    """
    zoo = whole_places(zoo)
    check_zoo(zoo, known)
    part = share_of(share)
    workdir = Workdir(workdir_path)
    _check_workdir(workdir, zoo)
    methods = plan(zoo, config_of, workdir)
    _check_metric(metric, methods)
    first, step = part or (0, 1)
    wanted = [m for m in methods[first::step] if read_method(m, zoo.seeds) is None]
    for method in wanted:
        check_method(method)
    workdir.lock(first if part else None)
    with workdir:
        _begin(workdir, zoo)
        with watched():
            for method in wanted:
                run_method(method, zoo.seeds)
        finished = {method.name: read_method(method, zoo.seeds) for method in methods}
        left = [name for name, one in finished.items() if one is None]
        if left:
            return (
                f"share {share} is through; {', '.join(left)} are other shares', and the last of "
                "these writes the table"
            )
        return tables.write(workdir, zoo, [one for one in finished.values() if one], metric)


def _begin(workdir: Workdir, zoo: Zoo) -> None:
    with workdir.alone("zoo"):
        # Another share may have begun it, or made it grow, meanwhile.
        if _check_workdir(workdir, zoo) != zoo.to_dict():
            text = json.dumps(run_schema.stamped(zoo.to_dict()), indent=2) + "\n"
            write_atomically(workdir.file(_PLAN), text)


def _check_metric(metric: str, methods: Sequence[Method]) -> None:
    if not metric:
        return
    name, _, protocol = metric.partition("/")
    metrics.metric(name)
    for method in methods:
        evaluated = method.config.eval
        if name not in evaluated.metrics or protocol not in evaluated.protocols:
            raise UserError(
                "expected --metric of eval.metrics against one of eval.protocols of every method, "
                f"found {metric!r} and {method.name}; for instance {evaluated.selection}"
            )


def _check_workdir(workdir: Workdir, zoo: Zoo) -> dict[str, Any]:
    """Returns the zoo that a workdir has, {} if none yet: this one, or one that grows into it.

    Raises:
      UserError: another zoo, or other files.
    """
    check_no_file(workdir.path)
    path = os.path.join(workdir.path, _PLAN)
    if os.path.lexists(path):
        remedy = "restore the file, or pass another --workdir"
        before = run_schema.unstamped(read_json(path, "what a zoo is", remedy), path)
        for key, value in zoo.to_dict().items():
            if before.get(key) != value and not _grows(key, before.get(key), value):
                raise UserError(
                    f"expected the zoo of {workdir.path} with {key} {before.get(key)!r}, or with "
                    f"more methods or seeds, found {value!r}; pass another --workdir"
                )
        return before
    if os.path.isdir(workdir.path) and not has_only_scaffolding(workdir.path):
        raise UserError(
            f"expected {workdir.path} to be empty or a zoo's workdir, found other files in it; "
            "pass another --workdir"
        )
    return {}


def _grows(key: str, before: Any, value: Any) -> bool:
    """Tells whether a zoo may have this value after the earlier one, whose runs all count."""
    if key == "seeds":
        return isinstance(before, int) and before < value
    if key == "methods":
        return isinstance(before, list) and all(name in value for name in before)
    return False
