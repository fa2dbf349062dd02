"""Says which part of a study one of several processes takes."""

from __future__ import annotations

from core.errors import UserError


def share_of(text: str) -> tuple[int, int] | None:
    """Parses 'I/N' to (I, N); None where '' leaves all to one process.

    Raises:
      UserError: another form.
    """
    if not text:
        return None
    first, _, step = text.partition("/")
    if not first.isdecimal() or not step.isdecimal() or not int(first) < int(step):
        raise UserError(
            f"expected --share=I/N with I from 0 to N - 1, found {text!r}; for instance "
            "--share=0/4 for the first of four"
        )
    return int(first), int(step)
