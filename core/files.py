"""Writes files whole or not at all, and reads them with bounds and without running anything.

What is read may have been cut, changed or made by a stranger. Every function that reads raises one
`UserError` for whatever is wrong with a file, and allocates no more than the file itself justifies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import secrets
import shutil
import stat
import sys
import time
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any, Literal

import numpy as np

from core.errors import UserError, reason_of

PARTIAL = ".partial-"
# A writer locks its file right after making it: what is older and not locked has no writer.
_ABANDONED_AFTER_S = 60.0
_JSON_BYTES = 256 * 2**20
_ARCHIVE_BYTES = 2 * 2**30
_HEADER_BYTES = 10_000
_LONGEST_EMPTY_AXIS = 2**20
# Bytes that any archive may unpack to, and bytes that each of its own bytes justifies.
_UNPACKED_BYTES, _UNPACKED_A_BYTE = 256 * 2**20, 100
# Descriptors of this process by name; where the shell has led one to a file, it is not replaced.
_OWN_DESCRIPTOR = re.compile(r"/dev/(stdout|stderr)|(?:/dev/fd|/proc/self/fd)/(\d{1,4})")


class WriteError(UserError, OSError):
    """Names a file that cannot be written; ends a program in one line, is caught as `OSError`."""

    def __init__(self, path: str, error: OSError):
        super().__init__(
            f"expected to write {path}, found {_reason(error)}; free space, or mend what is there, "
            "or name another place"
        )
        self.errno = error.errno

    def __str__(self) -> str:
        return str(self.args[0])


@contextlib.contextmanager
def open_atomically(path: str) -> Iterator[IO[bytes]]:
    """Opens a binary file whose content takes the place of `path` once the block has ended well.

    A reader sees the old file or the new one, whole. A link stays a link: the file that it names is
    replaced. What is no regular file (/dev/null, a pipe) is written to as it is. The new file has
    the mode 0o666 less the umask.

    Raises:
      WriteError: the folder is missing, full or cannot be written.
    """
    with writing(path):
        if (through := _open_through(path)) is not None:
            with through as file:
                yield file
            return
        target = os.path.realpath(path)
        name = f"{PARTIAL}{os.path.basename(target)[:100]}-{secrets.token_hex(6)}"
        temporary = os.path.join(os.path.dirname(target), name)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                # Network file systems may know no locks; age alone protects the file there.
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield file
                file.flush()
                os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Turns an `OSError` of writing `path` into a `WriteError`; one of reading another file stays.

    Errors of a file that is open name none.

    Raises:
      WriteError: the block could not write.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        name = str(error.filename)
        if error.filename is None or PARTIAL in name or name.startswith(path):
            raise WriteError(path, error) from error
        raise


def _open_through(path: str) -> IO[bytes] | None:
    """Opens the file at `path` where that is no regular file, which cannot be replaced."""
    own = _OWN_DESCRIPTOR.fullmatch(os.path.abspath(path))
    if own:
        sys.stdout.flush()
        return os.fdopen(os.dup({"stdout": 1, "stderr": 2}.get(own[1]) or int(own[2])), "wb")
    # The path itself is looked at: a link to a pipe has a real path that does not exist.
    if not os.path.exists(path) or stat.S_ISREG(os.stat(path).st_mode):
        return None
    return open(path, "wb")


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Holds the lock file at `path` during the block; who else asks for it waits.

    The file stays, empty: if it were removed, one who waits for it would lock nobody out.

    Raises:
      WriteError: the lock file cannot be made, or the file system has no locks.
    """
    with contextlib.ExitStack() as held:
        try:
            fcntl.flock(held.enter_context(open(path, "ab")), fcntl.LOCK_EX)
        except OSError as error:
            raise WriteError(path, error) from error
        yield


def write_atomically(path: str, text: str) -> None:
    """Writes `text` as UTF-8 in the way of `open_atomically`."""
    content = text.encode()
    with open_atomically(path) as file:
        file.write(content)


