"""Writes the embedded sample: made-up users in Qilin's file format, with a planted structure.

Every user has a favourite brand and a current topic that changes now and then. Most users search
before their topic changes, so an informative query announces the next clicks; noise queries (such
as "visa apply") announce nothing, and some users' searches are all noise. A click is drawn from
topic and brand: the search history tells the topic, the recommendation history the brand.
`sample.truth` ranks by these very probabilities. A note's text names its topic and brand.

    python -m input_pipelines.sample --out=DIR [--users=3000] [--seed=0] [--shuffle_searches]

`--format=hops` writes another world, whose users need 0 to 4 steps of reasoning (`sample.hops`);
`--format=refinements` one whose searches need a chain of facts (`sample.refinements`);
`--format=kuaisar` writes files of another kind, to rehearse with (`sample.kuaisar_format`).
"""

from __future__ import annotations

import argparse
import dataclasses
import os

import numpy as np
import pyarrow as pa

from core.errors import UserError
from input_pipelines.sample import files, kuaisar_format
from input_pipelines.sample import hops as hops_world
from input_pipelines.sample import refinements as refinements_world
from input_pipelines.sample.files import User

TOPICS = [
    "camera",
    "sneakers",
    "tent",
    "guitar",
    "teapot",
    "lipstick",
    "drone",
    "bicycle",
    "aquarium",
    "puzzle",
    "blender",
    "jacket",
    "perfume",
    "watch",
    "telescope",
    "yoga",
    "skateboard",
    "orchid",
    "printer",
    "backpack",
    "keyboard",
    "candle",
    "violin",
    "kayak",
]
# Each topic's words: the name alone, and the name with an ending.
_ENDINGS = ("", "s", "kit", "guide", "deal", "review")
NOISE_WORDS = [
    "visa",
    "apply",
    "weather",
    "tomorrow",
    "exchange",
    "rate",
    "train",
    "ticket",
    "tax",
    "refund",
    "passport",
    "photo",
    "bus",
    "map",
    "签",
    "证",
    "天",
    "气",
]
_START = 1_730_000_000  # seconds
_VERSION = 3  # checksums


@dataclasses.dataclass(frozen=True)
class Structure:
    """Holds the generator's parameters.

    Attributes:
      brands, items_per_cell: a cell is a topic and a brand; its items have Zipf weights.
      notes_per_topic, noise_notes: notes that are clicked in searches only.
      change: probability that the topic changes before a click (the first click always changes).
      on_topic, on_brand: probability that a click follows the current topic, the user's brand;
        otherwise topic or brand are uniform.
      all_noise: share of users who never search before a change.
      noise_rate: mean number of noise searches before a click.
      clicks: least and most recommendation clicks of a user.
      topics: how many, the first of `TOPICS`.
    """

    brands: int = 5
    items_per_cell: int = 5
    notes_per_topic: int = 5
    noise_notes: int = 30
    change: float = 0.35
    on_topic: float = 0.85
    on_brand: float = 0.7
    all_noise: float = 0.2
    noise_rate: float = 0.4
    clicks: tuple[int, int] = (8, 18)
    topics: int = len(TOPICS)

    @property
    def num_recommended(self) -> int:
        return self.topics * self.brands * self.items_per_cell

    @property
    def num_items(self) -> int:
        return self.num_recommended + self.topics * self.notes_per_topic + self.noise_notes

    def topic_probabilities(self) -> np.ndarray:
        """Returns P(topic of a click | current topic), [T, T]."""
        return _sticky(self.topics, self.on_topic)

    def brand_probabilities(self) -> np.ndarray:
        """Returns P(brand of a click | the user's brand), [G, G]."""
        return _sticky(self.brands, self.on_brand)

    def cell_weights(self) -> np.ndarray:
        """Returns P(item | its cell), [items_per_cell]."""
        weights = 1.0 / np.arange(1, self.items_per_cell + 1)
        return weights / weights.sum()


