"""Keeps a run's folder: resolved config, results, and the rule that one run owns it.

Layout: `config.json` (with the version that wrote it), `log.json` (the data's hash),
`metrics.jsonl`, TensorBoard events, `checkpoints/STAGE/`, `per_user/`, `results.json`, `summary.md`
and the curves as PNG; beside them `.lock*`, which running processes hold, and `.partial-*`, which
writers rename once they are whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import jax
import numpy as np
from flax import traverse_util

from core import distributed, result_rows, run_schema
from core.errors import UserError
from core.files import (
    PARTIAL,
    expanded,
    locked,
    read_json,
    remove_abandoned,
    save_npz,
    write_atomically,
)
from core.run_writer import RunWriter
from core.version import VERSION

# Where things lie, on this machine or its devices, are shown or kept does not change what is
# computed.
_LOCATION_KEYS = ("cache_dir", "data.kept_events", "loop.writers", "mesh.data", "mesh.model")
_CONFIG_FILE, _LOG_FILE, _RESULTS_FILE = "config.json", "log.json", "results.json"
_LOCK = ".lock"
_RESTORE = "restore the file, or train again in another --workdir"


def is_writer() -> bool:
    """Tells whether this process writes what a run has once, whatever the number of processes."""
    return jax.process_index() == 0


def commit_id() -> str:
    """Returns the library's git commit, `-dirty` if the tree has changes.

    Where it is installed outside a repository of its own it is `release 0.2.0`, by its version.
    """
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    try:
        # Installed, it may lie in a repository of the user's.
        if os.path.realpath(_git(root, "rev-parse", "--show-toplevel")) != root:
            return f"release {VERSION}"
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return f"release {VERSION}"
    return head + ("-dirty" if changed else "")


def _git(folder: str, *words: str) -> str:
    command = ["git", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config's values by 'section.key'."""
    return traverse_util.flatten_dict(config, sep=".")


def check_mounted(path: str, what: str) -> None:
    """Refuses addresses such as gs://bucket/run, which would become a folder of that name here.

    Raises:
      UserError: it is one.
    """
    if "://" in path:
        raise UserError(
            f"expected {what} on a mounted file system, found {path}; mount it (for instance with "
            "gcsfuse) and pass the folder"
        )


