"""Reads and writes folders of an object store by their address: gs://, s3://, any of fsspec's.

An object appears whole or not at all, but a folder of objects does not. So what is sent of several
files is described by a record that is sent last (`send_folder`), and only what it describes is
fetched. Where several may send the same names at once, a file's object has its checksum in its
name, so that nobody replaces what a record describes. Whatever goes wrong with a store ends in one
line: an unknown protocol, a package that is not installed, no such bucket, no rights, no answer.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import fsspec

from core import checksums
from core.errors import UserError, reason_of
from core.files import expanded, scratch_folder

_LOG = logging.getLogger(__name__)
# Where copies of what lies in stores are kept on this machine.
FOLDER_VARIABLE = "LCRSR_STORE_FOLDER"
_DEFAULT_FOLDER = "~/.cache/lcrsr/store"
RECORD = ".whole.json"
# Written and removed to find out whether one may write.
TRIED = ".tried"
_FORMAT = 1
_RECORD_BYTES = 256 * 2**20
# What a store says of an object that changes with its content, by the names that fsspec passes on.
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "updated", "mtime", "created")


def is_address(path: str) -> bool:
    """Tells whether a path is an address such as s3://bucket/folder, not of this machine."""
    return "://" in path


def local_copy(address: str) -> str:
    """Returns the folder of this machine that a copy of `address` belongs to.

    It lies below `LCRSR_STORE_FOLDER` of the environment, or ~/.cache/lcrsr/store.

    Raises:
      UserError: as `core.files.expanded`.
    """
    base = expanded(os.environ.get(FOLDER_VARIABLE) or _DEFAULT_FOLDER, FOLDER_VARIABLE)
    address = address.rstrip("/")
    digest = hashlib.sha256(address.encode()).hexdigest()[:12]
    return os.path.join(base, f"{address.rsplit('/', 1)[-1][:60]}-{digest}")


