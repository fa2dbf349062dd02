"""What every program shares: flags parsed strictly, a user's mistake in one line, exit code 2."""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from core import distributed
from core.errors import UserError
from core.process_watch import ProcessWatch

CANNOT_RUN = 2
HELP = frozenset(["--help", "-h"])
# Seconds for the watch to find a lost process, after a collective with it has failed.
_PATIENCE_S = 5.0
# How a config file refuses what is after its colon: the last line of a traceback.
_CHOICES = re.compile(r"^ValueError: (expected .+, found .+)\s*\Z", re.MULTILINE)


def run(main: Callable[[], None], define_flags: Callable[[], None]) -> None:
    """Parses the command line, runs `main`, and turns mistakes into exit code 2.

    Flags are defined here and not on import, so that a notebook can import several programs.
    Unknown flags, unknown config keys and `UserError` print one line on standard error; --help
    prints what the program's module says of itself, and its flags.
    """
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    of_libraries = set(flags.FLAGS)
    define_flags()
    if HELP & set(sys.argv[1:]):
        print(_help([name for name in flags.FLAGS if name not in of_libraries]))
        return
    try:
        _parse()
        main()
    except UserError as error:
        _fail(error)


def _help(names: Sequence[str]) -> str:
    """The running module's docstring, and the flags of these names with their defaults."""
    lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:"]
    for name in names:
        flag = flags.FLAGS[name]
        default = _default(flag.default)
        lines.append(f"  --{name}: {flag.help}" + (f" Default: {default}." if default else ""))
    return "\n".join(lines)


def _default(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, str | int | float) else ""  # a config has many lines


def _parse() -> None:
    """Parses sys.argv strictly.

    Raises:
      UserError: an unknown flag or config key, a value of the wrong type, no such config file, or
        one that does not take what is after its colon.
    """
    try:
        words = flags.FLAGS(sys.argv)[1:]
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            flags.FLAGS.config.to_dict()  # the file is only loaded by its first use
    except (KeyError, AttributeError) as error:
        if "has no attribute 'get_config'" in str(error):
            raise UserError(
                "expected a config file with a get_config(), found one without; pass "
                "--config=configs/MODEL_DATASET.py"
            ) from None
        raise UserError(
            f"expected a key of the config file, found {_words(error)}; see the file for its keys"
        ) from None
    except OSError as error:
        raise UserError(
            f"expected a config file, found none that loads ({_words(error)}); pass "
            "--config=configs/NAME.py"
        ) from None
    except Exception as error:  # absl, ml_collections and config files raise many types
        if "get_config() takes 0 positional" in str(error):
            raise UserError(
                "expected --config=FILE.py, found a choice after its colon that the file does not "
                "take; leave the colon and the choice out"
            ) from None
        if choices := _CHOICES.search(str(error)):
            raise UserError(f"{choices[1]}; pass one that there is") from None
        raise UserError(
            f"expected known flags with fitting values, found: {_words(error)}; see --help"
        ) from None
    if words:
        raise UserError(f"expected only flags, found the word {words[0]!r}; flags are --NAME=VALUE")


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def define_job_flags() -> None:
    """The flags of a program that several processes run together."""
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0 of several; auto on Cloud TPU and SLURM."
    )
    flags.DEFINE_integer("processes", 1, "How many there are, with --coordinator=HOST:PORT.")
    flags.DEFINE_integer("process", 0, "Which this is, from 0.")
    flags.DEFINE_integer("start_timeout", 300, "Seconds to wait for the other processes.")


def run_job(alone: Callable[[], None], together: Callable[[], None]) -> None:
    """Runs `alone`, or `together` with the other processes that the job's flags name.

    Raises:
      UserError: the flags number processes and name no coordinator.
    """
    values = flags.FLAGS
    if not values.coordinator:
        # Each of them would take itself for the whole job.
        if (values.processes, values.process) != (1, 0):
            raise UserError(
                f"expected --coordinator=HOST:PORT with --processes and --process, found "
                f"{values.processes} and {values.process} without it; pass it, or leave these out"
            )
        alone()
        return
    found = None if values.coordinator == "auto" else values.coordinator
    watch = distributed.start(found, values.processes, values.process, values.start_timeout)
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
    except Exception:
        # Most likely another process is gone, and the watch is about to say which.
        time.sleep(_PATIENCE_S)
        watch.end_with(traceback.format_exc(), 1)
    watch.finish()


def line_of(error: UserError) -> str:
    """What a user sees of their mistake."""
    return f"error: {' '.join(str(error).split())}"


def _fail(error: UserError) -> None:
    print(line_of(error), file=sys.stderr)
    sys.exit(CANNOT_RUN)
