"""Finds the columns of `csv_log` that its files need, have by other names, or lack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from core.errors import UserError, reason_of
from input_pipelines.readers import csv_shards
from input_pipelines.readers.csv_shards import Shard

COLUMNS = {
    "clicks": ("user", "item", "time", "search_session"),
    "searches": ("user", "session", "time", "query", "clicked_items"),
    "items": ("item", "title"),
}
OPTIONAL_TABLES = ("items",)
OPTIONAL_COLUMNS = ("search_session",)
# Columns that the setting `columns` may declare absent.
_LEFT_OUT = ("session", "clicked_items", "title", "search_session")
_ALL_COLUMNS = tuple(dict.fromkeys(name for names in COLUMNS.values() for name in names))


def names_of(columns: str) -> dict[str, dict[str, str]]:
    """Returns by table what its file calls each column of the schema; '' where there is none.

    Args:
      columns: the setting, such as 'user=user_id,searches.time=asked_at,session='.

    Raises:
      UserError: `columns` is no list of COLUMN=NAME, or gives no name to a needed column.
    """
    names_by_table = {table: {name: name for name in names} for table, names in COLUMNS.items()}
    for given in filter(None, (part.strip() for part in columns.split(","))):
        place, sign, name = (part.strip() for part in given.partition("="))
        table, _, column = place.rpartition(".")
        tables = [t for t in COLUMNS if table in ("", t) and column in COLUMNS[t]]
        if not sign or not tables or not (name or column in _LEFT_OUT):
            raise UserError(
                f"expected columns as COLUMN=NAME or TABLE.COLUMN=NAME with one of "
                f"{', '.join(_ALL_COLUMNS)} (and {', '.join(_LEFT_OUT)} with no NAME where there "
                f"is none), found {given!r}; correct config.data.columns"
            )
        for each in tables:
            names_by_table[each][column] = name
    return names_by_table


def unreadable(shard: Shard, error: Exception) -> UserError:
    """Returns the one line for a file that does not read, with the reason."""
    reason = reason_of(error)
    return UserError(
        f"expected a whole {'csv' if shard.is_csv else 'parquet'} file at {shard.path}, found one "
        f"that cannot be read ({reason}); write it again"
    )


def _header(shard: Shard) -> dict[str, str]:
    try:
        return csv_shards.header(shard)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(shard, error) from error


def check_headers(
    tables: Mapping[str, Sequence[Shard]], names: Mapping[str, Mapping[str, str]]
) -> dict[str, list[str]]:
    """Returns by table the columns of the schema that its files have.

    Raises:
      UserError: a file without a header; columns that are missing, all of them in one message; a
        shard whose columns are not those of the first.
    """
    has: dict[str, list[str]] = {}
    wrong: list[str] = []
    hints: dict[str, list[str]] = {}
    for table, shards in tables.items():
        path, header = shards[0].path, _header(shards[0])
        twice = [name for name in names[table].values() if header.get(name, "").endswith(" times")]
        if twice:
            raise UserError(
                f"expected column {twice[0]} in {path} once, found it {header[twice[0]]}; rename "
                "one of them"
            )
        has[table] = [column for column, name in names[table].items() if name in header]
        missing = [
            column
            for column, name in names[table].items()
            if name and name not in header and (column not in OPTIONAL_COLUMNS or name != column)
        ]
        if missing:
            s = "s" * (len(missing) > 1)
            listed = ", ".join(names[table][column] for column in missing)
            wrong.append(f"column{s} {listed} in {path}, found {', '.join(header)[:300]}")
            for column in missing:
                if hint := _hint(column, list(header)):
                    hints.setdefault(f"{column}={hint[0]}", []).append(table)
        for shard in shards[1:] if not missing else ():
            _check_alike(shards[0], header, shard, [n for n in names[table].values() if n])
    if wrong:
        settings = ",".join(_for_tables(hint, where) for hint, where in hints.items())
        raise UserError(
            f"expected {'; and '.join(wrong)}; rename the file's columns, or add "
            f"{settings or 'COLUMN=NAME'} to config.data.columns (--columns of launch.prepare_data)"
        )
    return has


def _check_alike(first: Shard, header: Mapping[str, str], shard: Shard, names: list[str]) -> None:
    """Raises UserError where a shard's columns of these names are not those of the first one."""
    own = _header(shard)
    for name in names:
        if (name in own) != (name in header):
            there, lacking = (first, shard) if name in header else (shard, first)
            raise UserError(
                f"expected all shards of one schema, found column {name} in {there.path} and not "
                f"in {lacking.path}; write them alike"
            )
        # What is null throughout says nothing of its kind.
        if own.get(name) != header.get(name) and "null" not in (own[name], header[name]):
            raise UserError(
                f"expected all shards of one schema, found column {name} as {header[name]} in "
                f"{first.path} and as {own[name]} in {shard.path}; write them alike"
            )


def _hint(column: str, header: Sequence[str]) -> list[str]:
    """Guesses what the file calls a column: [''] if it may be absent, [] without a guess."""
    likely = [name for name in header if column in name.lower()]
    return likely or [""] * (column in _LEFT_OUT)


def _for_tables(hint: str, tables: Sequence[str]) -> str:
    """Writes 'user=user_id' if all tables with the column need it, else 'clicks.user=user_id'."""
    column = hint.partition("=")[0]
    if tables == [table for table, names in COLUMNS.items() if column in names]:
        return hint
    return ",".join(f"{table}.{hint}" for table in tables)