class Gone(UserError):
    """Tells that an object is not there any more."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """Says what a store tells of an object: its bytes, what changes with its content, its MD5."""

    size: int
    version: str
    md5: str


class Store:
    """Speaks to the store that holds the folder at `address`; names are relative to the folder.

    Args:
      address: such as s3://bucket/folder.
      what: it is, for messages: '--workdir'.

    Raises:
      UserError: an unknown protocol, a package that is not installed, an address without a folder.
    """

    def __init__(self, address: str, what: str):
        self.address, self._what = address.rstrip("/"), what
        protocol = address.partition("://")[0]
        options = {"auto_mkdir": True} if protocol in ("file", "local") else {}
        try:
            self._files, root = fsspec.core.url_to_fs(address, **options)
        except ImportError as error:
            raise UserError(
                f"expected the package for {protocol}:// of {what}={address}, found it missing "
                f"({_words(error)}); run pip install -e '.[store]', or install that package"
            ) from None
        except Exception as error:  # of many packages
            raise UserError(
                f"expected {what} on this machine or in an object store, found {address} "
                f"({_words(error)}); correct the address, for instance s3://BUCKET/FOLDER"
            ) from None
        self._root = root.rstrip("/")
        if not self._root.strip("/"):
            raise UserError(
                f"expected {what}={protocol}://BUCKET/FOLDER, found {address}; name the folder"
            )

    @contextlib.contextmanager
    def _asking(self, to: str) -> Iterator[None]:
        """Turns what a store answers into one line; `to` says what was asked of it."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of many packages
            raise UserError(
                f"expected to {to} {self.address} ({self._what}), found {_words(error)}; correct "
                "the address, see that the bucket is there and that this account may use it, and "
                "run the same command again"
            ) from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def entries(self) -> dict[str, Entry]:
        """Returns every object of the folder by its name, sorted; names with a dot in front too.

        Raises:
          UserError: the store cannot be read, the address is an object itself, or a name would lead
            out of a folder of this machine.
        """
        with self._asking("read"):
            self._files.invalidate_cache()
            every = self._files.find(self._root, detail=True)
            described = {path: _entry(about) for path, about in every.items()}
        if self._root in described:
            raise UserError(
                f"expected a folder at {self.address} ({self._what}), found an object; pass the "
                "folder"
            )
        result = {
            path.removeprefix(self._root + "/"): entry for path, entry in sorted(described.items())
        }
        self._check_names(result)
        return result

    def _check_names(self, names: Collection[str]) -> None:
        """Refuses names that a folder of this machine cannot have, or that lead out of it."""
        folders = {name.rpartition("/")[0] for name in names}
        for name in names:
            parts = name.split("/")
            odd = not name.isprintable() or "\\" in name or name in folders
            if odd or {"", ".", ".."} & set(parts):
                raise UserError(
                    f"expected objects that can be files below {self.address} ({self._what}), "
                    f"found {name[:100]!r}; rename or remove it"
                )

    def read(self, name: str) -> bytes | None:
        """Returns the content of a small object, None where there is none."""
        with self._asking("read"):
            self._files.invalidate_cache()
            try:
                content = self._files.cat_file(self._path(name), end=_RECORD_BYTES)
            except FileNotFoundError as error:
                # S3 says so of a bucket too, and that is no folder without this object.
                if "specified bucket" in str(error):
                    raise
                return None
        return bytes(content)

    def write(self, name: str, content: bytes) -> None:
        """Puts `content` in the place of an object: on S3 and its like whole or not at all, on
        `file://` not so.
        """
        with self._asking("write"):
            self._files.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Writes an object that is not there yet; tells whether it was not.

        On stores with conditional writes (S3, GCS) one of several that do this at once succeeds.
        """
        with self._asking("write"):
            try:
                self._files.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
        return True

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects; those that are not there are none of its business."""
        with self._asking("remove objects of"):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(self._path(name))

    def check_writable(self) -> None:
        """Raises UserError where nothing can be written, before the work whose result it takes."""
        self.write(TRIED, b"")
        self.remove([TRIED])

    def send(
        self, folder: str, names: Iterable[str], objects: Mapping[str, str] | None = None
    ) -> None:
        """Writes files of a folder as objects of the same names.

        Args:
          objects: of files whose objects have others.
        """
        names = list(names)
        if names:
            paths = [os.path.join(folder, name) for name in names]
            with self._asking("write"):
                self._files.put(paths, self._paths_of(names, objects))

    def _paths_of(self, names: Iterable[str], objects: Mapping[str, str] | None) -> list[str]:
        return [self._path((objects or {}).get(name, name)) for name in names]

    def fetch(
        self, folder: str, names: Iterable[str], objects: Mapping[str, str] | None = None
    ) -> None:
        """Reads objects into files of the same names below a folder.

        Args:
          objects: of files whose objects have others.

        Raises:
          Gone: one is not there (any more).
          UserError: the store cannot be read, the disk cannot be written, or a name would lead out
            of the folder.
        """
        names = list(names)
        if not names:
            return
        self._check_names(names)
        self._check_names((objects or {}).values())
        paths = [os.path.join(folder, name) for name in names]
        try:
            for parent in {os.path.dirname(path) for path in paths}:
                os.makedirs(parent, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"expected to write a copy of {self.address} ({self._what}) into {folder}, found "
                f"{error.strerror}; free space, rename what is both object and folder, or set "
                f"{FOLDER_VARIABLE} to another folder"
            ) from None
        with self._asking("read"):
            try:
                self._files.get(self._paths_of(names, objects), paths)
            except FileNotFoundError as error:
                raise Gone(
                    f"expected all objects of {self.address} ({self._what}) to stay, found one "
                    f"gone ({_words(error)}); bring it back, or wait for who writes there"
                ) from None
            except OSError as error:
                if error.filename is None or not str(error.filename).startswith(folder):
                    raise
                raise UserError(
                    f"expected to write a copy of {self.address} ({self._what}) into {folder}, "
                    f"found {error.strerror}; free space, or set {FOLDER_VARIABLE} to another "
                    "folder"
                ) from None


def _words(error: BaseException) -> str:
    kind = type(error).__name__
    text = reason_of(error, 200).rstrip(". ") if str(error) else ""
    if isinstance(error, PermissionError):
        return f"no rights ({text})"
    plain = isinstance(error, ImportError | FileNotFoundError) and text
    return text if plain else f"{kind}: {text}"