class Workdir:
    """Reads and writes the folder of one run, opened by `open_workdir`.

    A `with` block leaves it to other processes at its end, however it ends.

    Raises:
      UserError: the path is an address, or begins with a `~` that is nobody's home.
    """

    def __init__(self, path: str):
        check_mounted(path, "--workdir")
        self.path = expanded(path, "--workdir")
        # Opened for a run by `core.run_logging.logging_run`; None: nobody has.
        self.writers: Sequence[RunWriter] | None = None
        self._locks: list[TextIO] = []

    def file(self, *parts: str) -> str:
        """Returns a path inside the workdir, whose folder is made.

        Raises:
          UserError: it cannot be made.
        """
        path = os.path.join(self.path, *parts)
        folder = os.path.dirname(path)
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"expected to make the folder {folder}, found {error.strerror or error}; free "
                "space or pass another --workdir"
            ) from error
        return path

    def lock(self, share: int | None = None) -> None:
        """Takes the workdir for this process, or one share of it, which leaves it the others.

        Raises:
          UserError: another running process has it, or it cannot be written.
        """
        self._take(_LOCK, fcntl.LOCK_EX if share is None else fcntl.LOCK_SH)
        if share is not None:
            self._take(f"{_LOCK}-{share}", fcntl.LOCK_EX)

    def __enter__(self) -> Workdir:
        return self

    def __exit__(self, *raised: object) -> None:
        # What holds the workdir may live on: experiments have cycles, and notebooks keep them.
        while self._locks:
            self._locks.pop().close()

    def _take(self, name: str, kind: int) -> None:
        path = self.file(name)
        try:
            file = open(path, "a")  # noqa: SIM115 - held while the run lives
        except OSError as error:
            raise UserError(
                f"expected to write in {self.path}, found {error.strerror}; pass another --workdir"
            ) from error
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise UserError(
                f"expected the workdir {self.path} to be free, found another running process in "
                "it; wait for that run or pass another --workdir"
            ) from error
        except OSError as error:
            file.close()
            raise UserError(
                f"expected a file system with locks at {self.path}, found {error.strerror}; pass "
                "a --workdir on another one"
            ) from error
        self._locks.append(file)

    def alone(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Holds a lock of `what` during a block that reads, changes and writes a file.

        It waits for others, running or not, that change the same; a run's own lock does not keep
        out `launch.evaluate`.
        """
        return locked(self.file(f"{_LOCK}-{what}"))

    def remove_abandoned(self) -> None:
        """Removes `.partial-*` of killed writers; living ones keep theirs."""
        for folder, folders, _ in os.walk(self.path):
            # Checkpoints look after their own; the runs of a sweep are opened one by one.
            folders[:] = [name for name in folders if name not in ("checkpoints", "arms")]
            remove_abandoned(folder)

    def read_config(self) -> dict[str, Any]:
        """Returns the resolved config.

        Raises:
          UserError: there is none, it is not what a run has written, or as
            `core.run_schema.unstamped`.
        """
        path = os.path.join(self.path, _CONFIG_FILE)
        if not os.path.lexists(path):
            raise UserError(
                f"expected a training workdir with a {_CONFIG_FILE}, found none in {self.path}; "
                "pass the --workdir of a run of launch.train"
            )
        return run_schema.unstamped(read_json(path, "the config of a run", _RESTORE), path)

    def read_setting(self, key: str, kind: type) -> Any:
        """Returns the setting 'section.name' of the run's config.

        Raises:
          UserError: as `read_config`, or there is none of that kind.
        """
        value: Any = self.read_config()
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if not result_rows.is_a(value, kind):
            raise UserError(
                f"expected {key} in {os.path.join(self.path, _CONFIG_FILE)}, found none that "
                f"fits; {_RESTORE}"
            )
        return value

    def check_log(self, log_hash: str) -> None:
        """Refuses data other than the run was trained on; passes where no run has begun.

        Raises:
          UserError: the run was trained on another log, or its log.json is missing or damaged.
        """
        before = self._log_hash()
        if before is not None and before != log_hash:
            raise UserError(
                f"expected the log {before} that the run in {self.path} was trained on, found "
                f"{log_hash}: the data, or how the library reads it, has changed; bring that data "
                "or version back, or pass another --workdir"
            )

    def has_trained(self) -> bool:
        """Tells whether a stage has saved a checkpoint in the workdir."""
        return bool(glob.glob(os.path.join(glob.escape(self.path), "checkpoints", "*", "[0-9]*")))

    def _log_hash(self) -> str | None:
        """Returns the hash of the log that the run was trained on; None where no run has begun."""
        path = os.path.join(self.path, _LOG_FILE)
        if os.path.lexists(path):
            what = "the data that a run was trained on"
            log_hash = read_json(path, what, _RESTORE).get("hash")
            if not isinstance(log_hash, str):
                raise UserError(f"expected {what} as 'hash' in {path}, found none; {_RESTORE}")
            return log_hash
        if os.path.lexists(os.path.join(self.path, _CONFIG_FILE)):
            raise UserError(
                f"expected {_LOG_FILE}, which says on what data the run in {self.path} was "
                f"trained, found none; {_RESTORE}"
            )
        return None

    def read_results(self) -> dict[str, Any]:
        """Returns {'rows': [...]}, one row a stage, split and protocol; none before the first.

        Raises:
          UserError: results.json cannot be read, a row lacks what every row has, or the run is of
            another schema (`core.run_schema.unstamped`).
        """
        if os.path.lexists(os.path.join(self.path, _CONFIG_FILE)):
            self.read_config()  # what another schema calls a row says nothing here
        path = os.path.join(self.path, _RESULTS_FILE)
        if not os.path.lexists(path):
            return {"rows": []}
        results = read_json(path, "the results of a run", _RESTORE)
        rows = results.get("rows")
        if not isinstance(rows, list):
            raise UserError(f"expected a list 'rows' in {path}, found none; {_RESTORE}")
        for number, row in enumerate(rows):
            result_rows.check_row(row, f"row {number} of {path}", _RESTORE)
        return results

    def change_results(
        self, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
    ) -> None:
        """Replaces the rows by what `change` returns for the current rows.

        No other process can change them meanwhile. Only the writing process does anything.
        """
        if not is_writer():
            return
        with self.alone("results"):
            results = self.read_results()
            results["rows"] = change(results["rows"])
            text = json.dumps(results, indent=2) + "\n"
            write_atomically(self.file(_RESULTS_FILE), text)

    def write_result_row(
        self,
        row: dict[str, Any],
        per_user: Mapping[str, np.ndarray] | None = None,
        ranks: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Adds a row, or replaces the one with the same stage, split and protocol.

        What only the old row tells, such as what a stage was trained on, stays for the same step.

        Args:
          per_user: arrays [E] of the examples behind the row, for the file row['per_user'].
          ranks: arrays [E, ...] of their rankings, for the file row['ranks'].
        """

        def with_row(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            for entry, arrays in (("per_user", per_user), ("ranks", ranks)):
                if arrays is not None:
                    save_npz(self.file(*row[entry].split("/")), arrays, compressed=True)
            key = ("stage", "split", "protocol")
            others = [r for r in rows if any(r.get(k) != row.get(k) for k in key)]
            same = (r for r in rows if all(r.get(k) == row.get(k) for k in (*key, "step")))
            return [*others, next(same, {}) | row]

        self.change_results(with_row)

    def read_per_user(self, row: dict[str, Any], metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the examples behind a row, as `core.result_rows.read_per_user`."""
        return result_rows.read_per_user(self.path, row, metric)

    def read_ranks(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        """Returns the rankings behind a row, as `core.result_rows.read_ranks`."""
        return result_rows.read_ranks(self.path, row)


def check_out(path: str, flag: str, ending: str = "") -> None:
    """Refuses a file that could not be written, before the work whose result it takes.

    Args:
      flag: such as '--out', that gave the path.
      ending: such as '.npy', that its name must have.

    Raises:
      UserError: another ending, its folder is not there, or it is a folder itself.
    """
    # A link is written through: the folder is that of the file it leads to.
    folder = os.path.dirname(os.path.realpath(path))
    if not path.endswith(ending) or not os.path.isdir(folder) or os.path.isdir(path):
        raise UserError(
            f"expected {flag}=FILE{ending} in a folder that exists, found {path!r}; correct it"
        )


def check_no_file(path: str, flag: str = "--workdir") -> None:
    """Refuses a path that can be no folder, given by a flag.

    Raises:
      UserError: there is a file at the path, or at a folder above it.
    """
    place = os.path.abspath(path)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise UserError(f"expected a folder at {place}, found a file; pass another {flag}")


def check_workdir(path: str, config: dict[str, Any]) -> None:
    """Refuses a folder that a run with `config` must not write to.

    Raises:
      UserError: it holds a run with another config (names what differs), or other files; or it is
        no folder.
    """
    workdir = Workdir(path)
    check_no_file(workdir.path)
    if os.path.lexists(os.path.join(workdir.path, _CONFIG_FILE)):
        before, now = settings(workdir.read_config()), settings(json.loads(json.dumps(config)))
        differing = [
            key
            for key in sorted(before.keys() | now.keys())
            if key not in _LOCATION_KEYS and before.get(key) != now.get(key)
        ]
        if differing:
            key = differing[0]
            more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
            raise UserError(
                f"expected the config of the run in {workdir.path}, found another: {key} was "
                f"{before.get(key)!r} and is {now.get(key)!r}{more}; pass another --workdir"
            )
    # A run that was killed at its start has left its log and no config.
    elif os.path.isdir(workdir.path) and not has_only_scaffolding(workdir.path, _LOG_FILE):
        raise UserError(
            f"expected {workdir.path} to be empty or a run's workdir, found other files in it; "
            "pass another --workdir"
        )


def has_only_scaffolding(folder: str, *names: str) -> bool:
    """Tells whether a folder has only locks, what killed writers left, and files of `names`."""
    ours = (_LOCK, PARTIAL)
    return all(name.startswith(ours) or name in names for name in os.listdir(folder))


def open_workdir(path: str, config: dict[str, Any], log_hash: str | None = None) -> Workdir:
    """Opens a new workdir for `config`, or the one where the same config ran before, and locks it.

    Of several processes the first checks, locks and writes; the others go on once it is through.

    Args:
      log_hash: of the data that the run trains on; None for a run without data.

    Raises:
      UserError: as `check_workdir` and `Workdir.check_log`; or another running process has it.
    """
    workdir = Workdir(path)
    with distributed.first_alone():
        if is_writer():
            check_workdir(path, config)  # before a lock file lies in a stranger's folder
            workdir.lock()
            check_workdir(path, config)  # another process may have begun it meanwhile
            workdir.remove_abandoned()
            new = not os.path.lexists(os.path.join(workdir.path, _CONFIG_FILE))
            if log_hash is not None:
                if not new:
                    workdir.check_log(log_hash)
                # Before the config: a run that has one has its log.
                if new:
                    write_atomically(workdir.file(_LOG_FILE), json.dumps({"hash": log_hash}) + "\n")
            if new:
                text = json.dumps(run_schema.stamped(config), indent=2, sort_keys=True) + "\n"
                write_atomically(workdir.file(_CONFIG_FILE), text)
    return workdir
