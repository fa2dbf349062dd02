"""Reads reasoning to distil from: a file of traces, or the offline template teacher (CRS 3.2).

A file has one JSON object a line: {"user": ..., "query": ..., "item": ..., "reasoning": ...}, with
the names of the source. What tells the target's title or an id is dropped: such reasoning cannot be
had at inference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from core.errors import UserError
from core.scripts import MARKS, UNSPACED, normal
from core.text_lines import read_lines

# The file of traces that comes with data, in their folder.
BESIDE_DATA = "traces.jsonl"
_KEYS = ("user", "query", "item", "reasoning")
_ID = re.compile(r"<[a-z]_\d+>|</?think>|<\|")
# Scripts without spaces one character at a time.
_WORD = re.compile(rf"[{UNSPACED}][{MARKS}]*|[^\W{UNSPACED}](?:[^\W{UNSPACED}]|[{MARKS}])*")
_IDEOGRAPH = re.compile(f"[{UNSPACED}]")
# What of an item's text in a row tells which item it is: at its start, where its title is, and
# anywhere in it. In half words: an ideograph is one, another word two.
_START, _RUN = 6, 8


class Trace(NamedTuple):
    """Holds the reasoning of a teacher about one training example; names are the source's."""

    user: str
    query: str
    item: str
    reasoning: str


def read_traces(path: str, remedy: str = "correct config.distill.traces") -> list[Trace]:
    """Reads the traces of a file.

    Args:
      remedy: what to do where there is none.

    Raises:
      UserError: no such file, or broken JSON, a missing key or no text: names the line.
    """
    traces = []
    lines = read_lines(path, "traces", remedy)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            traces.append(_trace(record))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"expected a JSON object with {', '.join(_KEYS)} as text in line {number} of "
                f"{path}, found {line[:60]!r}; mend the file"
            ) from None
    return traces


def _trace(record: Mapping[str, Any]) -> Trace:
    """Raises KeyError or ValueError where a key is missing or has no text; a number is a name."""
    user, query, item, reasoning = (record[key] for key in _KEYS)
    for name in (user, query, item):
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise ValueError("a name is neither text nor a number")
    if not isinstance(reasoning, str) or not reasoning.strip():
        raise ValueError("no reasoning")
    trace = Trace(str(user), str(query), str(item), reasoning)
    "".join(trace).encode()  # half of a pair of surrogates is no text
    return trace


def leaks(reasoning: str, text: str) -> bool:
    """Tells whether a trace has an id, a control token, or words of the target's text in a row.

    Sources join an item's title with what else they say of it, the title first. So a quoted title
    shows as the first three words of the text (all of a shorter one), a part of it as any four;
    six and eight where they are ideographs.
    """
    if _ID.search(reasoning):
        return True
    words = _WORD.findall(normal(text))
    if not words:
        return False
    own = f" {' '.join(_WORD.findall(normal(reasoning)))} "
    halves = np.cumsum([1 if _IDEOGRAPH.match(word) else 2 for word in words])
    before = np.concatenate([[0], halves[:-1]])
    ends = np.searchsorted(halves, before + _RUN) + 1
    runs = [words[: int(np.searchsorted(halves, _START)) + 1]]
    runs += [words[a:b] for a, b in enumerate(ends.tolist()) if b <= len(words)]
    return any(f" {' '.join(run)} " in own for run in runs)


class TemplateTeacher:
    """Writes short reasoning from a context and the target's title, without any model.

    It says which of the query's words the target's title has in common, and what the latest other
    query was about, in one of several wordings: the offline stand-in for a large model, whose
    traces come from a file.
    """

    _WORDINGS = (
        "It is about {topic}{before}.",
        "The user wants {topic}{before}.",
        "About {topic}{before}, so {topic}.",
    )

    def reasoning(self, query: str, earlier: Sequence[str], title: str, number: int) -> str:
        """Returns the trace of example `number`, which decides the wording.

        Args:
          earlier: queries before, oldest first.
          title: the target's.
        """
        words = _WORD.findall(query)
        known = set(_WORD.findall(normal(title)))
        common = [word for word in words if normal(word) in known]
        topic = min(common or words or [query], key=len)
        other = next((text for text in reversed(earlier) if text != query), "")
        before = f" after {min(_WORD.findall(other), key=len)}" if _WORD.search(other) else ""
        return self._WORDINGS[number % len(self._WORDINGS)].format(topic=topic, before=before)
