"""Begins and ends every program: parses flags before slow imports, ends errors in one line.

A mistake of the user's ends in one line and exit code 2, a signal in one line (`core.signals`), and
what nobody expected in one line that names a file with the traceback, and exit code 1.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import logging
import os
import pathlib
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO, cast

from absl import flags

from core import memory, signals
from core.errors import CANNOT_RUN, Preempted, UserError, line_of
from core.terminal_text import VisibleFormatter, VisibleStream, visible_line

if TYPE_CHECKING:
    from core.process_watch import ProcessWatch

HELP = frozenset(["--help", "-help", "-h"])
HELP_FULL = frozenset(["--helpfull", "-helpfull"])
# Set to anything, it shows the traceback of an error that nobody expected.
TRACEBACK_VARIABLE = "LCRSR_TRACEBACK"
_BROKEN_PIPE = 141  # 128 + SIGPIPE, as of programs that the signal ends
# Seconds for the watch to find a lost process, after a collective with it has failed.
_PATIENCE_S = 5.0
# How a config file refuses what is after its colon: the last line of a traceback.
_CHOICES = re.compile(r"^ValueError: (expected .+, found .+)\s*\Z", re.MULTILINE)
_MEANT = re.compile(r"""Did you mean:? "?([^"? ]+)""")
_CONFIG_FLAG = ("--config", "-config")
_CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def begin(
    name: str,
    define_flags: Callable[[], None],
    check_flags: Callable[[], None] | None = None,
    *,
    continues: bool = False,
) -> None:
    """Parses the command line of a program; a module that is only imported passes by.

    A program calls it before it imports what takes seconds, so that a mistake in a flag is told in
    less than one, and a signal is heard from then on. Unknown flags and config keys print one line
    on standard error and end with 2; --help prints what the program's module says of itself, and
    its flags; --helpfull those of the libraries too.

    Args:
      name: the module's `__name__`.
      define_flags: defines them, which an import must not do: a notebook may import several.
      check_flags: raises UserError for what can be seen of flags alone.
      continues: whether the program trains (`core.signals.install`).
    """
    if name != "__main__":
        return
    signals.install(continues=continues)
    memory.keep_freed_memory()
    sys.excepthook = _last_resort
    _log()
    of_libraries = set(flags.FLAGS)
    define_flags()
    if asked := (HELP | HELP_FULL) & set(sys.argv[1:]):
        full = bool(asked & HELP_FULL)
        with _ending():  # whoever reads it may have enough of it
            print(_help([name for name in flags.FLAGS if full or name not in of_libraries]))
            sys.stdout.flush()
        sys.exit(0)
    with _ending():
        parse(sys.argv)
        if check_flags is not None:
            check_flags()


def run(main: Callable[[], None]) -> None:
    """Runs a program that has begun; mistakes and signals end it in one line."""
    with _ending():
        signals.raise_from_now_on()
        main()
        sys.stdout.flush()
        signals.raise_from_now_on(False)


def _log() -> None:
    """Sends log lines to standard error, and lets no text of data steer the terminal."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(VisibleFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("absl", "jax", "orbax", "botocore", "aiobotocore"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if sys.stdout.isatty():
        sys.stdout = cast(TextIO, VisibleStream(sys.stdout))


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        print(line_of(error), file=sys.stderr)
        sys.exit(CANNOT_RUN)
    except Preempted as stop:
        stopped(stop)
    except signals.Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.code)
    except BrokenPipeError:
        # Whoever read the output has enough; closing it at the end would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(_BROKEN_PIPE)


def stopped(stop: Preempted) -> None:
    """Says what was saved, and ends the program with its exit code where that is not 0."""
    print(stop)
    if stop.code:
        sys.exit(stop.code)