def _entry(about: dict[str, Any]) -> Entry:
    version = "/".join(str(about[key]) for key in _VERSIONS if about.get(key))
    md5 = about.get("md5Hash") or ""
    with contextlib.suppress(ValueError, TypeError):
        md5 = base64.b64decode(md5, validate=True).hex()
    return Entry(int(about.get("size") or 0), version, str(md5))


def whole_place(path: str, what: str) -> str:
    """Returns an address as it is, and a path of this machine as `core.files.expanded`."""
    return path if is_address(path) else expanded(path, what)


def fetched(path: str, what: str) -> str:
    """Returns a folder of this machine with the files at `path`: itself, or a copy of an address.

    A copy is made once for what the store tells of its objects (sizes, and what changes with their
    content): other objects there make another copy. It is whole or absent. Sizes are checked, and
    MD5 where the store tells one. Objects with a dot in front of a name are left out.

    Args:
      what: the path is, for messages: 'config.data_dir'.

    Raises:
      UserError: the store cannot be read, has nothing there, or what `sent` was ended in the midst
        of, or changes meanwhile; a file is another than the store says; the copy cannot be written.
    """
    if not is_address(path):
        return path
    store = Store(path, what)
    entries = _visible(store)
    if not entries:
        raise UserError(f"expected files below {path} ({what}), found none; correct the address")
    if is_begun(store):
        raise UserError(
            f"expected a whole folder at {path} ({what}), found one that is being sent, or was "
            "until that program ended; wait for it or run its command again, or remove "
            f"{RECORD} there if other files have taken its place"
        )
    told = json.dumps([dataclasses.astuple(entry) for entry in entries.values()] + [*entries])
    folder = f"{local_copy(path)}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    if os.path.isdir(folder):
        return folder
    size = sum(entry.size for entry in entries.values())
    _LOG.info("fetching %d files, %.3g GB, of %s into %s", len(entries), size / 1e9, path, folder)
    with _scratch(folder, path, what) as temporary:
        store.fetch(temporary, entries)
        for name, entry in entries.items():
            _check(os.path.join(temporary, name), entry, f"{path}/{name}")
        if _visible(store) != entries:
            raise UserError(
                f"expected {path} ({what}) to stay as it is while it is fetched, found other "
                "objects after it; wait for who writes there and run the same command again"
            )
        _put(temporary, folder)
    return folder


@contextlib.contextmanager
def sent(path: str, what: str) -> Iterator[str]:
    """Gives a folder of this machine to be written, which is sent to `path` once the block is done.

    A path of this machine is the folder itself. Of an address that already has files it is a copy
    of these, and nothing is sent. Where the block fails nothing is sent either.

    Args:
      what: the path is, for messages: '--data_dir'.

    Raises:
      UserError: the store cannot be read or written; of the block, with the address in the place of
        the folder.
    """
    if not is_address(path):
        yield path
        return
    store = Store(path, what)
    begun = is_begun(store)
    with contextlib.ExitStack() as stack:
        if _visible(store) and not begun:
            folder = fetched(path, what)
        else:
            _write_record(store, {})  # what cannot be written to is found out before the work
            folder = stack.enter_context(_scratch(local_copy(path), path, what))
        try:
            yield folder
        except UserError as error:
            raise UserError(str(error).replace(folder, path)) from error
        if _visible(store) == {} or begun:
            send_folder(store, folder)


def _visible(store: Store) -> dict[str, Entry]:
    return {
        name: entry
        for name, entry in store.entries().items()
        if not any(part.startswith(".") for part in name.split("/"))
    }


@contextlib.contextmanager
def _scratch(folder: str, address: str, what: str) -> Iterator[str]:
    try:
        with scratch_folder(folder) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(
            f"expected to write a copy of {address} ({what}) to {folder}, found "
            f"{error.strerror or error}; free space, or set {FOLDER_VARIABLE} to another folder"
        ) from error


