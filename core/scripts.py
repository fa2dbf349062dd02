"""Tells scripts of the world apart in regular expressions, and gives like texts one form."""

from __future__ import annotations

import itertools
import re
import unicodedata

# All of these are parts of a regular expression's character class.
# Written without spaces between words: ideographs with their extensions, kana.
UNSPACED = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Choose among forms of one character, join or part letters in writing; words are the same without.
_INVISIBLE = "\u180b-\u180d\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef"
# The planes that have marks.
_MARKED_PLANES = (range(0x300, 0x1F000), range(0xE0000, 0xE0200))


def _marks() -> str:
    """Lists combining marks, categories Mn and Mc; enclosing ones (Me) stand around symbols."""
    marks = [
        number
        for number in itertools.chain(*_MARKED_PLANES)
        if unicodedata.category(chr(number)) in ("Mn", "Mc")
    ]
    ends = [0, *(i for i in range(1, len(marks)) if marks[i] != marks[i - 1] + 1), len(marks)]
    return "".join(f"{chr(marks[a])}-{chr(marks[b - 1])}" for a, b in itertools.pairwise(ends))


# Vowel signs, tones, points and accents: letters of their word that stand on the one before.
MARKS = _marks()
_DROPPED = re.compile(f"[{_INVISIBLE}]")


def normal(text: str) -> str:
    """Returns the text in lower case and in NFKC, without characters that only choose a form.

    NFKC makes the full-width letters of Chinese keyboards ordinary ones and joins a letter and its
    mark into one where there is one. Lower case comes first, for a small letter may have a joined
    form where the large one has none; and again, for NFKC makes letters of symbols (TM). The dot
    that the small form of the Turkish dotted I keeps as a mark of its own is dropped: an i has one.
    """
    if text.isascii():
        return text.lower()
    lower = _DROPPED.sub("", text).lower().replace("i\u0307", "i")
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", lower).lower())