def _sticky(size: int, stay: float) -> np.ndarray:
    return np.full((size, size), (1 - stay) / size) + stay * np.eye(size)


def _generate_user(structure: Structure, rng: np.random.Generator) -> tuple[User, bool]:
    """Makes a user, and tells whether all of their searches are noise."""
    s, topics = structure, structure.topics
    all_noise = bool(rng.random() < s.all_noise)
    brand, topic = int(rng.integers(s.brands)), 0
    weights = s.cell_weights()
    now = _START + int(rng.integers(0, 30 * 86_400))
    seen: set[int] = set()
    clicks, searches = [], []

    def search(words, notes):
        nonlocal now
        now += int(rng.integers(30, 3_600))
        clicked = rng.choice(notes, min(int(rng.integers(0, 3)), len(notes)), replace=False)
        size = int(rng.integers(2, 5))
        query = " ".join(rng.choice(words, min(size, len(words)), replace=False))
        searches.append((now, query, [int(n) for n in clicked]))

    first_noise_note = s.num_items - s.noise_notes
    for position in range(int(rng.integers(s.clicks[0], s.clicks[1] + 1))):
        if position == 0 or rng.random() < s.change:
            topic = int(rng.integers(topics))
            if not all_noise:
                first = s.num_recommended + topic * s.notes_per_topic
                words = [TOPICS[topic] + ending for ending in _ENDINGS]
                search(words, np.arange(first, first + s.notes_per_topic))
        for _ in range(int(rng.poisson(s.noise_rate))):
            search(NOISE_WORDS, np.arange(first_noise_note, s.num_items))
        while True:
            z = topic if rng.random() < s.on_topic else int(rng.integers(topics))
            g = brand if rng.random() < s.on_brand else int(rng.integers(s.brands))
            i = int(rng.choice(s.items_per_cell, p=weights))
            item = (z * s.brands + g) * s.items_per_cell + i
            if item not in seen:
                break
        seen.add(item)
        now += int(rng.integers(60, 43_200))
        clicks.append((now, item))
    return User(clicks, searches), all_noise


def _notes(structure: Structure) -> pa.Table:
    """Makes the notes' table: titles by topic and brand; a few words on the topic as content."""
    s = structure
    # A generator of its own, so that texts change no event.
    rng = np.random.default_rng(0)
    titles, contents = [], []
    for note in range(s.num_items):
        place = note - s.num_recommended
        if place < 0:
            cell, number = divmod(note, s.items_per_cell)
            topic, brand = divmod(cell, s.brands)
            words = [TOPICS[topic] + ending for ending in _ENDINGS]
            titles.append(f"{TOPICS[topic]} of brand{brand} no{number}")
        elif place < s.topics * s.notes_per_topic:
            topic, number = divmod(place, s.notes_per_topic)
            words = [TOPICS[topic] + ending for ending in _ENDINGS]
            titles.append(f"all about {TOPICS[topic]} part{number}")
        else:
            words = NOISE_WORDS
            titles.append(f"notice no{place - s.topics * s.notes_per_topic}")
        contents.append(" ".join(rng.choice(words, 3)))
    columns = {"note_title": titles, "note_content": contents, "note_idx": range(s.num_items)}
    return pa.table({name: list(values) for name, values in columns.items()})


def write_sample(
    out: str,
    *,
    num_users: int,
    seed: int,
    shuffle_searches: bool = False,
    structure: Structure | None = None,
) -> None:
    """Writes the sample's parquet folders to `out`, whole or not at all.

    Args:
      out: a folder that does not exist yet.
      shuffle_searches: hand each user's searches to another user, so that they announce nothing.
    """
    structure = structure or Structure()
    rng = np.random.default_rng(seed)
    users, all_noise = zip(*(_generate_user(structure, rng) for _ in range(num_users)), strict=True)
    if shuffle_searches:
        # Moving on by one in a random order gives nobody their own.
        order = rng.permutation(num_users)
        moved = [users[i].searches for i in np.roll(order, 1)]
        for i, searches in zip(order, moved, strict=True):
            users[i].searches = searches
    truth = dataclasses.asdict(structure) | {
        "seed": seed,
        "shuffle_searches": shuffle_searches,
        "all_noise_users": [i for i, noise in enumerate(all_noise) if noise],
    }
    files.write(
        out,
        users,
        _notes(structure),
        recommended=(0, structure.num_recommended),
        searched=(structure.num_recommended, structure.num_items),
        truth=truth,
        rng=rng,
    )


