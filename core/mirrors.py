"""Keeps the workdir of a run in an object store, so that another machine can go on with it.

A run writes a folder of this machine, as any run does (`core.object_store.local_copy`). Beside it a
thread copies to the store what is new. What the store has of a run is

    lease.json                  who writes it
    snapshot.json               every file of the workdir: bytes, checksum, the object that has it
    workdir/NAME~CHECKSUM       these objects, which are never written again

A snapshot is the folder at one moment, as a kill would have left it; it replaces the one before at
once, by one object. So a run that is killed with its machine goes on from the last snapshot, as it
would from its folder. Only one process at a time writes: it creates the lease where there is none
and renews it. Who finds a lease waits until it changes, and is refused, or until it has not for
`LEASE_S`, and takes it; clocks need not agree. Who finds that the lease has become another's stops.
Stores know no locks: a process that slept that long may wake up and write one snapshot more before
it sees that. Then one whole snapshot replaces another; they are never mixed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from core import checksums, distributed, signals
from core.errors import UserError
from core.files import PARTIAL, locked, write_atomically
from core.object_store import FOLDER_VARIABLE, TRIED, Store, is_address, local_copy
from core.termination import end_with
from core.workdir import is_writer

_LOG = logging.getLogger(__name__)

# Seconds that a lease lives unrenewed, between its renewals, and between looks at one.
LEASE_S, _RENEWED_S, _LOOK_S = 30.0, 5.0, 1.0
# Seconds between snapshots, and what sets others.
EVERY_S, EVERY_VARIABLE = 10.0, "LCRSR_SNAPSHOT_S"
FORMAT = 1
_LEASE, _SNAPSHOT, _OBJECTS = "lease.json", "snapshot.json", "workdir/"
_OBJECT = re.compile(r"workdir/.+~[0-9a-f]{16}")
_UNFINISHED = ".orbax-checkpoint-tmp"
# Folders whose files of more bytes are never changed in place, so that links do for copies.
_WRITTEN_ONCE, _SMALL = ("checkpoints", "serving"), 2**16
# How often a moment without changes is tried for, and the seconds between.
_ATTEMPTS, _PAUSE_S = 40, 0.05
# (bytes, time of change, number on its disk) by the name of a file.
_State = dict[str, tuple[int, int, int]]


def _seconds() -> float:
    """Returns the seconds between snapshots.

    Raises:
      UserError: the environment names no positive number.
    """
    given = os.environ.get(EVERY_VARIABLE, str(EVERY_S))
    with contextlib.suppress(ValueError):
        if 0 < float(given) < math.inf:
            return float(given)
    raise UserError(
        f"expected a positive number of seconds in the environment's {EVERY_VARIABLE}, found "
        f"{given!r}; correct it"
    )


def _state(place: str) -> _State:
    """Returns what tells the files of a workdir from later ones; what is being written is none."""
    state = {}
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if not name.endswith(_UNFINISHED)]
        folders[:] = [name for name in folders if not name.startswith(PARTIAL)]
        for name in names:
            if not name.startswith((PARTIAL, ".lock")):
                path = os.path.join(folder, name)
                told = os.stat(path)
                key = os.path.relpath(path, place)
                state[key] = (told.st_size, told.st_mtime_ns, told.st_ino)
    return state


def _same_moment(before: _State, after: _State) -> bool:
    """Tells whether nothing happened between two states but that files have grown at their end.

    What a kill cuts off such files is dropped when the run goes on.
    """
    return before.keys() == after.keys() and all(
        old == new or (old[2] == new[2] and old[0] < new[0])
        for old, new in ((before[name], after[name]) for name in before)
    )


@contextlib.contextmanager
def _held(place: str, what: str) -> Iterator[None]:
    """Makes a folder, and keeps the processes of this machine from changing it at once."""
    with _made(place, what):
        os.makedirs(place, exist_ok=True)
    with locked(f"{place}.lock"):
        yield


@contextlib.contextmanager
def _made(place: str, what: str) -> Iterator[None]:
    """Turns an `OSError` of making a folder, or what lies beside it, into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"expected to make {place}, the copy of {what}, found {error.strerror or error}; set "
            f"{FOLDER_VARIABLE} to another folder"
        ) from error


