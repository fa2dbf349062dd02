"""Makes pseudo-queries of items: from a file (Doc2query's, for instance), or the text's rarest
words.

A pseudo-query alone is to give the item's semantic identifier (READINGS, sixth task).
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence

from core.errors import UserError
from core.text_lines import read_lines

_WORDS = 3


def from_texts(texts: Sequence[str], split: Callable[[str], list[str]]) -> list[tuple[int, str]]:
    """Makes one query an item: the three words of its text that the fewest texts have, in their
    order.

    Args:
      texts: of items 1..V.
      split: from a text to its words.

    Returns:
      (item, query); items without words have none.
    """
    words = [list(dict.fromkeys(split(text))) for text in texts]
    counts = collections.Counter(word for one in words for word in one)
    queries = []
    for item, one in enumerate(words, 1):
        rarest = set(sorted(one, key=lambda word: (counts[word], word))[:_WORDS])
        if rarest:
            queries.append((item, " ".join(word for word in one if word in rarest)))
    return queries


def read(path: str, numbers: Mapping[str, int]) -> list[tuple[int, str]]:
    """Reads queries: lines of an item's original id, TAB and a query, any number an item.

    Args:
      numbers: item numbers by original id.

    Returns:
      (item, query) in the file's order.

    Raises:
      UserError: no such file, a malformed line, an unknown item, or no query.
    """
    queries = []
    lines = read_lines(path, "pseudo-queries", "correct config.prompts.pseudo_queries")
    for number, line in enumerate(lines, 1):
        item, tab, query = line.partition("\t")
        if not tab or not query.strip() or item not in numbers:
            raise UserError(
                f"expected an item of the catalogue, TAB and a query in line {number} of {path}, "
                f"found {line[:60]!r}; mend the file"
            )
        queries.append((numbers[item], query.strip()))
    if not queries:
        raise UserError(f"expected pseudo-queries in {path}, found none; fill the file")
    return queries
