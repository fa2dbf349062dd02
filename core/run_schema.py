"""Records which version of the library wrote a run, and refuses runs of another schema."""

from __future__ import annotations

from typing import Any

from core.errors import UserError
from core.version import VERSION

# Goes up by one in every change after which runs written until then can no longer be opened: a
# setting is renamed, a workdir gets another file, a checkpoint other arrays.
SCHEMA = 1
_KEY = "written_by"
_FIRST = "0.2.0"  # the first version with such a record
_REMEDY = "open it with that version, or train again in another --workdir"


def stamped(values: dict[str, Any]) -> dict[str, Any]:
    """Returns `values` of a JSON file with a record of the schema and version that write it."""
    return {**values, _KEY: {"schema": SCHEMA, "version": VERSION}}


def unstamped(values: dict[str, Any], path: str) -> dict[str, Any]:
    """Returns what `stamped` was given.

    Args:
      path: of the file that the values were read from, for messages.

    Raises:
      UserError: a version with another schema has written the file, or its record is damaged.
    """
    expected = f"expected a run of schema {SCHEMA}, which version {VERSION} reads, in {path}, found"
    if _KEY not in values:
        raise UserError(f"{expected} one written by a version before {_FIRST}; {_REMEDY}")
    record = values[_KEY]
    schema, version = (
        (record.get("schema"), record.get("version")) if isinstance(record, dict) else (None, None)
    )
    if type(schema) is not int or not isinstance(version, str) or not version.isprintable():
        raise UserError(
            f"expected the schema and version that wrote {path} as {_KEY!r} in it, found "
            f"{record!r:.60}; restore the file, or train again in another --workdir"
        )
    if schema != SCHEMA:
        raise UserError(
            f"{expected} one of schema {schema}, written by version {version:.20}; {_REMEDY}"
        )
    return {key: value for key, value in values.items() if key != _KEY}
