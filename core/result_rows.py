"""Checks rows of results.json and the examples behind them where they are read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.errors import UserError
from core.files import load_npz

# What every row of results.json has; rows of rankings add 'candidates_seed' and 'per_user'.
_ROW_KEYS = {
    **dict.fromkeys(("stage", "split", "protocol", "selected_on", "commit", "device"), str),
    **dict.fromkeys(("data", "data_hash", "data_split"), str),
    **dict.fromkeys(("step", "examples", "seed"), int),
    "metrics": dict,
}
_PER_USER = re.compile(r"per_user/[^/\\]+\.npz")


def read_per_user(folder: str, row: dict[str, Any], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples behind a row: their users int [E] and a metric's values float [E].

    Args:
      folder: of the run.
      row: of its results, as `check_row` lets them through.
      metric: its name without the protocol.

    Raises:
      UserError: the row names no such file, or the file cannot be read, lacks them, or is of
        other results than the row.
    """
    again = f"run launch.evaluate --workdir={folder} again"
    path = _file_of(folder, row, "per_user", again)
    arrays = load_npz(path, "the results of every example", again)
    users, values = (arrays.get(key, np.zeros(0)) for key in ("user", metric))
    whole = users.dtype.kind in "iu" and values.dtype.kind == "f" and len(users.shape) == 1
    if not whole or users.shape != values.shape or not len(users):
        raise UserError(
            f"expected one user and one {metric} an example in {path}, found {users.dtype} "
            f"{list(users.shape)} and {values.dtype} {list(values.shape)}; {again}"
        )
    told = {full.partition("/")[0]: value for full, value in row["metrics"].items()}[metric]
    mean = float(np.mean(values, dtype=np.float64))
    if not abs(mean - told) <= 1e-6:
        raise UserError(
            f"expected the mean {told:.6f} of its row for {metric} in {path}, found "
            f"{mean:.6f}: one of them has been written since; {again}"
        )
    return users, values


def read_ranks(folder: str, row: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the rankings behind a row, in the order of its examples.

    Args:
      folder, row: as of `read_per_user`.

    Returns:
      int32 `above`, `tied` and `ranking` [E], as `core.results.save` takes them; and `best` [E, k],
      numbers of items from 1, 0 where there are fewer, if the evaluation kept it.

    Raises:
      UserError: the row names no such file, or the file cannot be read, lacks them, or is of
        another number of examples than the row.
    """
    again = f"run launch.evaluate --workdir={folder} again"
    path = _file_of(folder, row, "ranks", again)
    arrays = load_npz(path, "the rankings of every example", again)
    shapes = {"above": 1, "tied": 1, "ranking": 1} | ({"best": 2} if "best" in arrays else {})
    for name, axes in shapes.items():
        values = arrays.get(name, np.zeros(0))
        whole = values.dtype == np.int32 and values.ndim == axes and len(values) == row["examples"]
        if not whole or (values.size and values.min() < 0):
            raise UserError(
                f"expected {name} of {row['examples']} examples in {path}, found {values.dtype} "
                f"{list(values.shape)}{' below 0' if whole else ''}; {again}"
            )
    return {name: arrays[name] for name in shapes}


def _file_of(folder: str, row: dict[str, Any], key: str, again: str) -> str:
    """Returns the path of a file that a row names. Raises UserError where it names none."""
    name = row.get(key)
    if not isinstance(name, str) or not _PER_USER.fullmatch(name):
        raise UserError(
            f"expected a file of {folder}/per_user in its results of {row['stage']}, found "
            f"{name!r}; {again}"
        )
    return os.path.join(folder, name)


def values_by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the metrics of rows as 'STAGE/SPLIT/METRIC'."""
    return {
        f"{row['stage']}/{row['split']}/{name}": value
        for row in rows
        for name, value in row["metrics"].items()
    }


def check_row(row: Any, where: str, remedy: str) -> None:
    """Refuses what is no row of results.

    Args:
      where, remedy: for the message.

    Raises:
      UserError: it lacks what every row has, or has other kinds of values.
    """
    wrong: list[str] = []
    if isinstance(row, dict):
        wrong = [k for k, kind in _ROW_KEYS.items() if not is_a(row.get(k), kind)]
        if not wrong and not all(is_a(value, float) for value in row["metrics"].values()):
            wrong = ["metrics"]
        if not wrong:
            return
    what = f"no fitting {', '.join(wrong)}" if wrong else f"{row!r:.60}"
    raise UserError(f"expected results of a run in {where}, found {what}; {remedy}")


def is_a(value: Any, kind: type) -> bool:
    """Tells whether a value of JSON is of a kind; booleans are no numbers, integers are floats."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)
