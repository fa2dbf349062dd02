"""Defines the log that every data set becomes: per user, clicks and searches in time order.

Ids count from 1; 0 is padding. Times are int64 in one unit a log; the history of a target is what
has a strictly smaller time.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from core.errors import UserError
from input_pipelines import segmenters, times
from input_pipelines.empty_searches import count_left_out, with_content
from input_pipelines.names import Names, lay_out

_LOG = logging.getLogger(__name__)

# The fields that hold names: where each begins, and their UTF-8.
NAME_ARRAYS = (
    ("user_id_offsets", "user_id_bytes"),
    ("item_id_offsets", "item_id_bytes"),
    ("word_text_offsets", "word_text_bytes"),
)
ARRAYS = (
    *itertools.chain(*NAME_ARRAYS),
    "rec_offsets",
    "rec_items",
    "rec_times",
    "search_offsets",
    "search_times",
    "word_offsets",
    "word_ids",
    "click_offsets",
    "click_items",
)
# Each group is whole, in logs of sources that have it, or absent.
TEXT_ARRAYS = ("text_offsets", "text_bytes")
UNCLICKED_ARRAYS = ("unclicked_offsets", "unclicked_items")
PLACE_ARRAYS = ("place_offsets", "place_bytes", "search_places")
PROFILE_ARRAYS = ("profile_offsets", "profile_bytes")
BEGIN_ARRAYS = ("search_begins",)
FACT_ARRAYS = ("fact_offsets", "fact_bytes")
OPTIONAL_ARRAYS = (
    TEXT_ARRAYS,
    UNCLICKED_ARRAYS,
    PLACE_ARRAYS,
    PROFILE_ARRAYS,
    BEGIN_ARRAYS,
    FACT_ARRAYS,
)


@dataclasses.dataclass(frozen=True)
class Log:
    """Holds a data set's events; U users, V items, R clicks, S searches, P places.

    The arrays of events of a log in shards are `ShardedArray`, which have the same rows.

    Attributes:
      name: the data set's.
      is_sample: made-up data; whoever prints or saves results on it says so.
      user_id_offsets: int64 [U+2], and user_id_bytes: uint8, the original names, as `Names`; the
        same of items, item_id_*, and of words, word_text_*. `user_ids`, `item_ids` and `words` read
        them.
      rec_offsets: int64 [U+2]; user u's clicks are rows rec_offsets[u]:rec_offsets[u+1].
      rec_items, rec_times: int32 and int64 [R], times ascending within a user.
      search_offsets, search_times: int64 [U+2], [S], likewise.
      word_offsets, word_ids: int64 [S+1], int32; the words of search s.
      click_offsets, click_items: int64 [S+1], int32; the items clicked in search s.
      published: the source's own split, where it has one: PART_target_row, PART_rec_end and
        PART_search_end, int64 [E] as in `splits.Examples`, and PART_negatives, int32 [E, N], for
        the parts train, validation and test.
      hash: 16 hex digits over the events, names and profiles; texts, facts, the time's unit and
        `reading` are not in it.
      text_offsets: int64 [V+2], and text_bytes: uint8; item i's text is UTF-8 in
        text_bytes[text_offsets[i]:text_offsets[i+1]]. None where the source has no texts.
      unclicked_offsets, unclicked_items: int64 [S+1], int32; the items shown in search s and not
        clicked, as they stood on its page. None where the source does not say what was shown.
      place_offsets: int64 [P+2], and place_bytes: uint8, names of places, which `places` reads;
        search_places: int32 [S], where search s looked or was made, 0 where that is not known. None
        where the source has no places.
      profile_offsets: int64 [U+2], and profile_bytes: uint8; what is known of user u, as text by
        name, is JSON in profile_bytes[profile_offsets[u]:profile_offsets[u+1]], nothing where
        nothing is. None where the source has no profiles.
      search_begins: int64 [S], when each search was asked, where that is earlier than its time, at
        which it is history; a search's own history ends there. None where no search's is.
      fact_offsets: int64 [V+2], and fact_bytes: uint8; what is known of item i, of title, price,
        brand and category, is JSON as of profiles. None where the source has no facts of items.
      time_unit: of `times.UNITS`: what times count from 1970 in, or positions, an order alone.
      reading: what the reader left out or found odd, by name, for the data card.
    """

    name: str
    is_sample: bool
    user_id_offsets: np.ndarray
    user_id_bytes: np.ndarray
    item_id_offsets: np.ndarray
    item_id_bytes: np.ndarray
    word_text_offsets: np.ndarray
    word_text_bytes: np.ndarray
    rec_offsets: np.ndarray
    rec_items: np.ndarray
    rec_times: np.ndarray
    search_offsets: np.ndarray
    search_times: np.ndarray
    word_offsets: np.ndarray
    word_ids: np.ndarray
    click_offsets: np.ndarray
    click_items: np.ndarray
    published: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    hash: str = ""
    text_offsets: np.ndarray | None = None
    text_bytes: np.ndarray | None = None
    unclicked_offsets: np.ndarray | None = None
    unclicked_items: np.ndarray | None = None
    place_offsets: np.ndarray | None = None
    place_bytes: np.ndarray | None = None
    search_places: np.ndarray | None = None
    profile_offsets: np.ndarray | None = None
    profile_bytes: np.ndarray | None = None
    search_begins: np.ndarray | None = None
    fact_offsets: np.ndarray | None = None
    fact_bytes: np.ndarray | None = None
    time_unit: str = times.POSITIONS
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def user_ids(self) -> Names:
        """Reads the source's ids of users 0..U; that of 0, padding, is ''."""
        return Names(self.user_id_offsets, self.user_id_bytes)

    @functools.cached_property
    def item_ids(self) -> Names:
        """Reads the source's ids of items 0..V; that of 0, padding, is ''."""
        return Names(self.item_id_offsets, self.item_id_bytes)

    @functools.cached_property
    def words(self) -> Names:
        """Reads the words 0..W of queries; word 0, padding, is ''."""
        return Names(self.word_text_offsets, self.word_text_bytes)

    @functools.cached_property
    def places(self) -> Names | None:
        """Reads the places 0..P of searches; None where the source has none."""
        if self.place_offsets is None or self.place_bytes is None:
            return None
        return Names(self.place_offsets, self.place_bytes)

    @property
    def num_users(self) -> int:
        return len(self.user_ids) - 1

    @property
    def num_items(self) -> int:
        return len(self.item_ids) - 1

    @property
    def num_words(self) -> int:
        return len(self.words) - 1

    def query(self, search: int) -> list[str]:
        """Returns the words of a search."""
        ids = self.word_ids[self.word_offsets[search] : self.word_offsets[search + 1]]
        return self.words[ids].tolist()

    def unclicked(self, search: int) -> np.ndarray:
        """Returns a search's items that were shown, not clicked, int32; none where not known."""
        if self.unclicked_offsets is None or self.unclicked_items is None:
            return np.zeros(0, np.int32)
        ends = self.unclicked_offsets
        return self.unclicked_items[ends[search] : ends[search + 1]]

    def asked_at(self, search: int) -> int:
        """Returns the time at which a search was asked."""
        asked = self.search_times if self.search_begins is None else self.search_begins
        return int(asked[search])

    def place(self, search: int) -> str:
        """Returns the place of a search; empty where it is not known."""
        if self.places is None or self.search_places is None:
            return ""
        return self.places[self.search_places[search]]

    def profile(self, user: int) -> dict[str, str]:
        """Returns what is known of a user, by name; {} where the source has no profiles."""
        return _json_at(self.profile_offsets, self.profile_bytes, user)

    def facts(self, item: int) -> dict[str, str]:
        """Returns an item's title, price, brand and category as text, as far as they are known."""
        return _json_at(self.fact_offsets, self.fact_bytes, item)

    def item_texts(self) -> list[str]:
        """Returns the texts of items 1..V, '' for an item without one.

        Raises:
          UserError: the source has no texts.
        """
        if self.text_offsets is None or self.text_bytes is None:
            raise UserError(
                f"expected item texts in the log of {self.name}, found none in its source; bring "
                "titles with the items"
            )
        flat = np.asarray(self.text_bytes).tobytes()
        ends = np.asarray(self.text_offsets)[1:].tolist()
        return [flat[a:b].decode() for a, b in itertools.pairwise(ends)]


