"""Checks our own files, so that nothing is computed with what a disk or a copy has changed.

They are XXH3 of 64 bits, of a whole file: faster than any disk, and made against accidents, not
against whoever writes a wrong file with its checksum. Small JSON files carry their own ("sealed").
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

import xxhash

from core.errors import UserError
from core.files import open_atomically, read_json, write_atomically

CHECKSUM = "checksum"
_BESIDE = ".checksum"
# Fits a core's cache, so that what was read is hashed there.
_PART = 2**20


def of_bytes(content: bytes) -> str:
    """Returns the checksum of `content`, 16 hex digits."""
    return xxhash.xxh3_64(content).hexdigest()


def of_file(path: str) -> str:
    """Returns the checksum of a file's bytes, 16 hex digits.

    The file is read and not mapped: a disk that fails raises an error here, a map ends the process.

    Raises:
      OSError: it cannot be read.
    """
    digest, buffer = xxhash.xxh3_64(), memoryview(bytearray(_PART))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def describe(folder: str, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns {'bytes', 'xxh3'} of each file of a folder, as `check` takes it."""
    return {
        name: {
            "bytes": os.path.getsize(os.path.join(folder, name)),
            "xxh3": of_file(os.path.join(folder, name)),
        }
        for name in names
    }


def check(folder: str, described: Any, remedy: str, *, content: bool = True) -> None:
    """Holds the files of a folder to what `describe` said of them.

    Args:
      described: as `describe` returned it, read from a file.
      remedy: what the user can do where one is another.
      content: False looks at the sizes alone, which reads no file.

    Raises:
      UserError: a file is missing, cannot be read, is cut, or has other content; `described`
        describes no files.
    """
    if not isinstance(described, dict) or not all(
        isinstance(wanted, dict)
        and {"bytes", "xxh3"} <= wanted.keys()
        and not os.path.isabs(name)
        and os.pardir not in name.split(os.sep)
        and name.isprintable()  # no NUL and no half of a surrogate pair, which no path has
        for name, wanted in described.items()
    ):
        raise UserError(
            f"expected sizes and checksums of the files in {folder}, found something else; {remedy}"
        )
    for name, wanted in described.items():
        path = os.path.join(folder, name)
        try:
            size = os.path.getsize(path)
            if size != wanted["bytes"]:
                raise UserError(
                    f"expected {wanted['bytes']} bytes in {path}, found {size} bytes; {remedy}"
                )
            checksum = of_file(path) if content else wanted["xxh3"]
        except FileNotFoundError:
            raise UserError(
                f"expected {wanted['bytes']} bytes in {path}, found no such file; {remedy}"
            ) from None
        except OSError as error:
            check_readable(path)
            raise UserError(
                f"expected to read {path}, found {error.strerror or error}; bring its disk back"
            ) from None
        if checksum != wanted["xxh3"]:
            raise UserError(
                f"expected the checksum {wanted['xxh3']} of {path}, found {checksum}: its content "
                f"has changed since it was saved; {remedy}"
            )


def save(path: str, content: bytes) -> None:
    """Writes a file whole or not at all, and then its checksum beside it."""
    with open_atomically(path) as file:
        file.write(content)
    folder, name = os.path.split(path)
    write_sealed(path + _BESIDE, {"files": describe(folder, [name])})


def is_saved(path: str) -> bool:
    """Tells whether `save` has finished writing `path` and its checksum."""
    return os.path.exists(path + _BESIDE)


def verify(path: str, remedy: str) -> None:
    """Raises UserError where a file is not what `save` wrote, as `check`."""
    described = read_sealed(path + _BESIDE, "the checksum of a file", remedy)
    check(os.path.dirname(path), described.get("files"), remedy)


def _of_values(values: dict[str, Any]) -> str:
    return of_bytes(json.dumps(values, sort_keys=True, ensure_ascii=True).encode())


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """Returns `values`, of what JSON holds, with their own checksum as `checksum`."""
    values = json.loads(json.dumps(values))  # as they will be read: tuples are lists
    return {**values, CHECKSUM: _of_values(values)}


def unsealed(values: dict[str, Any], path: str, what: str, remedy: str) -> dict[str, Any]:
    """Returns what `sealed` was given.

    Args:
      path: of the file that the values were read from, for messages.
      what: the file is, for messages.
      remedy: what the user can do where they are others.

    Raises:
      UserError: the checksum is missing or another.
    """
    content = {name: value for name, value in values.items() if name != CHECKSUM}
    if values.get(CHECKSUM) != _of_values(content):
        reason = "another" if CHECKSUM in values else "none"
        raise UserError(
            f"expected {what} with its own checksum at {path}, found {reason}; {remedy}"
        )
    return content


def write_sealed(path: str, values: dict[str, Any]) -> None:
    """Writes `sealed` values as JSON, whole or not at all."""
    write_atomically(path, json.dumps(sealed(values), indent=2, ensure_ascii=False) + "\n")


def read_sealed(path: str, what: str, remedy: str) -> dict[str, Any]:
    """Reads what `write_sealed` wrote.

    Args:
      what, remedy: as of `core.files.read_json`.

    Raises:
      UserError: as `core.files.read_json` and `unsealed`; or the file may not be read.
    """
    check_readable(path)
    return unsealed(read_json(path, what, remedy), path, what, remedy)


def check_readable(path: str) -> None:
    """Raises UserError where a file is there and this user may not read it: it is not damaged."""
    if os.path.exists(path) and not os.access(path, os.R_OK):
        raise UserError(
            f"expected to read {path}, found Permission denied; make it readable for this user"
        )
