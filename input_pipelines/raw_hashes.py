"""Remembers hashes of raw files' content, so that not every start reads gigabytes again.

A remembered hash belongs to a file's device, inode, size, and times of modification and of change.
No program sets the last one at will (`touch -d` sets the other), so whoever writes to a file or
puts another in its place has it hashed again. What has changed within the last seconds is not
remembered: a second write within one tick of the clock would keep its time.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time

import xxhash

from core import checksums
from core.errors import UserError

_FILE = "raw-hashes.json"
_SETTLED_S = 2.0
# How many files are remembered; the oldest are forgotten.
_MOST = 10_000
_PART = 2**20


class RawHashes:
    """Computes and remembers hashes of the content of raw files.

    Args:
      cache_dir: where they are remembered; '' remembers nothing.
    """

    def __init__(self, cache_dir: str):
        self._path = os.path.join(cache_dir, _FILE) if cache_dir else ""
        self._known: dict[str, str] = {}
        if self._path and os.path.exists(self._path):
            # Whatever is wrong with it: all is hashed again, and it is written anew.
            with contextlib.suppress(UserError):
                files = checksums.read_sealed(self._path, "hashes", "remove it").get("files")
                self._known = files if isinstance(files, dict) else {}
        self._new: dict[str, str] = {}

    def of(self, path: pathlib.Path) -> str:
        """Returns 32 hex digits (XXH3 of 128 bits) over a file's content.

        Raises:
          UserError: the file cannot be read, or is written to meanwhile.
        """
        try:
            before, now = os.stat(path), time.time_ns()
            key = _key(before)
            if isinstance(known := self._known.get(key), str):
                return known
            digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(_PART))
            with open(path, "rb", buffering=0) as file:
                while size := file.readinto(buffer):
                    digest.update(buffer[:size])
            after = _key(os.stat(path))
        except OSError as error:
            raise UserError(
                f"expected to read {path}, found {error.strerror or error}; make it readable"
            ) from None
        if after != key:
            raise UserError(
                f"expected {path} to stay as it is while it is read, found that another program "
                "writes to it; wait for that program and run the command again"
            )
        digits = digest.hexdigest()
        if now - before.st_ctime_ns > _SETTLED_S * 1e9:
            self._new[key] = digits
        return digits

    def save(self) -> None:
        """Remembers what was hashed; a cache that cannot be written forgets it."""
        if self._new and self._path:
            files = dict(list({**self._known, **self._new}.items())[-_MOST:])
            with contextlib.suppress(OSError):
                os.makedirs(os.path.dirname(self._path), exist_ok=True)
                # The last of two writers counts; what the other knew is hashed once more.
                checksums.write_sealed(self._path, {"files": files})


def _key(status: os.stat_result) -> str:
    values = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return "-".join(map(str, values))
