"""Ends a program in one line: a mistake of the user's, or a request to stop."""

from core.terminal_text import visible_line

# The exit code of a program that ends with a `UserError`.
CANNOT_RUN = 2


class UserError(Exception):
    """Tells a user's mistake in one line: what was expected, what was found, and what to do.

    Programs under `launch` print it without a traceback and exit with code 2.
    """


def reason_of(error: BaseException, most: int = 160) -> str:
    """Returns what a library says of a mistake, for a line of ours; its kind where it says nothing.

    All of its lines count: many begin with a heading, such as "Validation failed:".
    """
    return " ".join(str(error).split())[:most].rstrip() or type(error).__name__


class Preempted(Exception):
    """Tells that SIGTERM or Ctrl-C arrived; the state is saved, the same command continues it.

    Attributes:
      code: the exit code that a program ends with.
    """

    def __init__(self, text: str, code: int = 0):
        super().__init__(text)
        self.code = code


def line_of(error: UserError) -> str:
    """Returns the line that a user sees of their mistake."""
    return visible_line(f"error: {' '.join(str(error).split())}")
