"""Copies folders from object stores (gs://, s3:// and what else fsspec knows), and to them.

Programs read and write files of this machine, which memory maps, locks and atomic renames need. A
folder whose address is given in place of a path has a copy here, below `LCRSR_STORES` or
~/.cache/lcrsr/stores, that later calls bring up to date. etils' paths are not used: where
TensorFlow is installed they read by it, and it knows gs:// alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import fsspec

from core.errors import Preempted, UserError
from core.files import (
    PARTIAL,
    expanded,
    locked,
    read_json,
    remove_abandoned,
    scratch_folder,
    write_atomically,
)

# Names the folder of this machine's copies.
STORES_VARIABLE = "LCRSR_STORES"
_STORES = "~/.cache/lcrsr/stores"
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.+)")
# What an object's listing says of its content, whichever a store has.
_TAGS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "mtime", "created")
# Objects asked for at once.
_TOGETHER = 64
_EXAMPLES = "gs://BUCKET/FOLDER, s3://BUCKET/FOLDER"


class Object(NamedTuple):
    """Describes an object: its bytes, and a tag that changes with its content."""

    size: int
    tag: str


def is_address(path: str) -> bool:
    """Tells whether a path is an address such as s3://bucket/folder."""
    return "://" in path


def _parts(address: str, what: str) -> tuple[str, list[str]]:
    """Returns the scheme of an address and the names of its folders.

    Raises:
      UserError: it is no address, nobody knows such addresses, or it leads out of its folder.
    """
    parts = _ADDRESS.fullmatch(address.rstrip("/"))
    names = parts[2].strip("/").split("/") if parts else []
    known = parts is not None and parts[1] in fsspec.available_protocols()
    if parts is None or not known or any(name in ("", ".", "..") for name in names):
        raise UserError(
            f"expected an address such as {_EXAMPLES} for {what}, found {address}; correct it"
        )
    return parts[1], names