def _json_at(offsets: np.ndarray | None, flat: np.ndarray | None, row: int) -> dict[str, str]:
    if offsets is None or flat is None:
        return {}
    first, last = offsets[row : row + 2]
    return json.loads(flat[first:last].tobytes() or b"{}")


class Ragged(NamedTuple):
    """Holds n rows of different lengths, laid end to end.

    Attributes:
      ends: int64 [n+1]; row i is values[ends[i]:ends[i+1]].
      values: an array or a list.
    """

    ends: np.ndarray
    values: Any


@dataclasses.dataclass(frozen=True)
class RawEvents:
    """Holds the events that a reader hands over, with original names, in any order.

    A source that numbers its users or items itself hands over int64 from 0 instead of str: arrays
    for all columns of users or items, and `Ragged` for the items of searches. The decimal text of a
    number is its name.

    Attributes:
      click_user, click_item: str [R]; click_time: int64 [R].
      search_user: str [S]; search_time: int64 [S].
      search_words, search_clicks: per search the words and clicked items, str.
      items: further items of the catalogue without clicks (impressions, feature files).
      item_texts: text by item, for sources that have it; other items are not added by it.
      search_unclicked: per search the items shown and not clicked, for sources that have them.
      search_places: str [S], '' where not known, for sources that have places.
      user_profiles: by user what is known, text by name; other users are not added by it.
      search_begins: int64 [S], at or before search_time, for sources that tell when a search was
        asked and when its last click came.
      item_facts: by item what is known of title, price, brand and category, text by name, for
        sources that have it; other items are not added by it.
      time_unit, reading: as in `Log`.
    """

    click_user: Sequence[str] | np.ndarray
    click_item: Sequence[str] | np.ndarray
    click_time: Sequence[int] | np.ndarray
    search_user: Sequence[str] | np.ndarray
    search_time: Sequence[int] | np.ndarray
    search_words: Sequence[Sequence[str]]
    search_clicks: Sequence[Sequence[str]] | Ragged
    items: Sequence[str] | np.ndarray = ()
    item_texts: Mapping[str, str] | None = None
    search_unclicked: Sequence[Sequence[str]] | Ragged | None = None
    search_places: Sequence[str] | None = None
    user_profiles: Mapping[str, Mapping[str, str]] | None = None
    search_begins: Sequence[int] | np.ndarray | None = None
    item_facts: Mapping[str, Mapping[str, str]] | None = None
    time_unit: str = times.POSITIONS
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def tie_break(values: Sequence[str], seed: int = 0) -> np.ndarray:
    """Returns a seeded hash of each value, uint64: an order of equal times, unrelated to ids."""
    key = str(seed).zfill(16)[:16]
    return pd.util.hash_array(np.asarray(values, dtype=object), hash_key=key, categorize=True)


