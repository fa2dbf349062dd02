"""Checks rows of results.json and the examples behind them where they are read."""

from __future__ import annotations

import os
import re
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
    name = row.get("per_user")
    if not isinstance(name, str) or not _PER_USER.fullmatch(name):
        raise UserError(
            f"expected a file of {folder}/per_user in its results of {row['stage']}, found "
            f"{name!r}; {again}"
        )
    path = os.path.join(folder, name)
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
