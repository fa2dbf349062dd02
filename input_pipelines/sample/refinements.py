"""Makes a sample in Qilin's file format whose searches need a chain of steps of reasoning.

A user searches for a style, and then for a topic with refinements: 'tent darker wider
rounder'. Each refinement turns every style into another, so that the item wanted is the topic's in
the style that all of them, one after the other, make of the style searched for before. A share of
the clicks follows this rule, all others take any style of the topic.

The table of a step's words is a Latin square: whatever the word, other styles become other styles,
and whatever the style, other words make other styles. So whoever lacks a single fact, the first
style or any one word, knows nothing of the style: all are equally likely. A part of the chain is
worth no more than a guess, and all of it has a ceiling: `ranked` ranks by these very
probabilities, and

    python -m input_pipelines.sample.refinements [--users=2000] [--seed=0] [--split=test]

prints the bounds of a sample's searches under `search/catalogue`.

Beside the sample is reasoning to distil, `traces.jsonl`: of each search the style before, and for
each step what it is about, its word and the style that the word makes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
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
TRACES = "traces.jsonl"
_START = 1_730_000_000  # seconds
_METRICS = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10")
TOPICS = ("camera", "sneakers", "tent", "guitar")
STYLES = ("red", "blue", "green", "gold")
# What each step is about, and its words, as many as styles.
STEPS = ("tone", "size", "cut")
WORDS = (
    ("darker", "lighter", "warmer", "cooler"),
    ("wider", "longer", "shorter", "taller"),
    ("rounder", "sharper", "flatter", "softer"),
)
# Items of the recommendations, which no search leads to.
CARDS = ("gift card", "store card", "game card")
# Facts of a search: its first style and its words.
FACTS = 1 + len(WORDS)
# What a ranking may know of a search, with the facts that it lacks; None lacks the topic too.
KNOWN: dict[str, Sequence[int] | None] = {
    "nothing": None,
    "the topic": range(FACTS),
    "the query": [0],
    **{f"all but word {step}": [step] for step in range(1, FACTS)},
    "all": [],
}


@dataclasses.dataclass(frozen=True)
class Structure:
    """Holds the generator's parameters; a topic has one item of each style.

    Attributes:
      by_rule: the share of clicks that follow the chain.
      searches: of a user, each of another topic and after one of a style.
    """

    by_rule: float = 0.9
    searches: int = 3

    def table(self) -> np.ndarray:
        """Returns what each word of a step makes of each style, int [steps, words, styles]: a
        Latin square a step.
        """
        rng = np.random.default_rng(0)  # of the world, whatever the users
        count = len(STYLES)
        square = np.add.outer(np.arange(count), np.arange(count)) % count
        mixed = lambda: rng.permutation(count)  # noqa: E731 - short
        return np.array([mixed()[square[mixed()]][:, mixed()] for _ in WORDS])

    def probabilities(self) -> np.ndarray:
        """Returns P(style clicked | first style, word 1, word 2, ...), [S, W, ..., W, S]."""
        styles = np.arange(len(STYLES))
        for turned in self.table():  # [W, S]; the words of a step become the last axis
            styles = np.moveaxis(turned[:, styles], 0, -1)
        return self.by_rule * np.eye(len(STYLES))[styles] + (1 - self.by_rule) / len(STYLES)


def _trace(structure: Structure, style: int, words: Sequence[int]) -> str:
    """Writes what the teacher says about a search."""
    table, told = structure.table(), [STYLES[style]]
    for step, word in enumerate(words):
        style = int(table[step, word, style])
        told += [STEPS[step], WORDS[step][word], STYLES[style]]
    return " ".join(told)


def _generate_user(
    structure: Structure, name: str, rng: np.random.Generator
) -> tuple[User, list[dict[str, str]]]:
    """Makes a user, with the teacher's traces of the user's searches."""
    user, traces = User([], []), []
    now = _START + int(rng.integers(0, 30 * 86_400))
    user.clicks.append((now, int(rng.integers(len(CARDS)))))
    probabilities = structure.probabilities()
    # No topic twice: a trace names its search by user, query and item.
    for topic in rng.permutation(len(TOPICS))[: structure.searches].tolist():
        first, *words = rng.integers(len(STYLES), size=FACTS).tolist()
        now += int(rng.integers(3_600, 43_200))
        user.searches.append((now, STYLES[first], []))
        now += int(rng.integers(30, 3_600))
        style = int(rng.choice(len(STYLES), p=probabilities[(first, *words)]))
        item = len(CARDS) + len(STYLES) * topic + style
        query = " ".join([TOPICS[topic], *(WORDS[k][word] for k, word in enumerate(words))])
        user.searches.append((now, query, [item]))
        reasoning = _trace(structure, first, words)
        traces.append({"user": name, "query": query, "item": str(item), "reasoning": reasoning})
    return user, traces


def write_refinements(out: str, *, num_users: int, seed: int) -> None:
    """Writes the parquet folders and the traces to `out`, whole or not at all.

    Args:
      out: a folder that does not exist yet.
    """
    structure = Structure()
    rng = np.random.default_rng(seed)
    made = [_generate_user(structure, str(number), rng) for number in range(num_users)]
    names = [*CARDS, *(f"{style} {topic}" for topic in TOPICS for style in STYLES)]
    notes = pa.table({"note_title": names, "note_content": names, "note_idx": range(len(names))})
    traces = "".join(json.dumps(trace) + "\n" for _, told in made for trace in told)
    files.write(
        out,
        [user for user, _ in made],
        notes,
        recommended=(0, len(CARDS)),
        searched=(len(CARDS), len(names)),
        truth=dataclasses.asdict(structure) | {"seed": seed},
        rng=rng,
        more={TRACES: traces},
    )


def facts(log: Log, examples: SearchExamples) -> tuple[np.ndarray, np.ndarray]:
    """Returns the topic of each search int [E], and its facts int [E, FACTS], as places among
    STYLES and each step's WORDS.

    Args:
      log: of a sample of `write_refinements`.
    """
    topics, told = [], []
    for row, end in zip(examples.target_row.tolist(), examples.search_end.tolist(), strict=True):
        topic, *words = log.query(row)
        topics.append(TOPICS.index(topic))
        first = STYLES.index(log.query(end - 1)[0])
        told.append([first, *(WORDS[k].index(word) for k, word in enumerate(words))])
    return np.array(topics), np.array(told)


def probabilities(
    log: Log, examples: SearchExamples, structure: Structure, known: str
) -> np.ndarray:
    """Returns P(item is clicked | what is known), float64 [E, V+1]; column 0 is padding's.

    Args:
      known: a key of `KNOWN`; facts that it lacks are equally likely.
    """
    topics, told = facts(log, examples)
    lacking = KNOWN[known]
    unknown = np.zeros(FACTS, bool)
    unknown[range(FACTS) if lacking is None else list(lacking)] = True
    table = structure.probabilities().mean(tuple(np.flatnonzero(unknown)))
    of_style = table[tuple(told[:, ~unknown].T)] if not unknown.all() else table[None]
    of_style = np.broadcast_to(of_style, (len(topics), len(STYLES)))
    of_topic = np.eye(len(TOPICS))[topics]
    if lacking is None:
        of_topic = np.full_like(of_topic, 1 / len(TOPICS))
    # Rounded, so that equal ones tie.
    scores = np.einsum("et,es->ets", of_topic, of_style).round(12).reshape(len(topics), -1)
    # Items of the log, by their place among the notes.
    note = np.array([int(name) - len(CARDS) for name in log.item_ids[1:]])
    return np.pad(np.where(note >= 0, scores[:, np.maximum(note, 0)], 0.0), ((0, 0), (1, 0)))


def ranked(
    log: Log, examples: SearchExamples, structure: Structure, known: str
) -> dict[str, float]:
    """Returns the metrics of the best ranking by what is known, as `search/catalogue` has them.

    Args:
      known: a key of `KNOWN`.
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
    return Structure(**{name: values[name] for name in dataclasses.asdict(Structure())})


def main() -> None:
    """Prints the bounds of a sample's held-out searches."""
    from input_pipelines import prepare

    parser = argparse.ArgumentParser(description="Prints what can be known of searches.")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = os.path.join(folder, "sample")
        write_refinements(raw, num_users=given.users, seed=given.seed)
        log, _ = prepare.prepare_log("qilin", raw, folder, {"segmenter": "characters"})
        searches = held_out_searches(log, split_log(log, "by_user"), given.split)
        structure = structure_of(raw)
        print(f"{len(searches)} searches of {given.split} users; items {log.num_items}")
        print("known".ljust(16), *(name.rjust(8) for name in _METRICS))
        for known in KNOWN:
            values = ranked(log, searches, structure, known)
            print(known.ljust(16), *(f"{values[name]:8.4f}" for name in _METRICS))


if __name__ == "__main__":
    main()