class _Numbering:
    """Numbers the distinct names of some columns from 1, in the order of their characters.

    Args:
      columns: lists of text, or the first is an array of int64 and so are the others.

    Attributes:
      names: object [n], the name of number i at place i - 1.
    """

    def __init__(self, *columns: Sequence[str] | np.ndarray):
        self._numbers = None
        if _are_numbers(columns[0]):
            numbers = np.unique(np.concatenate([np.asarray(c, np.int64) for c in columns]))
            # 20 bytes hold any of int64; digits sort as bytes like their text.
            order = np.argsort(numbers.astype("S20"))
            self._numbers, self._places = numbers, np.argsort(order)
            distinct = [str(number) for number in numbers[order].tolist()]
        else:
            distinct = sorted(set(itertools.chain(*columns)))
        self._index = pd.Index(distinct, dtype=object)
        self.names = self._index.to_numpy()

    def of(self, values: Sequence[str] | np.ndarray) -> np.ndarray:
        """Returns the numbers of values, all of which the columns hold, int32."""
        if not len(values):
            return np.zeros(0, np.int32)
        if self._numbers is None:
            places = self._index.get_indexer(pd.Index(np.asarray(values, dtype=object)))
        else:
            places = self._places[np.searchsorted(self._numbers, values)]
        return places.astype(np.int32) + 1


