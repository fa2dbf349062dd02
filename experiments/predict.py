"""Recommends items to users from all they have done so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from core.errors import UserError
from core.text_lines import read_lines
from experiments.restored import Restored


def predict(
    restored: Restored, users: Sequence[str] | str | None, top_k: int, query: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yields user, rank, item and score for every user, best first; some methods add more.

    Args:
      users: ids as in the raw data, or one; None, with a query, is someone without a history.
      top_k: items of each user.
      query: for the items of a search, of a GenSAR run.

    Raises:
      UserError: a user id that the data does not hold, more items asked for than there are, or a
        query that the run cannot answer.
    """
    users = [users] if isinstance(users, str) else users
    yield from restored.experiment.predict(restored.params, restored.tables, users, top_k, query)


def read_users(path: str) -> list[str]:
    """Reads the lines of a file that are not empty.

    Raises:
      UserError: no such file, it is not UTF-8, or it has no lines.
    """
    lines = read_lines(path, "user ids", "correct --users or save the file as UTF-8")
    users = [line.strip() for line in lines if line.strip()]
    if not users:
        raise UserError(f"expected user ids in {path}, one a line, found none; fill the file")
    return users
