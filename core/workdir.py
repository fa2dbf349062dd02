"""A run's folder: resolved config, results, and the rule that one run owns it.

Layout: `config.json`, `log.json` (the data's hash), `metrics.jsonl`, TensorBoard events,
`checkpoints/STAGE/`, `per_user/`, `results.json`, `summary.md` and the curves as PNG.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from typing import Any, TextIO

import jax

from core import distributed
from core.errors import UserError
from core.files import write_atomically

# Where things lie, on this machine or its devices, does not change what is computed.
_LOCATION_KEYS = ("cache_dir", "mesh.data", "mesh.table")
_LOG_FILE = "log.json"
# Keys that configs got after there were runs, with the values that leave everything as it was.
_ADDED_KEYS = {
    "data.item_words": 0,
    "distill.teacher": "",
    "model.checkpoint": "",
    "model.norm_epsilon": 1e-6,
    "model.rope_theta": 1e6,
    "on_sample.hops": False,
    "pretrain.teacher": "",
    "pretrain.teacher_stage": "",
    "semantic_ids.extend": "",
}


def is_writer() -> bool:
    """Whether this process writes what a run has once, whatever the number of processes."""
    return jax.process_index() == 0


def commit_id() -> str:
    """The library's git commit, `-dirty` where the tree has changes, `unknown` outside git."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("-dirty" if changed else "")


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """A config's values by 'section.key', those that runs of before a key do not name too."""
    return _ADDED_KEYS | _flatten(config)


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flatten(value, name + ".")
        else:
            flat[name] = value
    return flat


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
    """The folder of one run, opened by `open_workdir`.

    Raises:
      UserError: the path is an address.
    """

    def __init__(self, path: str):
        check_mounted(path, "--workdir")
        self.path = os.path.abspath(os.path.expanduser(path))
        self._locks: list[TextIO] = []

    def file(self, *parts: str) -> str:
        """A path inside the workdir; its folder is made.

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
        self._take(".lock", fcntl.LOCK_EX if share is None else fcntl.LOCK_SH)
        if share is not None:
            self._take(f".lock-{share}", fcntl.LOCK_EX)

    def _take(self, name: str, kind: int) -> None:
        path = self.file(name)
        try:
            file = open(path, "w")  # noqa: SIM115 - held while the run lives
        except OSError as error:
            raise UserError(
                f"expected to write in {self.path}, found {error.strerror}; pass another --workdir"
            ) from error
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise UserError(
                f"expected the workdir {self.path} to be free, found another running process in "
                "it; wait for that run or pass another --workdir"
            ) from error
        self._locks.append(file)

    def read_config(self) -> dict[str, Any]:
        path = os.path.join(self.path, "config.json")
        try:
            with open(path, encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            raise UserError(
                f"expected a training workdir with a config.json, found none in {self.path}; pass "
                "the --workdir of a run of launch.train"
            ) from None
        except json.JSONDecodeError as error:
            raise UserError(
                f"expected JSON in {path}, found an error at line {error.lineno}; restore the file "
                "or train again in another --workdir"
            ) from None

    def check_log(self, log_hash: str) -> None:
        """Refuses data other than the run was trained on, where the workdir names that.

        Raises:
          UserError: it names another log.
        """
        path = os.path.join(self.path, _LOG_FILE)
        if not os.path.exists(path):  # a run of before they did
            return
        with open(path, encoding="utf-8") as file:
            before = json.load(file)["hash"]
        if before != log_hash:
            raise UserError(
                f"expected the log {before} that the run in {self.path} was trained on, found "
                f"{log_hash}: the data, or how the library reads it, has changed; bring that data "
                "or version back, or pass another --workdir"
            )

    def read_results(self) -> dict[str, Any]:
        path = os.path.join(self.path, "results.json")
        if not os.path.exists(path):
            return {"rows": []}
        with open(path, encoding="utf-8") as file:
            return json.load(file)

    def write_result_row(self, row: dict[str, Any]) -> None:
        """Adds a row, or replaces the one with the same stage, split and protocol.

        What only the old row tells, such as what a stage was trained on, stays for the same step.
        """
        if not is_writer():
            return
        results = self.read_results()
        key = ("stage", "split", "protocol")
        rows = [r for r in results["rows"] if any(r.get(k) != row.get(k) for k in key)]
        same = (r for r in results["rows"] if all(r.get(k) == row.get(k) for k in (*key, "step")))
        results["rows"] = [*rows, next(same, {}) | row]
        write_atomically(self.file("results.json"), json.dumps(results, indent=2) + "\n")


def check_out(path: str, flag: str, ending: str = "") -> None:
    """Refuses a file that could not be written, before the work whose result it takes.

    Args:
      flag: such as '--out', that gave the path.
      ending: such as '.npy', that its name must have.

    Raises:
      UserError: another ending, its folder is not there, or it is a folder itself.
    """
    folder = os.path.dirname(os.path.abspath(path))
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
    if os.path.exists(os.path.join(workdir.path, "config.json")):
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
    elif os.path.isdir(workdir.path) and set(os.listdir(workdir.path)) - {".lock"}:
        raise UserError(
            f"expected {workdir.path} to be empty or a run's workdir, found other files in it; "
            "pass another --workdir"
        )


def open_workdir(path: str, config: dict[str, Any], log_hash: str | None = None) -> Workdir:
    """Opens a new workdir for `config`, or the one where the same config ran before, and locks it.

    Of several processes the first checks, locks and writes; the others go on once it is through.

    Args:
      log_hash: of the data that the run trains on; None where it has none.

    Raises:
      UserError: as `check_workdir` and `Workdir.check_log`; or another running process has it.
    """
    workdir = Workdir(path)
    with distributed.first_alone():
        if is_writer():
            check_workdir(path, config)
            if log_hash is not None:
                workdir.check_log(log_hash)
            workdir.lock()
            if not os.path.exists(os.path.join(workdir.path, "config.json")):
                text = json.dumps(config, indent=2, sort_keys=True) + "\n"
                write_atomically(workdir.file("config.json"), text)
            if log_hash is not None and not os.path.exists(os.path.join(workdir.path, _LOG_FILE)):
                text = json.dumps({"hash": log_hash}) + "\n"
                write_atomically(workdir.file(_LOG_FILE), text)
    return workdir