def _are_numbers(column: Sequence[str] | np.ndarray) -> bool:
    return isinstance(column, np.ndarray) and column.dtype.kind == "i"


def _ragged(rows: Sequence[Sequence[str]] | Ragged) -> Ragged:
    if isinstance(rows, Ragged):
        return rows
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return Ragged(ends, [value for row in rows for value in row])


def build_log(name: str, events: RawEvents, *, is_sample: bool = False) -> Log:
    """Builds the log of a reader's events: numbers their names and sorts them.

    The same user, item and time twice is one click. A search with neither words nor clicks is
    dropped (`with_content`) and counted. Too long words are cut (`segmenters.cut`) with a warning.

    Raises:
      UserError: there is not one click.
    """
    if not len(events.click_user):
        raise UserError(f"expected clicks in the log of {name}, found none; check the source files")
    words_of, clicks_of = _ragged(_cut_words(name, events)), _ragged(events.search_clicks)
    unclicked_of = _ragged(() if events.search_unclicked is None else events.search_unclicked)
    keep = with_content(words_of.ends, clicks_of.ends)
    searches = np.flatnonzero(keep)
    search_user = _column(events.search_user)[searches]
    search_time = np.asarray(events.search_time, dtype=np.int64)
    users = _Numbering(events.click_user, search_user)
    items = _Numbering(events.click_item, clicks_of.values, unclicked_of.values, events.items)
    words = _Numbering(words_of.values)

    clicks = pd.DataFrame(
        {
            "user": users.of(events.click_user),
            "item": items.of(events.click_item),
            "time": np.asarray(events.click_time, dtype=np.int64),
        }
    ).drop_duplicates()
    tie = tie_break(items.names)[clicks["item"] - 1]
    clicks = clicks.iloc[np.lexsort((tie, clicks["time"], clicks["user"]))]
    search_users = users.of(search_user)
    click_items, unclicked_items = items.of(clicks_of.values), items.of(unclicked_of.values)
    item_lists = [Ragged(clicks_of.ends, items.names[click_items - 1])]
    if events.search_unclicked is not None:
        item_lists.append(Ragged(unclicked_of.ends, items.names[unclicked_items - 1]))
    tie = tie_break(_texts_of_searches(events, searches, item_lists))
    search_order = searches[np.lexsort((tie, search_time[searches], search_users))]
    word_offsets, word_rows = take_ragged(words_of.ends, search_order)
    click_offsets, click_rows = take_ragged(clicks_of.ends, search_order)
    log = Log(
        name=name,
        is_sample=is_sample,
        **laid_out_names(*(lay_out(kind.names) for kind in (users, items, words))),
        rec_offsets=offsets_of_users(clicks["user"].to_numpy(), len(users.names)),
        rec_items=clicks["item"].to_numpy(),
        rec_times=clicks["time"].to_numpy(),
        search_offsets=offsets_of_users(search_users, len(users.names)),
        search_times=search_time[search_order],
        word_offsets=word_offsets,
        word_ids=words.of(words_of.values)[word_rows],
        click_offsets=click_offsets,
        click_items=click_items[click_rows],
        time_unit=events.time_unit,
        reading={**events.reading, **count_left_out(keep)},
    )
    if events.item_texts is not None:
        ends, flat = lay_out(events.item_texts.get(item, "") for item in items.names)
        log = dataclasses.replace(log, text_offsets=ends, text_bytes=flat)
    if events.search_unclicked is not None:
        unclicked_offsets, unclicked_rows = take_ragged(unclicked_of.ends, search_order)
        log = dataclasses.replace(
            log,
            unclicked_offsets=unclicked_offsets,
            unclicked_items=unclicked_items[unclicked_rows],
        )
    if events.search_places is not None:
        of_searches = np.asarray(events.search_places, dtype=object)[search_order]
        # '' is at place 0 already.
        known = of_searches != ""
        places = _Numbering(of_searches[known])
        search_places = np.zeros(len(of_searches), np.int32)
        search_places[known] = places.of(of_searches[known])
        ends, flat = lay_out(places.names)
        log = dataclasses.replace(
            log, place_offsets=ends, place_bytes=flat, search_places=search_places
        )
    if events.search_begins is not None:
        begins = np.asarray(events.search_begins, dtype=np.int64)[search_order]
        if (begins != log.search_times).any():
            log = dataclasses.replace(log, search_begins=begins)
    if events.user_profiles is not None:
        ends, flat = _json_of(events.user_profiles, users.names)
        log = dataclasses.replace(log, profile_offsets=ends, profile_bytes=flat)
    if events.item_facts is not None:
        ends, flat = _json_of(events.item_facts, items.names)
        log = dataclasses.replace(log, fact_offsets=ends, fact_bytes=flat)
    return dataclasses.replace(log, hash=content_hash(log))