class LeaseLost(UserError):
    """Tells that another process has taken the lease of this one."""


class Mirror:
    """Holds the workdir of one run at an address, from `open` to `close`.

    Args:
      address: such as s3://bucket/runs/1.
      what: it is, for messages.
      every_s: seconds between snapshots; None for those of LCRSR_SNAPSHOT_S, or 10.
      lease_s: seconds that a lease lives unrenewed.

    Attributes:
      place: the folder of this machine that the run writes.
      lost: what to end with where another process has taken the lease; None while none has.

    Raises (from every method):
      UserError: the store refuses or cannot be reached.
    """

    def __init__(
        self,
        address: str,
        what: str = "--workdir",
        *,
        every_s: float | None = None,
        lease_s: float = LEASE_S,
    ):
        self.address, self._what = address.rstrip("/"), what
        self._store = Store(self.address, what)
        self.place = local_copy(self.address)
        self._every_s = _seconds() if every_s is None else every_s
        self._lease_s = lease_s
        self._token = secrets.token_hex(8)
        self._own_lock: Any = None
        # Of the thread that saves snapshots, and of the one that renews the lease.
        self._saved_enough, self._ended = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._saving: Any = None
        # Where a store replaces no object at once, none of them reads what the other writes.
        self._renewing = threading.Lock()
        self._failure = ""
        self.lost: LeaseLost | None = None
        self._pushed: _State = {}

    # What is beside the folder: which snapshot it was copied from or to, and whose lease is ours.
    @property
    def _base_file(self) -> str:
        return f"{self.place}.snapshot.json"

    @property
    def _token_file(self) -> str:
        return f"{self.place}.lease"

    def pull(self) -> None:
        """Makes the folder of this machine the newest snapshot, unless it goes on from that one.

        Raises:
          UserError: an object is missing or has other content; or the snapshot that the folder was
            copied from is gone.
        """
        with _held(self.place, self._what):
            snapshot, base = self._read_snapshot(), self._base()
            if snapshot is None:
                if base is not None:
                    raise UserError(
                        f"expected the run that {self.place} is a copy of at {self.address}, found "
                        "none; bring it back, or remove that folder to begin anew"
                    )
                return
            if base is not None and base["writing"] == snapshot["writing"]:
                return
            _LOG.info("copying %s to %s", self.address, self.place)
            # A copy that is ended halfway is no snapshot's.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._base_file)
            self._write_base(self._copy_newest(snapshot))

    def _copy_newest(self, snapshot: dict[str, Any]) -> dict[str, Any]:
        """Copies a snapshot, or the one that a running job replaces it with meanwhile."""
        while True:
            try:
                self._copy(snapshot)
                return snapshot
            except UserError:
                newer = self._read_snapshot()
                if newer is None or newer["writing"] == snapshot["writing"]:
                    raise
                snapshot = newer

    def _copy(self, snapshot: dict[str, Any]) -> None:
        files, scratch = snapshot["files"], f"{self.place}.fetched"
        wanted = []
        for name, told in sorted(files.items()):
            path = os.path.join(self.place, name)
            here = os.path.isfile(path) and os.path.getsize(path) == told["bytes"]
            if not (here and checksums.of_file(path) == told["xxh3"]):
                wanted.append(name)
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            self._store.fetch(scratch, [files[name]["object"] for name in wanted])
            described = {files[n]["object"]: files[n] for n in wanted}
            checksums.check(
                scratch, described, f"restore {self.address}, or pass another {self._what}"
            )
            for name in wanted:
                path = os.path.join(self.place, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.replace(os.path.join(scratch, files[name]["object"]), path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        for name in _state(self.place):
            if name not in files:
                os.unlink(os.path.join(self.place, name))
        for folder, _, _ in os.walk(self.place, topdown=False):
            # A folder of a checkpoint that is gone would be taken for one that is damaged.
            if folder.endswith(_UNFINISHED):
                shutil.rmtree(folder)
            elif folder != self.place and not os.listdir(folder):
                os.rmdir(folder)

    def _read_snapshot(self) -> dict[str, Any] | None:
        """Returns the newest snapshot; None where no run has written one."""
        content = self._store.read(_SNAPSHOT)
        if content is None:
            return None
        where, remedy = f"{self.address}/{_SNAPSHOT}", f"restore it, or pass another {self._what}"
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise UserError(f"expected the snapshot of a run at {where}, found no JSON; {remedy}")
        snapshot = checksums.unsealed(values, where, "the snapshot of a run", remedy)
        if snapshot.get("format") != FORMAT:
            raise UserError(
                f"expected format {FORMAT} at {where}, found {snapshot.get('format')!r}; {remedy}"
            )
        for name, told in snapshot["files"].items():
            parts = name.split("/")
            if any(part in ("", ".", "..") for part in parts) or not _OBJECT.fullmatch(
                told["object"]
            ):
                raise UserError(f"expected names of files at {where}, found {name!r}; {remedy}")
        return snapshot

    def _base(self) -> dict[str, Any] | None:
        try:
            with open(self._base_file, encoding="utf-8") as file:
                base = json.load(file)
        except (OSError, ValueError):
            return None
        return base if isinstance(base, dict) and "writing" in base else None

    def _write_base(self, snapshot: dict[str, Any]) -> None:
        write_atomically(self._base_file, json.dumps(snapshot))

    def sign(self) -> str:
        """Leaves a word beside the folder, by which other processes see that they share it."""
        write_atomically(f"{self.place}.signed", self._token)
        return self._token

    def is_signed(self, word: str) -> bool:
        """Tells whether the process that said `word` has left it here."""
        with contextlib.suppress(OSError), open(f"{self.place}.signed", encoding="utf-8") as file:
            return file.read() == word
        return False

    def open(self) -> None:
        """Takes the address for this process, and brings its folder up to date.

        Raises:
          UserError: another running process has it, or something else than a run is there.
        """
        with _made(self.place, self._what):
            os.makedirs(os.path.dirname(self.place), exist_ok=True)
            self._own_lock = open(f"{self.place}.held", "ab")  # noqa: SIM115 - held as the run lives
        try:
            try:
                fcntl.flock(self._own_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._taken("this machine") from None
            self._check_place()
            self._take_lease()
            self._start(self._renew, _RENEWED_S, self._ended)
            self.pull()
            snapshot = self._base()
            wanted = {told["object"] for told in snapshot["files"].values()} if snapshot else set()
            left = [name for name in self._store.entries() if _OBJECT.fullmatch(name)]
            self._store.remove([name for name in left if name not in wanted])
            self._saving = self._start(self._push_quietly, self._every_s, self._saved_enough)
        except BaseException:
            self._stop()
            raise

    def _check_place(self) -> None:
        """Refuses an address with other objects than a run's."""
        own = (_LEASE, _SNAPSHOT, TRIED)
        others = [n for n in self._store.entries() if n not in own and not _OBJECT.fullmatch(n)]
        if others:
            raise UserError(
                f"expected {self.address} to be empty or a run's workdir, found {others[0]} in it; "
                f"pass another {self._what}"
            )

    def _taken(self, owner: str) -> UserError:
        return UserError(
            f"expected the workdir {self.address} to be free, found another running process in it "
            f"({owner}); wait for that run or pass another {self._what}"
        )

    def _lease(self) -> bytes:
        told = {"owner": socket.gethostname(), "token": self._token, "renewed": time.time()}
        return json.dumps(told).encode()

    def _owner(self, lease: bytes | None) -> dict[str, Any]:
        try:
            told = json.loads(lease or b"")
        except ValueError:
            told = None
        return told if isinstance(told, dict) else {}

    def _take_lease(self) -> None:
        # What this machine's last run has left, whose lock is free, has no owner any more.
        own = ""
        self._store.check_writable()
        with contextlib.suppress(OSError), open(self._token_file, encoding="utf-8") as file:
            own = file.read()
        write_atomically(self._token_file, self._token)
        if self._store.create(_LEASE, self._lease()):
            return
        first = self._store.read(_LEASE)
        owner = self._owner(first)
        if owner.get("token") != own:
            _LOG.info(
                "%s: waiting up to %.0f s to see whether the run on %s lives",
                self.address,
                self._lease_s,
                owner.get("owner"),
            )
            deadline = time.monotonic() + self._lease_s
            while time.monotonic() < deadline:
                time.sleep(min(_LOOK_S, self._lease_s / 4))
                now = self._store.read(_LEASE)
                if now is None:
                    if self._store.create(_LEASE, self._lease()):
                        return
                    now = self._store.read(_LEASE)
                if now != first:
                    raise self._taken(str(self._owner(now).get("owner")))
        self._store.write(_LEASE, self._lease())
        # Of two who take it at once the later one has it.
        time.sleep(min(_LOOK_S, self._lease_s / 4))
        owner = self._owner(self._store.read(_LEASE))
        if owner.get("token") != self._token:
            raise self._taken(str(owner.get("owner")))

    def _check_lease(self, renew: bool = False) -> None:
        with self._renewing:
            owner = self._owner(self._store.read(_LEASE))
            if renew and owner.get("token") == self._token:
                self._store.write(_LEASE, self._lease())
        if owner.get("token") != self._token:
            name = f"the run on {owner['owner']}" if "owner" in owner else "a run that has ended"
            raise LeaseLost(
                f"expected to keep the lease of {self.address} ({self._what}), found it taken by "
                f"{name}, as one is that was not renewed for {self._lease_s:.0f} s; leave the "
                "workdir to that run, which went on from the last snapshot: what this one has made "
                f"since is in {self.place} alone, until the next command there"
            )

    def _renew(self) -> None:
        try:
            self._check_lease(renew=True)
        except LeaseLost as error:
            self._end_with(error)
        except UserError as error:
            _LOG.warning("%s", error)

    def _end_with(self, error: LeaseLost) -> None:
        """Ends the run, which can save nothing any more."""
        if self.lost is None:
            self.lost = error
            self._saved_enough.set()
            self._ended.set()
            end_with(error)

    def _start(self, doing: Any, every_s: float, ended: threading.Event) -> threading.Thread:
        def work() -> None:
            while not ended.wait(every_s):
                doing()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._threads.append(thread)
        return thread

    def _push_quietly(self) -> None:
        try:
            self.push()
            self._failure = ""
        except LeaseLost as error:
            self._end_with(error)
        except (UserError, OSError) as error:
            if not self._failure:
                _LOG.warning("no snapshot was saved: %s; the run goes on", error)
            self._failure = str(error)

    def push(self) -> None:
        """Saves a snapshot of the folder, unless nothing is new.

        Raises:
          LeaseLost: the lease is another's.
        """
        frozen = f"{self.place}.frozen"
        try:
            state = self._freeze(frozen)
            if state is not None:
                self._save(frozen, state)
        finally:
            shutil.rmtree(frozen, ignore_errors=True)

    def _freeze(self, frozen: str) -> _State | None:
        """Copies or links all that is new as it was at one moment.

        Returns:
          The state of the folder at that moment; None where nothing is new, or no moment came.
        """
        for _ in range(_ATTEMPTS):
            shutil.rmtree(frozen, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # something went meanwhile
                before = _state(self.place)
                if before == self._pushed:
                    return None
                for name, told in before.items():
                    if self._pushed.get(name) == told:
                        continue
                    path, copy = os.path.join(self.place, name), os.path.join(frozen, name)
                    os.makedirs(os.path.dirname(copy), exist_ok=True)
                    once = name.split(os.sep)[0] in _WRITTEN_ONCE
                    (os.link if once and told[0] > _SMALL else shutil.copyfile)(path, copy)
                if _same_moment(before, _state(self.place)):
                    return before
            time.sleep(_PAUSE_S)
        return None

    def _save(self, frozen: str, state: _State) -> None:
        base = self._base() or {"files": {}}
        files, new, objects = {}, [], os.path.join(frozen, PARTIAL)
        there = {told["object"] for told in base["files"].values()}
        for name in sorted(state):
            copy = os.path.join(frozen, name)
            if os.path.exists(copy):
                (told,) = checksums.describe(frozen, [name]).values()
                told["object"] = f"{_OBJECTS}{name}~{told['xxh3']}"
            else:
                told = base["files"][name]
            files[name] = told
            if told["object"] not in there:
                path = os.path.join(objects, told["object"])
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.replace(copy, path)
                new.append(told["object"])
        self._store.send(objects, new)
        self._check_lease()
        snapshot = {"format": FORMAT, "writing": secrets.token_hex(8), "files": files}
        with _held(self.place, self._what):
            content = json.dumps(checksums.sealed(snapshot)).encode()
            self._store.write(_SNAPSHOT, content)
            self._write_base(snapshot)
        self._pushed = state
        # Whose lease it is meanwhile may have them in a snapshot.
        self._check_lease()
        self._store.remove(sorted(there - {told["object"] for told in files.values()}))

    def _stop(self) -> None:
        self._saved_enough.set()
        self._ended.set()
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(UserError):
            if self._owner(self._store.read(_LEASE)).get("token") == self._token:
                self._store.remove([_LEASE])
        self._own_lock.close()
        signals.set_reason(None)

    def close(self) -> None:
        """Saves the last snapshot and leaves the address to others.

        Raises:
          UserError: the snapshot could not be saved. The folder has the run, and opening the same
            address on this machine goes on from there, unless the lease is lost.
        """
        try:
            # Not the thread's: two at once would share the frozen folder. The lease is renewed
            # meanwhile: the last snapshot may take longer than it lives.
            self._saved_enough.set()
            self._saving.join()
            if self.lost is not None:
                raise self.lost
            self.push()
        except LeaseLost:
            raise
        except (UserError, OSError) as error:
            raise UserError(
                f"{error}; the run is whole in {self.place}: the same command on this machine "
                "goes on from there, unless another machine has gone on meanwhile"
            ) from error
        finally:
            self._stop()


@contextlib.contextmanager
def mirrored(workdir: str) -> Iterator[str]:
    """Yields the folder of this machine that a run writes in the block, for a path or an address.

    A path is its own folder. At an address what the block has left in the folder is there too once
    it has ended, however it ended. Of several processes the first mirrors it for all.

    Raises:
      UserError: as `Mirror`; or not all processes share a machine.
    """
    if not is_address(workdir):
        yield workdir
        return
    mirror = Mirror(workdir)
    if is_writer():
        mirror.open()
    try:
        token = distributed.of_first(mirror.sign() if is_writer() else None)
        if not all(distributed.of_all(mirror.is_signed(token))):
            raise UserError(
                f"expected all processes of the job on one machine with --workdir={workdir}, found "
                "several; mount the store (for instance with gcsfuse) and pass the folder"
            )
        yield mirror.place
    except BaseException:
        if is_writer():
            try:
                mirror.close()
            except UserError as error:
                if error is not mirror.lost:  # which the body has ended with
                    _LOG.warning("%s", error)
        raise
    if is_writer():
        mirror.close()


def copied_run(workdir: str, what: str = "--workdir") -> str:
    """Returns a folder of this machine with the run of a path or an address, to be read alone.

    Args:
      what: the path or address is, for messages: 'config.identifiers'.

    Raises:
      UserError: as `Mirror`; or there is no run at the address.
    """
    if not is_address(workdir):
        return workdir
    mirror = Mirror(workdir, what)
    mirror.pull()
    if not os.path.exists(mirror.place) or not os.listdir(mirror.place):
        raise UserError(
            f"expected the workdir of a run at {mirror.address} ({what}), found none; correct it"
        )
    return mirror.place