def _put(temporary: str, folder: str) -> None:
    try:
        os.replace(temporary, folder)
    except OSError:
        if not os.path.isdir(folder):  # another process fetched the same first
            raise


def _check(path: str, entry: Entry, address: str) -> None:
    size = os.path.getsize(path)
    if size != entry.size:
        raise UserError(
            f"expected {entry.size} bytes of {address}, found {size}; run the same command again"
        )
    if entry.md5:
        with open(path, "rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        if md5 != entry.md5:
            raise UserError(
                f"expected the MD5 {entry.md5} of {address}, found {md5}; run the same command "
                "again"
            )


def send_folder(
    store: Store, folder: str, left_out: Collection[str] = (), *, by_content: bool = False
) -> None:
    """Sends the files of a folder that the store does not have yet, and what describes them last.

    JSON files follow the others, since they tell that those are whole. What is described stays as
    it is, whoever makes another of the same name: files that go with each other stay those of one
    maker. Others who send other files of the same folder at the same time may have to send theirs
    again.

    Args:
      left_out: folders in it that are not sent.
      by_content: whether others may send files of the same names at the same time: a file NAME is
        then the object NAME~CHECKSUM, and only `fetch_folder` finds it. Else it is NAME.

    Raises:
      UserError: the store cannot be written; what it described before stays described.
    """
    there = _read_record(store)
    names = [name for name in sorted(_files(folder)) if name not in (there or {})]
    new = [name for name in names if name.partition("/")[0] not in left_out]
    if not new and there is not None:
        return
    described = checksums.describe(folder, new)
    if by_content:
        for name, told in described.items():
            told["object"] = f"{name}~{told['xxh3']}"
    objects = _objects(described)
    _LOG.info("sending %d files to %s", len(new), store.address)
    if there is None:
        _write_record(store, {})
    store.send(folder, [name for name in new if not name.endswith(".json")], objects)
    store.send(folder, [name for name in new if name.endswith(".json")], objects)
    _write_record(store, described | (_read_record(store) or {}))


def _objects(described: dict[str, Any]) -> dict[str, str]:
    """Returns the objects of described files that have other names."""
    return {name: told["object"] for name, told in described.items() if "object" in told}


def sent_names(store: Store) -> set[str]:
    """Returns the names of the files that `send_folder` has sent whole."""
    return set(_read_record(store) or {})


def fetch_folder(store: Store, folder: str) -> bool:
    """Makes the folder of what `send_folder` has sent; False where it has sent nothing whole.

    Raises:
      UserError: the store cannot be read, a file is another than was sent, or the folder cannot be
        written, which is whole or absent.
    """
    files = _read_record(store)
    if not files:
        return False
    _LOG.info("fetching %d files of %s into %s", len(files), store.address, folder)
    with _scratch(folder, store.address, "a copy") as temporary:
        store.fetch(temporary, files, _objects(files))
        checksums.check(temporary, files, f"remove {store.address} and run the command again")
        _put(temporary, folder)
    return True


def is_begun(store: Store) -> bool:
    """Tells whether `send_folder` or `sent` was ended before anything was whole."""
    return _read_record(store) == {}


def _files(folder: str) -> Iterator[str]:
    """Yields the files below a folder that are whole, without locks and other hidden ones."""
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(at, name), folder)


def _read_record(store: Store) -> dict[str, Any] | None:
    content, what = store.read(RECORD), "the record of what was sent"
    if content is None:
        return None
    path, remedy = f"{store.address}/{RECORD}", f"remove {store.address}"
    files: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(content)
        if isinstance(record, dict) and record.get("format") == _FORMAT:
            files = checksums.unsealed(record, path, what, remedy).get("files")
    if not isinstance(files, dict) or not all(
        isinstance(about, dict)
        and {"bytes", "xxh3"} <= about.keys()
        and isinstance(about.get("object", ""), str)
        for about in files.values()
    ):
        raise UserError(f"expected {what} at {path}, found something else; {remedy}")
    return files


def _write_record(store: Store, files: dict[str, Any]) -> None:
    record = checksums.sealed({"format": _FORMAT, "files": files})
    store.write(RECORD, json.dumps(record, indent=2).encode())