def ensure_sample(
    cache_dir: str,
    *,
    num_users: int,
    seed: int,
    shuffle_searches: bool,
    hops: bool = False,
    refinements: bool = False,
) -> str:
    """Returns the folder of this sample below `cache_dir`; writes it on first use.

    Args:
      hops, refinements: take the sample of that module, whose searches cannot be shuffled.

    Raises:
      UserError: more than one of hops, refinements and shuffle_searches, a cache directory that
        cannot be written, or a sample there that is not what was written.
    """
    asked = {"hops": hops, "refinements": refinements, "shuffle_searches": shuffle_searches}
    chosen = [f"on_sample.{name}" for name, is_asked in asked.items() if is_asked]
    if len(chosen) > 1:
        raise UserError(
            f"expected one of {' and '.join(chosen)}, found {len(chosen)}; leave one out"
        )
    name = f"sample-v{_VERSION}-{num_users}-{seed}" + ("-shuffled" if shuffle_searches else "")
    if hops:
        name = f"sample-hops-v{hops_world.VERSION}-{num_users}-{seed}"
    if refinements:
        name = f"sample-refinements-v{refinements_world.VERSION}-{num_users}-{seed}"
    out = os.path.join(cache_dir, name)
    if os.path.isdir(out):
        files.check(out)
        return out
    try:
        if hops:
            hops_world.write_hops(out, num_users=num_users, seed=seed)
        elif refinements:
            refinements_world.write_refinements(out, num_users=num_users, seed=seed)
        else:
            write_sample(out, num_users=num_users, seed=seed, shuffle_searches=shuffle_searches)
    except OSError as error:
        if os.path.isdir(out):  # another process wrote the same sample first
            return out
        raise UserError(
            f"expected to write the embedded sample to {out}, found {error.strerror or error}; "
            "free space or pass another cache_dir"
        ) from error
    return out


def main() -> None:
    """Writes the made-up data that the command line asks for."""
    parser = argparse.ArgumentParser(description="Writes made-up data.")
    parser.add_argument("--out", required=True)
    parser.add_argument(
        "--format", choices=("qilin", "hops", "refinements", "kuaisar"), default="qilin"
    )
    parser.add_argument("--users", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shuffle_searches", action="store_true", help="of qilin")
    parser.add_argument("--scale", choices=("small", "large"), help="of kuaisar; default small")
    given = parser.parse_args()
    if os.path.exists(given.out):
        parser.error(f"expected no {given.out} yet, found one; pass another --out")
    if given.users < 2:
        parser.error(f"expected --users of 2 or more, found {given.users}")
    if given.format != "qilin" and given.shuffle_searches:
        parser.error("expected --shuffle_searches with --format=qilin only; drop it")
    if given.format == "kuaisar":
        kuaisar_format.write_kuaisar(
            given.out, num_users=given.users, scale=given.scale or "small", seed=given.seed
        )
        return
    if given.scale:
        parser.error("expected --scale with --format=kuaisar only; drop it")
    if given.format == "hops":
        hops_world.write_hops(given.out, num_users=given.users, seed=given.seed)
        return
    if given.format == "refinements":
        refinements_world.write_refinements(given.out, num_users=given.users, seed=given.seed)
        return
    write_sample(
        given.out,
        num_users=given.users,
        seed=given.seed,
        shuffle_searches=given.shuffle_searches,
    )
