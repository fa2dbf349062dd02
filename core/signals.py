"""Ends a program on SIGTERM and on Ctrl-C: one line, an exit code, nothing half-written.

From its first imports on a program has these handlers. While it only imports, a signal ends it at
once. Later a signal raises, so that files half-written go and locks are given back; a second one
ends it at once. Training notes signals instead (`core.termination`), to save first. A thread that
finds out that the program can do no more ends it in the same way (`core.termination.end_with`).
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType
from typing import NoReturn

from core.errors import CANNOT_RUN, UserError, line_of

INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM


class Stopped(BaseException):
    """Ends a program on SIGTERM or Ctrl-C where nothing is left to save.

    It is no `Exception`, so that no handler swallows it.

    Attributes:
      code: the exit code that the program ends with.
    """

    def __init__(self, text: str, code: int):
        super().__init__(text)
        self.code = code


class _Endings:
    """Knows how the running program ends on a signal."""

    continues = False
    raises = False
    seen = False
    # Why the program ends of itself; None where it does not.
    reason: UserError | None = None

    def of(self, number: int) -> Stopped | UserError:
        if self.reason is not None:
            return self.reason
        if self.continues:
            what = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
            code = INTERRUPTED if number == signal.SIGINT else 0
            return Stopped(
                f"{what}: nothing was trained since the last checkpoint, if there is one; the "
                "same command begins or continues",
                code,
            )
        if number == signal.SIGINT:
            return Stopped("interrupted; the same command begins again", INTERRUPTED)
        return Stopped("terminated by SIGTERM; the same command begins again", _TERMINATED)


_endings = _Endings()


def install(*, continues: bool) -> None:
    """Installs the handlers, for a program alone; a signal that is ignored stays ignored.

    Args:
      continues: whether the program trains, and ends with 0 on SIGTERM: schedulers stop it so, and
        the same command continues.
    """
    _endings.continues, _endings.raises, _endings.seen = continues, False, False
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)


def raise_from_now_on(raises: bool = True) -> None:
    """Lets a signal raise `Stopped`, or again end the process at once."""
    _endings.raises = raises


def set_reason(reason: UserError | None) -> None:
    """Says why the program ends of itself, which a signal then tells it; None takes that back."""
    _endings.reason = reason


def reason() -> UserError | None:
    """Returns why the program ends of itself; None where it does not."""
    return _endings.reason


def end_at_once(number: int) -> NoReturn:
    """Ends the process on a signal, without a word from anything that still runs."""
    ending = _endings.of(number)
    if isinstance(ending, UserError):
        end_for(ending)
    say(str(ending))
    os._exit(ending.code)


def end_for(error: UserError) -> NoReturn:
    """Ends the process in an error's line, without a word from anything that still runs."""
    say(line_of(error))
    os._exit(CANNOT_RUN)


def say(text: str) -> None:
    """Writes a line to standard error from within a signal's handler, where nothing may be held."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def handle(number: int, frame: FrameType | None) -> None:
    """Raises what the program ends with, or ends it at once, on SIGTERM and Ctrl-C."""
    del frame
    if not _endings.raises or _endings.seen:
        end_at_once(number)
    _endings.seen = True
    raise _endings.of(number)
