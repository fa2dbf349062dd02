"""Words of a query: Chinese text has no spaces, so what a word is has to be chosen."""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections.abc import Callable, Sequence

from core.errors import UserError
from core.scripts import UNSPACED

SEGMENTERS = ("characters", "jieba")

_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
_IDEOGRAPH = re.compile(rf"[{UNSPACED}]")
_LETTER = re.compile(r"[^\W_]")


def _normal(text: str) -> str:
    # NFKC makes the full-width letters of Chinese keyboards ordinary ones.
    return unicodedata.normalize("NFKC", text).lower()


def characters(text: str) -> list[str]:
    """Each ideograph is a word; so is each run of other letters and digits, in lower case."""
    return _WORD.findall(_normal(text))


def join(words: Sequence[str]) -> str:
    """Words as text again: no space between two of a script that is written without."""
    text = ""
    for word in words:
        if text and not (_IDEOGRAPH.match(text[-1]) and _IDEOGRAPH.match(word[0])):
            text += " "
        text += word
    return text


def segmenter(name: str) -> Callable[[str], list[str]]:
    """The function from a query to its words; punctuation and emoji are no words.

    Args:
      name: 'characters', or 'jieba' (a dictionary of Chinese words).

    Raises:
      UserError: no such segmenter, or jieba is not installed.
    """
    if name not in SEGMENTERS:
        raise UserError(
            f"expected a segmenter of {', '.join(SEGMENTERS)}, found {name!r}; pass one of them"
        )
    if name == "characters":
        return characters
    if importlib.util.find_spec("jieba") is None:
        raise UserError(
            "expected the package jieba for segmenter='jieba', found it missing; run "
            "`pip install -e '.[jieba]'` or pass segmenter='characters'"
        )
    import logging

    import jieba

    jieba.setLogLevel(logging.WARNING)
    return lambda text: [w for w in jieba.lcut(_normal(text)) if _LETTER.search(w)]
