"""The one exception that a user's mistake ends in."""


class UserError(Exception):
    """A mistake of the user's: one line that says what was expected, found, and what to do.

    Programs under `launch` print it without a traceback and exit with code 2.
    """
