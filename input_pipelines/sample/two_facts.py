"""Makes a sample in Qilin's file format whose searches need two facts of a user's context.

The query names a topic. The style in which its item is wanted stands in the history: it is that of
the latest purchase, a card of the style's name that a search for this name led to. Which model of a
topic's item has which style is a table of its own for every topic, so that neither fact tells the
model. A share of the clicks follows this rule, all others take any model of the topic.

So whoever reads one fact has a bound that is known, and so has whoever reads both: `ranked` ranks
by these very probabilities, and

    python -m input_pipelines.sample.two_facts [--users=1500] [--seed=0] [--split=test]

prints the bounds of a sample's searches under `search/catalogue`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa

from core import metrics
from input_pipelines.log import Log
from input_pipelines.sample import files
from input_pipelines.sample.files import User
from input_pipelines.search_task import SearchExamples, held_out_searches
from input_pipelines.splits import split_log

VERSION = 1  # checksums
# What a ranking may know of a search.
KNOWN = ("nothing", "the query", "the purchase", "both")
_START = 1_730_000_000  # seconds
_METRICS = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10")
TOPICS = ("camera", "sneakers", "tent", "guitar", "teapot", "drone")
STYLES = ("red", "blue", "green", "gold")


@dataclasses.dataclass(frozen=True)
class Structure:
    """Holds the generator's parameters; a topic has one model for each style.

    Attributes:
      by_rule: the share of clicks that follow both facts.
      rounds: of a user, each a purchase and a search.
    """

    by_rule: float = 0.9
    rounds: int = 3

    def models(self) -> np.ndarray:
        """Returns the model of each topic in each style, int [T, S]: a permutation in each row."""
        rng = np.random.default_rng(0)  # of the world, whatever the users
        return np.array([rng.permutation(len(STYLES)) for _ in TOPICS])

    def probabilities(self) -> np.ndarray:
        """Returns P(model | topic, style), [T, S, models]."""
        follows = np.eye(len(STYLES))[self.models()]
        return self.by_rule * follows + (1 - self.by_rule) / len(STYLES)


def _generate_user(structure: Structure, rng: np.random.Generator) -> User:
    user = User([], [])
    now = _START + int(rng.integers(0, 30 * 86_400))
    probabilities = structure.probabilities()
    for _ in range(structure.rounds):
        topic, style = int(rng.integers(len(TOPICS))), int(rng.integers(len(STYLES)))
        now += int(rng.integers(3_600, 43_200))
        user.searches.append((now, STYLES[style], []))
        now += int(rng.integers(30, 3_600))
        user.clicks.append((now, style))
        now += int(rng.integers(30, 3_600))
        model = int(rng.choice(len(STYLES), p=probabilities[topic, style]))
        user.searches.append((now, TOPICS[topic], [len(STYLES) * (1 + topic) + model]))
    return user


def write_two_facts(out: str, *, num_users: int, seed: int) -> None:
    """Writes the parquet folders to `out`, whole or not at all.

    Args:
      out: a folder that does not exist yet.
    """
    structure = Structure()
    rng = np.random.default_rng(seed)
    users = [_generate_user(structure, rng) for _ in range(num_users)]
    names = [f"{style} card" for style in STYLES]
    names += [f"{topic} model{model}" for topic in TOPICS for model in range(len(STYLES))]
    notes = pa.table({"note_title": names, "note_content": names, "note_idx": range(len(names))})
    files.write(
        out,
        users,
        notes,
        recommended=(0, len(STYLES)),
        searched=(len(STYLES), len(names)),
        truth=dataclasses.asdict(structure) | {"seed": seed},
        rng=rng,
    )


def facts(log: Log, examples: SearchExamples) -> tuple[np.ndarray, np.ndarray]:
    """Returns the (topic, style) of each search, int [E] each: its query's, its last purchase's.

    Args:
      log: of a sample of `write_two_facts`.
    """
    topics = [TOPICS.index(log.query(int(row))[0]) for row in examples.target_row]
    styles = [int(log.item_ids[log.rec_items[end - 1]]) for end in examples.rec_end]
    return np.array(topics), np.array(styles)


def probabilities(
    log: Log, examples: SearchExamples, structure: Structure, known: str
) -> np.ndarray:
    """Returns P(item is clicked | what is known), float64 [E, V+1]; column 0 is padding's.

    Args:
      known: one of `KNOWN`.
    """
    topics, styles = facts(log, examples)
    table = structure.probabilities()
    count = len(examples)
    by_topic = np.full((count, len(TOPICS)), 1 / len(TOPICS))
    if known in ("the query", "both"):
        by_topic = np.eye(len(TOPICS))[topics]
    by_style = np.full((count, len(STYLES)), 1 / len(STYLES))
    if known in ("the purchase", "both"):
        by_style = np.eye(len(STYLES))[styles]
    # Rounded, so that equal ones tie.
    found = np.einsum("et,es,tsm->etm", by_topic, by_style, table).round(12).reshape(count, -1)
    # Items of the log, by their place among the notes.
    note = np.array([int(name) - len(STYLES) for name in log.item_ids[1:]])
    scores = np.where(note >= 0, found[:, np.maximum(note, 0)], 0.0)
    return np.pad(scores, ((0, 0), (1, 0)))


def ranked(
    log: Log, examples: SearchExamples, structure: Structure, known: str
) -> dict[str, float]:
    """Returns the metrics of the best ranking by what is known, as `search/catalogue` has them.

    Args:
      known: one of `KNOWN`.
    """
    scores = probabilities(log, examples, structure, known)
    own = np.take_along_axis(scores, examples.item[:, None], 1)
    above, tied = (scores[:, 1:] > own).sum(1), (scores[:, 1:] == own).sum(1) - 1
    sums = metrics.Sums(_METRICS)
    sums.add(above, tied, np.ones(len(above)), np.zeros(len(above), bool))
    return sums.means()


def structure_of(directory: str) -> Structure:
    """Reads a sample's parameters from its truth.json."""
    with open(os.path.join(directory, "truth.json"), encoding="utf-8") as file:
        values: dict[str, Any] = json.load(file)
    return Structure(by_rule=values["by_rule"], rounds=values["rounds"])


def main() -> None:
    """Prints the bounds of a sample's held-out searches."""
    from input_pipelines import prepare

    parser = argparse.ArgumentParser(description="Prints what can be known of searches.")
    parser.add_argument("--users", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = os.path.join(folder, "sample")
        write_two_facts(raw, num_users=given.users, seed=given.seed)
        log, _ = prepare.prepare_log("qilin", raw, folder, {"segmenter": "characters"})
        searches = held_out_searches(log, split_log(log, "by_user"), given.split)
        structure = structure_of(raw)
        print(f"{len(searches)} searches of {given.split} users; items {log.num_items}")
        print("known".ljust(14), *(name.rjust(8) for name in _METRICS))
        for known in KNOWN:
            values = ranked(log, searches, structure, known)
            print(known.ljust(14), *(f"{values[name]:8.4f}" for name in _METRICS))


if __name__ == "__main__":
    main()