def _last_resort(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints one line for what nobody expected; Python then ends with exit code 1."""
    if os.environ.get(TRACEBACK_VARIABLE) or not isinstance(error, Exception):
        sys.__excepthook__(kind, error, trace)
    else:
        print(unexpected(error), file=sys.stderr, flush=True)


def unexpected(error: Exception) -> str:
    """Returns the line for an error that nobody expected; its traceback is kept in a file."""
    text = visible_line(" ".join(str(error).split()))[:200]
    what = f"error: expected no {type(error).__name__}, found one: {text or 'without a message'}"
    again = f"{TRACEBACK_VARIABLE}=1 before the command shows the traceback"
    report = "\n".join(
        [
            " ".join(sys.argv),
            f"Python {platform.python_version()}, {platform.platform()}",
            "".join(traceback.format_exception(error)),
        ]
    )
    try:
        descriptor, path = tempfile.mkstemp(prefix="lcrsr-error-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(report)
    except OSError:
        return f"{what}; this is a defect of the library: {again}; report it with that"
    return f"{what}; this is a defect of the library: report it with {path}; {again}"


def _help(names: Sequence[str]) -> str:
    """Writes the running module's docstring, and the flags of these names with their defaults."""
    text = (sys.modules["__main__"].__doc__ or "").strip()
    if sys.orig_argv[1:] and os.path.basename(sys.orig_argv[1]) == "lcrsr":
        text = text.replace("python -m launch.", "lcrsr ")
    lines = [text, "", "Flags:"]
    for name in names:
        flag = flags.FLAGS[name]
        default = _default(flag.default)
        lines.append(f"  --{name}: {flag.help}" + (f" Default: {default}." if default else ""))
    return "\n".join(lines)


def _default(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, str | int | float) else ""  # a config has many lines


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """Parses a command line strictly.

    Args:
      argv: the program's name and its words, as `sys.argv`.
      values: the flags that are defined; they get their values.

    Raises:
      UserError: an unknown flag or config key, a value of the wrong type, no such config file, or
        one that does not take what is after its colon.
    """
    argv = with_installed_configs(argv)
    try:
        words = values(argv)[1:]
        if "config" in values and values.config is not None:
            values.config.to_dict()  # the file is only loaded by its first use
    except flags.UnrecognizedFlagError as error:
        raise UserError(
            f"expected a known flag, found --{error.flagname};{_meant(error, '--')} see --help"
        ) from None
    except (KeyError, AttributeError) as error:
        if "has no attribute 'get_config'" in str(error):
            raise UserError(
                "expected a config file with a get_config(), found one without; pass "
                "--config=configs/METHOD.py:DATASET"
            ) from None
        # The libraries quote each other's messages: the key is the first name in them.
        key = re.search(r"[^\W\d][\w.]*", str(error))
        raise UserError(
            f"expected a key of the config file, found {key[0] if key else ''!r};{_meant(error)} "
            "see the file for its keys"
        ) from None
    except OSError as error:
        path = _config_path(argv)
        raise UserError(
            f"expected a config file, found none that loads at {path} ({_words(error)});"
            f"{_nearest(path)} pass --config=configs/METHOD.py:DATASET"
        ) from None
    except Exception as error:  # absl, ml_collections and config files raise many types
        if "get_config() takes 0 positional" in str(error):
            raise UserError(
                "expected --config=FILE.py, found a choice after its colon that the file does not "
                "take; leave the colon and the choice out"
            ) from None
        if choices := _CHOICES.search(str(error)):
            raise UserError(f"{choices[1]}; pass one of them") from None
        raise UserError(
            f"expected known flags with fitting values, found: {_words(error)}; see --help"
        ) from None
    if words:
        raise UserError(f"expected only flags, found the word {words[0]!r}; flags are --NAME=VALUE")


def with_installed_configs(words: Sequence[str]) -> list[str]:
    """Returns a command line whose --config names a file, where it names one of the library's.

    `lcr_ser_qilin`, `sasrec:amazon_beauty` and, in a folder without such a file,
    `configs/lcr_ser_qilin.py` are files of the installed package `configs`.

    Raises:
      UserError: there is no such file, neither here nor in the package; names the nearest.
    """
    result: list[str] = []
    for number, word in enumerate(words):
        flag, given, value = word.partition("=")
        if flag in _CONFIG_FLAG and given:
            result.append(f"{flag}={_config_file(value)}")
        elif number and words[number - 1] in _CONFIG_FLAG:
            result.append(_config_file(word))
        else:
            result.append(word)
    return result


def _config_file(value: str) -> str:
    path, colon, choice = value.partition(":")
    folder, name = os.path.split(path)
    if folder not in ("", "configs") or not name or os.path.isfile(path):
        return value
    stem = name.removesuffix(".py")
    installed = _CONFIGS / f"{stem}.py"
    if installed.is_file():
        return f"{installed}{colon}{choice}"
    here = [*pathlib.Path(folder or ".").glob("[!_]*.py"), *_CONFIGS.glob("[!_]*.py")]
    like = _like(stem, {file.stem: file for file in here if "def get_config(" in _text(file)}, 3)
    meant = f" did you mean {' or '.join(map(':'.join, like))}?" if like else ""
    raise UserError(
        f"expected a config file, found none that loads at {path}, here or among the library's;"
        f"{meant} pass --config=NAME of one of these or a file of yours"
    )


def _like(
    stem: str, files: Mapping[str, pathlib.Path], most: int
) -> list[tuple[str] | tuple[str, str]]:
    """Returns the configs most like a missing one: (NAME,), or (METHOD, DATASET).

    METHOD_DATASET may mean METHOD:DATASET. The library's own are only among them if they load.

    Args:
      most: names without a data set, at most.
    """
    offered: list[tuple[str] | tuple[str, str]] = []
    method = max((name for name in files if stem.startswith(f"{name}_")), key=len, default="")
    if method and files[method].parent == _CONFIGS:
        known = getattr(_module(files[method]), "DATASETS", ())
        named = difflib.get_close_matches(stem[len(method) + 1 :], known, 1)
        offered += [(method, dataset) for dataset in named]
    offered += [(name,) for name in difflib.get_close_matches(stem, sorted(files), most)]
    return [each for each in offered if _loads(files[each[0]], each[1:])]


def _module(file: pathlib.Path) -> Any:
    """Returns the module of one of the library's config files; None where it does not load."""
    spec = importlib.util.spec_from_file_location(f"configs.{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception:  # it is only wanted for a hint
        return None
    return module


def _loads(file: pathlib.Path, choice: Sequence[str]) -> bool:
    """Tells whether a config file takes a choice; files of the user's are not run for a hint."""
    if file.parent != _CONFIGS:
        return True
    try:
        _module(file).get_config(*choice)
    except Exception:  # config files raise many types
        return False
    return True


def _text(file: pathlib.Path) -> str:
    """Returns a file's text, '' where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _meant(error: Exception, before: str = "") -> str:
    """Returns a question: what a library takes a misspelt name for."""
    meant = _MEANT.search(" ".join(map(str, error.args)))
    return f" did you mean {before}{meant[1]}?" if meant else ""


def _config_path(argv: Sequence[str]) -> str:
    """Returns the file that --config names, without the choice after its colon."""
    words = [word.lstrip("-") for word in argv[1:] if word.startswith("-")]
    values = [word.removeprefix("config=") for word in words if word.startswith("config=")]
    return values[-1].partition(":")[0] if values else "--config"


def _nearest(path: str) -> str:
    """Returns a question: the config files whose names are most like that of a missing one.

    METHOD_DATASET.py may mean METHOD.py:DATASET, where there is that method.
    """
    folder = pathlib.Path(path).parent
    files = {file.stem: file.absolute() for file in folder.glob("[!_]*.py")}
    if not files:
        folder = pathlib.Path(os.path.relpath(_CONFIGS))
        files = {file.stem: file for file in _CONFIGS.glob("[!_]*.py")}
    like = _like(pathlib.Path(path).name.removesuffix(".py"), files, 1)
    named = [":".join([str(folder / f"{name}.py"), *choice]) for name, *choice in like]
    return f" did you mean {' or '.join(named)}?" if named else ""


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def define_job_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of a program that several processes run together, among `values`."""
    where = "HOST:PORT of process 0 of several; auto on Cloud TPU and SLURM."
    flags.DEFINE_string("coordinator", None, where, flag_values=values)
    for name, default, text in (
        ("processes", 1, "How many there are, with --coordinator=HOST:PORT."),
        ("process", 0, "Which this is, from 0."),
        ("start_timeout", 300, "Seconds to wait for the other processes."),
    ):
        flags.DEFINE_integer(name, default, text, flag_values=values)


def run_job(
    alone: Callable[[], None],
    together: Callable[[], None],
    values: flags.FlagValues = flags.FLAGS,
) -> None:
    """Runs `alone`, or `together` with the other processes that the job's flags name.

    Args:
      values: of the flags of `define_job_flags`.

    Raises:
      UserError: the flags number processes and name no coordinator.
    """
    if not values.coordinator:
        # Each of them would take itself for the whole job.
        if (values.processes, values.process) != (1, 0):
            raise UserError(
                f"expected --coordinator=HOST:PORT with --processes and --process, found "
                f"{values.processes} and {values.process} without it; pass it, or leave these out"
            )
        alone()
        return
    from core import distributed  # imports JAX

    coordinator = None if values.coordinator == "auto" else values.coordinator
    watch = distributed.start(coordinator, values.processes, values.process, values.start_timeout)
    run_watched(watch, together)


def run_watched(watch: ProcessWatch | None, body: Callable[[], None]) -> None:
    """Runs one process's `body` of a job of several, which all end where one of them fails.

    Args:
      watch: as `core.distributed.start` returns it; None for a job of one process.
    """
    if watch is None:
        body()
        return
    try:
        body()
    except UserError as error:
        watch.end_with(line_of(error), CANNOT_RUN)
    except signals.Stopped as stop:
        watch.end_with(str(stop), stop.code)
    except SystemExit:  # Ctrl-C, of which all processes have saved: this one is not lost
        watch.finish()
        raise
    except Exception as error:
        # Most likely another process is gone, and the watch is about to say which.
        time.sleep(_PATIENCE_S)
        shown = os.environ.get(TRACEBACK_VARIABLE)
        watch.end_with(traceback.format_exc() if shown else unexpected(error), 1)
    watch.finish()
