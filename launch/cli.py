"""What every program shares: flags parsed strictly, a user's mistake in one line, exit code 2."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from absl import flags

from core.errors import UserError

CANNOT_RUN = 2


def run(main: Callable[[], None], define_flags: Callable[[], None]) -> None:
    """Parses the command line, runs `main`, and turns mistakes into exit code 2.

    Flags are defined here and not on import, so that a notebook can import several programs.
    Unknown flags, unknown config keys and `UserError` print one line on standard error.
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
    define_flags()
    try:
        _parse()
        main()
    except UserError as error:
        _fail(error)


def _parse() -> None:
    """Parses sys.argv strictly.

    Raises:
      UserError: an unknown flag or config key, a value of the wrong type, no such config file.
    """
    try:
        words = flags.FLAGS(sys.argv)[1:]
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            flags.FLAGS.config.to_dict()  # the file is only loaded by its first use
    except (KeyError, AttributeError) as error:
        raise UserError(
            f"expected a key of the config file, found {_words(error)}; see the file for its keys"
        ) from None
    except OSError as error:
        raise UserError(
            f"expected a config file, found none that loads ({_words(error)}); pass "
            "--config=configs/NAME.py"
        ) from None
    except Exception as error:  # absl, ml_collections and config files raise many types
        raise UserError(
            f"expected known flags with fitting values, found: {_words(error)}; see --help"
        ) from None
    if words:
        raise UserError(f"expected only flags, found the word {words[0]!r}; flags are --NAME=VALUE")


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def one_line(error: UserError) -> str:
    return f"error: {' '.join(str(error).split())}"


def _fail(error: UserError) -> None:
    print(one_line(error), file=sys.stderr)
    sys.exit(CANNOT_RUN)