def append(path: str, text: str) -> None:
    """Appends `text` as UTF-8 to a file, which is made where there is none.

    Raises:
      WriteError: the disk is full, or the file cannot be written; a part may have been.
    """
    with writing(path), open(path, "ab") as file:
        file.write(text.encode())


def expanded(path: str, what: str) -> str:
    """Returns the absolute path of `path`, whose `~` is the home folder.

    Args:
      what: the path is, for the message: '--workdir'.

    Raises:
      UserError: it begins with `~` and there is no such home; a folder of that name would be made.
    """
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        raise UserError(
            f"expected a home folder for {what}={path}, found none: HOME is not set and there is "
            "no such account here; pass a whole path"
        )
    return os.path.abspath(whole)


class _ToldOfAll:
    """Hides from NumPy that it writes a file.

    It would write with a buffer of its own, and leave out the end of an array without a word where
    that does not fit on the disk.
    """

    def __init__(self, file: IO[bytes]):
        self.write = file.write


def write_npy(file: IO[bytes], array: np.ndarray) -> None:
    """Writes an array as .npy to an open file. Raises OSError where not all of it fits."""
    np.save(_ToldOfAll(file), array, allow_pickle=False)


def save_npy(path: str, array: np.ndarray) -> None:
    """Writes an array as a .npy file in the way of `open_atomically`."""
    with open_atomically(path) as file:
        write_npy(file, array)


