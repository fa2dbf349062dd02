"""Ranks the sample Bayes-optimally: by the generator's parameters, not by the users' secrets.

An exact forward filter over (all searches noise, current topic, brand) reads a user's history in
time order and gives each item's probability of being clicked next, with or without the searches.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from core import metrics
from input_pipelines.log import Log
from input_pipelines.sample.generator import _ENDINGS, TOPICS, Structure
from input_pipelines.splits import Examples

_TOPIC_OF_WORD = {name + ending: i for i, name in enumerate(TOPICS) for ending in _ENDINGS}
_TINY = 1e-300


class Truth:
    """Holds what a sample's truth.json says.

    Attributes:
      structure: the generator's parameters.
      all_noise_users: original user ids whose own searches are all noise.
    """

    def __init__(self, directory: str):
        with open(os.path.join(directory, "truth.json"), encoding="utf-8") as file:
            values: dict[str, Any] = json.load(file)
        self.all_noise_users = {str(i) for i in values.pop("all_noise_users")}
        values.pop("seed")
        values.pop("shuffle_searches")
        self.structure = Structure(**values | {"clicks": tuple(values["clicks"])})


class Filter:
    """Tracks beliefs [2, T, G] over (user searches before changes or not, topic, brand)."""

    def __init__(self, structure: Structure, use_search: bool):
        s = structure
        self._structure, self._use_search = s, use_search
        self._topic, self._brand = s.topic_probabilities(), s.brand_probabilities()
        t, g = s.topics, s.brands
        self._weights = np.broadcast_to(s.cell_weights(), (t, g, s.items_per_cell))
        self.unseen = np.ones((t, g, s.items_per_cell))
        share = np.array([1 - s.all_noise, s.all_noise])
        self.belief = np.broadcast_to(share[:, None, None], (2, t, g)) / (t * g)

    def before_click(self, first: bool, announced: int | None) -> None:
        """Lets the topic change; `announced` is the topic of an informative query, if any."""
        change = 1.0 if first else self._structure.change
        changed = self.belief.sum(1, keepdims=True) / self._structure.topics
        drifted = (1 - change) * self.belief + change * changed
        if not self._use_search:
            self.belief = drifted
            return
        belief = np.zeros_like(self.belief)
        if announced is None:
            belief[0] = (1 - change) * self.belief[0]
            belief[1] = drifted[1]
        else:
            belief[0, announced] = change * changed[0, 0]
        total = belief.sum()
        # Searches that this generator cannot have made (shuffled ones) are left unread.
        self.belief = belief / total if total > _TINY else drifted

    def _normaliser(self) -> np.ndarray:
        """Returns the mass of the unseen items for every topic and brand, [T, G]."""
        open_mass = (self._weights * self.unseen).sum(-1)
        return self._topic @ open_mass @ self._brand.T

    def observe(self, z: int, g: int, i: int) -> None:
        """Updates the belief by a click on item i of cell (z, g)."""
        likelihood = np.outer(self._topic[:, z], self._brand[:, g]) / self._normaliser()
        belief = self.belief * likelihood
        self.belief = belief / belief.sum()
        self.unseen[z, g, i] = 0.0

    def next_item(self) -> np.ndarray:
        """Returns P(next click), [T, G, items_per_cell]; zero for items already clicked."""
        mixture = self.belief.sum(0) / self._normaliser()
        cells = self._topic.T @ mixture @ self._brand
        return cells[..., None] * self._weights * self.unseen


def _events(log: Log, user: int, rec_end: int, search_end: int) -> Iterator[tuple[str, int]]:
    """Yields ('search', row) and ('click', row) of a history by time; equal times: search first."""
    rec = int(log.rec_offsets[user])
    search = int(log.search_offsets[user])
    while rec < rec_end or search < search_end:
        search_next = search < search_end and (
            rec == rec_end or log.search_times[search] <= log.rec_times[rec]
        )
        if search_next:
            yield "search", search
            search += 1
        else:
            yield "click", rec
            rec += 1


def noise_share(log: Log, examples: Examples) -> np.ndarray:
    """Returns the share of noise among each history's searches, float64 [E]; NaN without any."""
    topical = [str(word) in _TOPIC_OF_WORD for word in log.words]
    informative = [
        any(topical[w] for w in log.word_ids[start:end])
        for start, end in zip(log.word_offsets[:-1], log.word_offsets[1:], strict=True)
    ]
    counts = np.concatenate([[0], np.cumsum(~np.array(informative, bool))])
    start = log.search_offsets[examples.user]
    searches = examples.search_end - start
    noise = counts[examples.search_end] - counts[start]
    return np.where(searches > 0, noise / np.maximum(searches, 1), np.nan)


def announces(words: Iterable[str]) -> bool:
    """Tells whether a query names a topic, that of the next click; other queries are noise."""
    return any(word in _TOPIC_OF_WORD for word in words)


def bayes_scores(
    truth: Truth, log: Log, examples: Examples, candidates: np.ndarray, *, use_search: bool
) -> np.ndarray:
    """Returns P(next click) of each candidate.

    Args:
      candidates: int32 [E, N], log ids.
      use_search: read the searches, or be blind to them.

    Returns:
      float64 [E, N].
    """
    s = truth.structure
    shape = (s.topics, s.brands, s.items_per_cell)
    # Row 0 is padding; notes that are never recommended keep -1.
    note = np.array([-1, *(int(name) for name in log.item_ids[1:])])
    note[note >= s.num_recommended] = -1
    topic_of_word = [_TOPIC_OF_WORD.get(str(word)) for word in log.words]
    scores = np.zeros(candidates.shape)
    for row in range(len(examples)):
        belief = Filter(s, use_search)
        announced, first = None, True
        for kind, event in _events(
            log, int(examples.user[row]), int(examples.rec_end[row]), int(examples.search_end[row])
        ):
            if kind == "click":
                belief.before_click(first, announced)
                belief.observe(*map(int, np.unravel_index(note[log.rec_items[event]], shape)))
                announced, first = None, False
                continue
            words = log.word_ids[log.word_offsets[event] : log.word_offsets[event + 1]]
            topics = [t for w in words if (t := topic_of_word[w]) is not None]
            announced = topics[0] if topics else announced
        belief.before_click(first, announced)
        notes = note[candidates[row]]
        probabilities = belief.next_item().reshape(-1)
        scores[row] = np.where(notes >= 0, probabilities[np.maximum(notes, 0)], 0.0)
    return scores


def truth_metric(scores: np.ndarray, name: str = "ndcg@5") -> np.ndarray:
    """Computes a metric per example of the truth's scores [E, N], the target in column 0."""
    return np.asarray(metrics.metric(name)(*metrics.target_ranks(scores)))
