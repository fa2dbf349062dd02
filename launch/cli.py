"""What every program shares: flags parsed strictly, a user's mistake in one line, exit code 2."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from absl import flags
from ml_collections import config_dict

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
        rest = flags.FLAGS(sys.argv)[1:]
        if rest:
            raise UserError(
                f"expected only flags, found the word {rest[0]!r}; flags are --NAME=VALUE"
            )
    except UserError as error:
        _fail(error)
    except Exception as error:  # absl, ml_collections and the config file raise many types
        _fail(UserError(_first_line(error)))
    try:
        main()
    except UserError as error:
        _fail(error)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)[:400] if lines else type(error).__name__
    if isinstance(error, FileNotFoundError):
        return f"expected a config file, found no {error.filename}; pass --config=configs/NAME.py"
    return f"{text}; see --help for the flags, and the config file for its keys"


def _fail(error: UserError) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(CANNOT_RUN)


def resolved(config: config_dict.ConfigDict) -> dict:
    """The config as plain dicts, lists and scalars."""
    return config.to_dict()
