"""Splits queries into words: Chinese text has no spaces, so what a word is has to be chosen."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Container, Sequence

from core.errors import UserError
from core.scripts import MARKS, UNSPACED, normal

SEGMENTERS = ("characters", "jieba")
# Characters of a word; what is longer is cut there, in logs and in queries that are typed.
LONGEST_WORD = 256

# A letter or digit of a script with spaces; a mark belongs to the character before.
_LETTER = rf"[^\W_{UNSPACED}]"
_RUN = rf"{_LETTER}(?:{_LETTER}|[{MARKS}])*"
_WORD = re.compile(rf"[{UNSPACED}][{MARKS}]*|{_RUN}")
_IDEOGRAPH = re.compile(rf"[{UNSPACED}]")
_SPACED = re.compile(_RUN)
_HAS_LETTER = re.compile(r"[^\W_]")


def characters(text: str) -> list[str]:
    """Splits text in lower case into words: each ideograph, each run of other letters and digits.

    Combining marks, such as the vowel signs of Hindi, are part of their word.
    """
    return _WORD.findall(normal(text))


def cut(word: str) -> str:
    """Returns a word's first `LONGEST_WORD` characters."""
    return word[:LONGEST_WORD]


def join(words: Sequence[str]) -> str:
    """Joins words to text again, without a space between two of a script that has no spaces."""
    text = ""
    for word in words:
        if text and not (_IDEOGRAPH.match(text[-1]) and _IDEOGRAPH.match(word[0])):
            text += " "
        text += word
    return text


def segmenter(name: str) -> Callable[[str], list[str]]:
    """Returns the function from a query to its words; punctuation and emoji are no words.

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
    return lambda text: with_jieba(normal(text), jieba.lcut)


def typed(query: str, split: Callable[[str], list[str]], known: Container[str] | None) -> str:
    """Writes what a user types as the queries of a log are written; '' without words.

    Args:
      split, known: as of `typed_words`.
    """
    return join(typed_words(query, split, known))


def typed_words(
    query: str, split: Callable[[str], list[str]], known: Container[str] | None
) -> list[str]:
    """Splits what a user types into words as the queries of a log are split.

    Args:
      split: the segmenter of the log.
      known: words that stay as they are, since the log has them from a file; None where its reader
        had the segmenter split all queries.
    """
    if known is None:
        words = [split(query)]
    else:
        words = [[word] if word in known else split(word) for word in query.split()]
    return [cut(word) for some in words for word in some]


def with_jieba(text: str, split: Callable[[str], list[str]]) -> list[str]:
    """Splits normal text; jieba, which knows ideographs and ASCII, would spell others out."""
    words: list[str] = []
    start = 0
    for run in _SPACED.finditer(text):
        if not run[0].isascii():
            words += split(text[start : run.start()])
            words.append(run[0])
            start = run.end()
    words += split(text[start:])
    return [word for word in words if _HAS_LETTER.search(word)]
