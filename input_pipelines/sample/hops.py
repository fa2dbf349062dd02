"""Makes a sample in Qilin's file format whose clicks are 0 to 4 steps of reasoning away.

Every topic has a word, a note that is clicked in searches alone, and an item that is recommended. A
link is a search for one topic's word in which another topic's note was clicked. Before a click a
user makes the links of three chains in a random order, and then searches for the word of the first
topic of one chain, without a click; what they click next is the item of that chain's last topic. A
chain has 0 to 4 links, uniformly: whoever ranks must look up as many, each by what the one before
has led to. No topic is in two chains of a user, and clicks tell nothing.
"""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa

from input_pipelines.log import Log
from input_pipelines.sample import files
from input_pipelines.sample.files import User
from input_pipelines.splits import Examples

VERSION = 2  # checksums
_START = 1_730_000_000  # seconds
_TOPICS = 100
_CLICKS = 4  # of a user
_CHAINS = 3  # before a click; one leads to it
_HOPS = 4  # links of a chain at most


def _word(topic: int) -> str:
    return f"topic{topic}"


def _generate_user(rng: np.random.Generator) -> User:
    unused = rng.permutation(_TOPICS).tolist()
    user = User([], [])
    now = _START + int(rng.integers(0, 30 * 86_400))

    def search(topic, clicked):
        nonlocal now
        now += int(rng.integers(30, 3_600))
        user.searches.append((now, _word(topic), [_TOPICS + other for other in clicked]))

    for _ in range(_CLICKS):
        sizes = rng.integers(1, _HOPS + 2, _CHAINS)
        chains = [[unused.pop() for _ in range(size)] for size in sizes]
        links = [pair for chain in chains for pair in itertools.pairwise(chain)]
        for i in rng.permutation(len(links)):
            search(links[i][0], [links[i][1]])
        search(chains[0][0], [])
        now += int(rng.integers(60, 43_200))
        user.clicks.append((now, chains[0][-1]))
    return user


def write_hops(out: str, *, num_users: int, seed: int) -> None:
    """Writes the parquet folders to `out`, whole or not at all.

    Args:
      out: a folder that does not exist yet.
    """
    rng = np.random.default_rng(seed)
    users = [_generate_user(rng) for _ in range(num_users)]
    words = [_word(topic) for topic in range(_TOPICS)]
    names = [f"item of {word}" for word in words] + [f"note about {word}" for word in words]
    notes = pa.table({"note_title": names, "note_content": names, "note_idx": range(len(names))})
    files.write(
        out,
        users,
        notes,
        recommended=(0, _TOPICS),
        searched=(_TOPICS, 2 * _TOPICS),
        truth={"topics": _TOPICS, "chains": _CHAINS, "hops": _HOPS, "seed": seed},
        rng=rng,
    )


def hops(log: Log, examples: Examples) -> np.ndarray:
    """Counts the links from an example's last search to the topic where its chain ends, int32 [E].

    Args:
      log: of a sample of `write_hops`.
    """
    topics = ["", *(text.split()[2] for text in log.item_texts())]
    counts = np.zeros(len(examples), np.int32)
    for row in range(len(examples)):
        first, end = int(log.search_offsets[examples.user[row]]), int(examples.search_end[row])
        links = {}
        for search in range(first, end):
            for click in range(log.click_offsets[search], log.click_offsets[search + 1]):
                links[log.query(search)[0]] = topics[log.click_items[click]]
        word = log.query(end - 1)[0]
        while word in links:
            word = links[word]
            counts[row] += 1
    return counts