class Store:
    """Reads and writes the objects below one address.

    Args:
      address: such as s3://bucket/folder.
      what: was given it, for messages: '--workdir'.

    Raises:
      UserError: nobody knows such addresses, or the package that does is missing. Every method
        raises it where the store refuses or cannot be reached.
    """

    def __init__(self, address: str, what: str):
        self.address, self._what = address.rstrip("/"), what
        scheme, _ = _parts(address, what)
        try:
            # A store on a disk makes folders; others have none.
            self._on_disk = scheme in ("file", "local")
            options = {"auto_mkdir": True} if self._on_disk else {}
            self._system = fsspec.filesystem(scheme, **options)
        except ImportError as error:
            raise UserError(
                f"expected the package of {scheme}:// for {what}={address}, found it missing "
                f"({error}); run `pip install -e '.[store]'`"
            ) from None
        except Exception as error:  # what a store's package says of its settings
            raise self._refused("open", error) from error
        with self._telling("open"):
            self._root = str(self._system._strip_protocol(self.address)).rstrip("/")

    def _refused(self, doing: str, error: BaseException) -> UserError:
        if isinstance(error, PermissionError):
            reason, remedy = "no right to", "ask for it, or pass another one"
        elif isinstance(error, FileNotFoundError):
            reason, remedy = "no such bucket or object", "correct it"
        else:
            words = " ".join(str(error).split()) or type(error).__name__
            reason, remedy = words[:200], "see to the store or your credentials, or pass a folder"
        return UserError(
            f"expected to {doing} {self._what}={self.address}, found {reason}; {remedy}"
        )

    @contextlib.contextmanager
    def _telling(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (UserError, Preempted):
            raise
        except Exception as error:  # the stores' packages raise many types
            raise self._refused(doing, error) from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def objects(self) -> dict[str, Object]:
        """Returns every object by its name below the address; {} where there is none.

        Raises:
          UserError: also where a name leads out of the folder, or the address is one object.
        """
        with self._telling("list"):
            self._system.invalidate_cache()
            try:
                listed: dict[str, Any] = self._system.find(self._root, detail=True)
            except FileNotFoundError:
                # Some stores say so of a folder that has nothing in it.
                listed = {}
        objects = {}
        for path, told in listed.items():
            name = path.removeprefix(self._root).lstrip("/")
            if name.endswith("/"):  # what some consoles write for a folder
                continue
            parts = name.split("/")
            if not name.isprintable() or any(part in ("", ".", "..") for part in parts):
                raise UserError(
                    f"expected objects with names of files below {self.address}, found {path!r}; "
                    "correct the address, or rename it"
                )
            tag = next((str(told[key]) for key in _TAGS if told.get(key) is not None), "")
            objects[name] = Object(int(told["size"]), tag)
        return objects

    def read(self, name: str) -> bytes | None:
        """Returns an object's content; None where there is no such object."""
        with self._telling("read"):
            try:
                content: bytes = self._system.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return content

    def write(self, name: str, content: bytes) -> None:
        """Writes an object whole or not at all."""
        with self._telling("write to"):
            self._system.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Writes an object unless there is one; of several who do so at once one alone succeeds."""
        with self._telling("write to"):
            if self._on_disk:
                os.makedirs(self._root, exist_ok=True)
            try:
                self._system.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
            return True

    def remove(self, names: Sequence[str]) -> None:
        """Removes objects; those that are gone stay so."""
        with self._telling("write to"):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    self._system.rm_file(self._path(name))

    def put(self, files: Sequence[tuple[str, str]]) -> None:
        """Writes files of this machine as objects: pairs of a path and a name."""
        with self._telling("write to"):
            for first in range(0, len(files), _TOGETHER):
                some = files[first : first + _TOGETHER]
                self._system.put([path for path, _ in some], [self._path(name) for _, name in some])

    def get(
        self,
        wanted: Sequence[tuple[str, str, int]],
        check: Callable[[str, str], None] = lambda copy, path: None,
    ) -> None:
        """Copies objects into files of this machine, each whole or not at all.

        Args:
          wanted: an object's name, the file's path and its bytes.
          check: told the path of what was copied, and that of the file it is to become; it raises
            UserError where the content is not what it should be.

        Raises:
          UserError: an object has another size.
        """
        for first in range(0, len(wanted), _TOGETHER):
            some = wanted[first : first + _TOGETHER]
            copies = []
            for number, (_, path, _) in enumerate(some):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                copies.append(f"{os.path.dirname(path)}/{PARTIAL}{os.getpid()}-{number}")
            try:
                with self._telling("read"):
                    self._system.get([self._path(name) for name, _, _ in some], copies)
                for copy, (name, path, size) in zip(copies, some, strict=True):
                    here = os.path.getsize(copy)
                    if here != size:
                        raise UserError(
                            f"expected {size} bytes of {self.address}/{name}, found {here}; run "
                            "the same command again"
                        )
                    check(copy, path)
                    os.replace(copy, path)
            finally:
                for copy in copies:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(copy)


def place_of(address: str, what: str) -> str:
    """Returns the folder of this machine that has, or is to have, the copy of an address.

    Raises:
      UserError: it is no address that anyone knows, or leads out of its folder.
    """
    scheme, names = _parts(address, what)
    root = expanded(os.environ.get(STORES_VARIABLE) or _STORES, STORES_VARIABLE)
    return os.path.join(root, scheme, *names)


def fetched(address: str, what: str) -> str:
    """Returns the folder of this machine with the files of an address, which it copies first.

    What is here already is not copied again: files of the same size and tag as at the last call.
    Files that have joined the copy since, such as candidate lists, stay.

    Args:
      what: was given it, for messages: 'config.data_dir'.

    Raises:
      UserError: as `Store`; nothing is there, or it changes while it is copied.
    """
    store, place = Store(address, what), place_of(address, what)
    objects = store.objects()
    if not objects:
        raise UserError(
            f"expected a folder with files at {what}={address}, found nothing; correct it"
        )
    record = f"{place}.copied.json"
    with held(place, what):
        known = _copied(record)
        new = {
            name: told
            for name, told in objects.items()
            if known.get(name) != [*told, _seen(os.path.join(place, name))]
        }
        gone = [name for name in known if name not in objects]
        if new or gone:
            # A copy that is ended halfway knows of nothing, and is made again.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(record)
            wanted = [(name, os.path.join(place, name), new[name].size) for name in sorted(new)]
            store.get(wanted)
            for name in gone:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(place, name))
            if store.objects() != objects:
                raise UserError(
                    f"expected {what}={address} to stay as it was while it was copied, found it "
                    "changed; run the same command again once it is whole"
                )
            copied = {n: [*told, _seen(os.path.join(place, n))] for n, told in objects.items()}
            write_atomically(record, json.dumps(copied))
    return place


def _seen(path: str) -> list[int]:
    """Returns what shows whether a file of this machine has changed; [] where there is none."""
    try:
        told = os.stat(path)
    except OSError:
        return []
    return [told.st_size, told.st_mtime_ns]


def _copied(record: str) -> dict[str, Any]:
    with contextlib.suppress(UserError):
        copied: dict[str, Any] = read_json(record, "what was copied", "")
        return copied
    return {}


@contextlib.contextmanager
def held(place: str, what: str) -> Iterator[None]:
    """Keeps the processes of this machine from changing one copy at once."""
    try:
        os.makedirs(place, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"expected to make {place}, the copy of {what}, found {error.strerror or error}; name "
            f"another folder in the environment's {STORES_VARIABLE}"
        ) from error
    with locked(f"{place}.lock"):
        for folder, _, _ in os.walk(place):
            remove_abandoned(folder)
        yield


def here(path: str, what: str) -> str:
    """Returns the folder of this machine for a path or an address; '' for ''.

    Raises:
      UserError: as `fetched` and `core.files.expanded`.
    """
    if is_address(path):
        return fetched(path, what)
    return expanded(path, what) if path else ""


def begun(path: str, what: str) -> str:
    """Returns the folder in which to make what `publish` is to bring to a path or an address.

    It has what is there already. '' for ''.

    Raises:
      UserError: as `here`.
    """
    if not is_address(path) or Store(path, what).objects():
        return here(path, what)
    place = place_of(path, what)
    # What this machine has of it is not there any more.
    shutil.rmtree(place, ignore_errors=True)
    return place


def fetch_whole(address: str, folder: str, what: str, last: str) -> bool:
    """Copies a folder that `publish` has brought to an address, whole or not at all.

    Returns:
      False where there is none.

    Raises:
      UserError: as `Store`.
    """
    store = Store(address, what)
    objects = store.objects()
    if last not in objects:
        return False
    with scratch_folder(folder) as temporary:
        store.get([(n, os.path.join(temporary, n), told.size) for n, told in objects.items()])
        os.replace(temporary, folder)
    return True


def publish(folder: str, address: str, what: str, last: str) -> None:
    """Copies a folder of this machine to an address, unless a whole one is there.

    Args:
      last: the file that says what the others are. It comes last: without it the folder is not
        taken for whole.

    Raises:
      UserError: as `Store`.
    """
    store = Store(address, what)
    if last in store.objects():
        return
    names = [
        os.path.relpath(os.path.join(at, name), folder)
        for at, _, files in os.walk(folder)
        for name in files
        if not name.startswith(".")
    ]
    store.put([(os.path.join(folder, name), name) for name in sorted(names) if name != last])
    store.put([(os.path.join(folder, last), last)])