def _json_of(
    facts_by_name: Mapping[str, Mapping[str, str]], names: Iterable[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Lays out the facts of each name as JSON, nothing where there are none."""
    facts = (facts_by_name.get(name) for name in names)
    return lay_out(json.dumps(one, ensure_ascii=False) if one else "" for one in facts)


def _column(values: Sequence[str] | np.ndarray) -> np.ndarray:
    return np.asarray(values) if _are_numbers(values) else np.asarray(values, dtype=object)


def _texts_of_searches(
    events: RawEvents, searches: np.ndarray, item_lists: Sequence[Ragged]
) -> list[str]:
    """Returns a text that tells each of `searches` from others of its user and time.

    Args:
      item_lists: names of the items clicked in every search of the source, and of those shown.
    """
    lists = [(one.ends.tolist(), one.values) for one in item_lists]
    texts = []
    for search in searches.tolist():
        parts = list(events.search_words[search])
        for ends, names in lists:
            parts += ["\t", *names[ends[search] : ends[search + 1]]]
        if events.search_places is not None:
            parts += ["\t", events.search_places[search]]
        texts.append(" ".join(parts))
    return texts


def laid_out_names(*names: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """Returns the fields of a `Log` that hold the laid out names of users, items and words."""
    return {
        field: array
        for fields, arrays in zip(NAME_ARRAYS, names, strict=True)
        for field, array in zip(fields, arrays, strict=True)
    }


def _cut_words(name: str, events: RawEvents) -> list[list[str]]:
    """Cuts words that are too long; warns in how many searches, and where the first is."""
    words, cut = [], []
    for row, one in enumerate(events.search_words):
        short = [segmenters.cut(word) for word in one]
        if short != list(one):
            cut.append(row)
        words.append(short)
    if cut:
        _LOG.warning(
            "%s: cut words of more than %d characters in %d searches; the first is search %d of "
            "the source, of user %s",
            *(name, segmenters.LONGEST_WORD, len(cut), cut[0] + 1, events.search_user[cut[0]]),
        )
    return words


def offsets_of_users(users: np.ndarray, num_users: int) -> np.ndarray:
    """Returns where each user's rows start, int64 [num_users + 2], given the user of every row."""
    counts = np.bincount(users, minlength=num_users + 1)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def take_ragged(ends: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (offsets [n+1], row numbers) of the ragged rows `order`, in that order."""
    lengths = np.diff(ends)[order]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.repeat(ends[:-1][order] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return offsets, rows


def content_hash(log: Log) -> str:
    """Returns 16 hex digits over names, ids, times and the published split.

    Places, what was shown, when searches were asked and profiles count where a log has them.
    """
    digest = hashlib.sha256()
    for names in (log.user_ids, log.item_ids, log.words):
        for part in names.lines():
            digest.update(part)
    arrays = [name for name in ARRAYS if name not in set(itertools.chain(*NAME_ARRAYS))]
    for name in (*arrays, *UNCLICKED_ARRAYS, *PLACE_ARRAYS, *PROFILE_ARRAYS, *BEGIN_ARRAYS):
        if name == "place_bytes" or getattr(log, name) is None:
            continue
        if name == "place_offsets" and log.places is not None:
            for part in log.places.lines():
                digest.update(part)
            continue
        array = np.ascontiguousarray(getattr(log, name))
        digest.update(array.data if array.size else b"")
    for name in sorted(log.published):
        array = np.ascontiguousarray(log.published[name])
        digest.update(name.encode() + (array.data if array.size else b""))
    return digest.hexdigest()[:16]