def save_npz(path: str, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Writes arrays by their names as a .npz file in the way of `open_atomically`."""
    with open_atomically(path) as file:
        (np.savez_compressed if compressed else np.savez)(file, allow_pickle=False, **arrays)


def remove_abandoned(
    folder: str, prefix: str = PARTIAL, *, least_age_s: float = _ABANDONED_AFTER_S
) -> None:
    """Removes files and folders that killed writers have left in `folder`.

    Only names that begin with `prefix`, are of that age and are locked by no living process go. A
    folder that is missing or belongs to another user is left as it is.
    """
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(folder)
    for name in names:
        if not name.startswith(prefix):
            continue
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            if time.time() - os.lstat(path).st_mtime < least_age_s:
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.isdir(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def scratch_folder(directory: str) -> Iterator[str]:
    """Makes a folder beside `directory` to work in, removed at the end.

    It is locked while it is used and has the mode 0o777 less the umask, so that it can be renamed
    to `directory` once it is whole. What killed writers of the same `directory` have left is
    removed first.
    """
    parent = os.path.dirname(os.path.abspath(directory))
    os.makedirs(parent, exist_ok=True)
    prefix = f"{PARTIAL}{os.path.basename(directory)[:100]}-"
    remove_abandoned(parent, prefix, least_age_s=0.0)
    temporary, held = _locked_folder(parent, prefix)
    try:
        yield temporary
    finally:
        os.close(held)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(temporary)


def _locked_folder(parent: str, prefix: str) -> tuple[str, int]:
    """Makes a folder; returns its path and a descriptor that holds its lock."""
    while True:
        temporary = os.path.join(parent, prefix + secrets.token_hex(6))
        os.mkdir(temporary)
        held = os.open(temporary, os.O_RDONLY)
        with contextlib.suppress(OSError):  # no locks here: age alone protects it
            fcntl.flock(held, fcntl.LOCK_EX)
        if os.path.isdir(temporary):
            return temporary, held
        os.close(held)  # removed by another process before it was locked


def _unreadable(path: str, what: str, reason: object, remedy: str) -> UserError:
    return UserError(f"expected {what} at {path}, found {reason}; {remedy}")


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return "values nested too deeply"
    return f"a file that cannot be read ({reason_of(error)})"


def read_json(
    path: str, what: str, remedy: str, *, kind: type = dict, max_bytes: int = _JSON_BYTES
) -> Any:
    """Reads a JSON file.

    Args:
      what: the file is, for messages: 'the results of a run'.
      remedy: what the user can do where it cannot be read.
      kind: of the outermost value, `dict` or `list`.
      max_bytes: a larger file is refused unread.

    Raises:
      UserError: no such file; too large, cut, not UTF-8, not JSON, nested too deeply, or its
        outermost value is of another kind.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise ValueError(f"more than {max_bytes:,} bytes")
            content = file.read(size)  # no more: what is asked for is allocated first
        value = json.loads(content.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, what, _reason(error), remedy) from None
    if not isinstance(value, kind):
        raise _unreadable(path, what, f"JSON that is a {type(value).__name__}", remedy)
    return value


def load_npy(path: str, what: str, remedy: str, *, memory_map: bool = False) -> np.ndarray:
    """Reads the array of a .npy file, whose header must fit the file's size.

    Args:
      what, remedy: as of `read_json`.
      memory_map: returns a plain array over a read-only map of the file.

    Raises:
      UserError: no such file; no .npy, an array of objects, cut, or longer than its header says.
    """
    try:
        with open(path, "rb") as file:
            shape, order, dtype = _npy_header(file)
            first = file.tell()
            count = math.prod(shape)
            _check_size(count, dtype, os.fstat(file.fileno()).st_size - first)
            if memory_map and count:
                mapped = np.memmap(path, dtype, mode="r", offset=first, shape=shape, order=order)
                return np.asarray(mapped)
            values = np.fromfile(file, dtype, count)
    except (OSError, ValueError, SyntaxError, EOFError, RecursionError) as error:
        raise _unreadable(path, what, _reason(error), remedy) from None
    return values.reshape(shape, order=order)


def load_npz(
    path: str, what: str, remedy: str, *, max_bytes: int = _ARCHIVE_BYTES
) -> dict[str, np.ndarray]:
    """Reads all arrays of a .npz file by their names.

    Args:
      what, remedy: as of `read_json`.
      max_bytes: that the arrays may have together, unpacked.

    Raises:
      UserError: no such file; no archive of arrays, cut, damaged, arrays of objects, or larger than
        `max_bytes`.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            most = min(max_bytes, _UNPACKED_BYTES + _UNPACKED_A_BYTE * os.path.getsize(path))
            if sum(member.file_size for member in members) > most:
                raise ValueError(f"arrays of more than {most:,} bytes")
            for member in members:
                with archive.open(member) as file:
                    shape, order, dtype = _npy_header(file)
                    count = math.prod(shape)
                    _check_size(count, dtype, member.file_size - file.tell())
                    content = file.read(member.file_size)
                values = np.frombuffer(bytearray(content), dtype, count)
                name = member.filename.removesuffix(".npy")
                if name in arrays:
                    raise ValueError(f"two arrays of the name {name!r}")
                arrays[name] = values.reshape(shape, order=order)
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        RecursionError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise _unreadable(path, what, _reason(error), remedy) from None
    return arrays


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], Literal["F", "C"], np.dtype]:
    """Reads (shape, order, dtype) of the .npy at the start of a file, and stops at its values.

    Raises:
      ValueError: no header of NumPy's, or one of objects.
    """
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"version {version} of the .npy format")
    try:
        shape, fortran, dtype = read[version](file, max_header_size=_HEADER_BYTES)
    # Nested brackets, open brackets, a list as a key.
    except (MemoryError, tokenize.TokenError, TypeError):
        raise ValueError("a header that is no dict") from None
    if dtype.hasobject or not dtype.itemsize or any(size < 0 for size in shape):
        raise ValueError("an array of objects, of nothing or of negative size")
    if 0 in shape and max(shape) > _LONGEST_EMPTY_AXIS:
        raise ValueError("an empty array of endless rows")
    return shape, "F" if fortran else "C", dtype


def _check_size(count: int, dtype: np.dtype, size: int) -> None:
    wanted = count * dtype.itemsize
    if wanted != size:
        raise ValueError(f"{size:,} bytes of values where its header says {wanted:,}")
