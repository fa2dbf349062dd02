"""The log schema that every data set becomes: per user, clicks and searches in time order.

Ids count from 1; 0 is padding. Times are int64 in one unit a log; the history of a target is what
has a strictly smaller time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from core.errors import UserError

ARRAYS = (
    "user_ids",
    "item_ids",
    "words",
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
PLACE_ARRAYS = ("places", "search_places")
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
_HASHED_NAMES = 100_000


@dataclasses.dataclass(frozen=True)
class Log:
    """A data set's events; U users, V items, R clicks, S searches, P places.

    Attributes:
      name: the data set's.
      is_sample: made-up data; whoever prints or saves results on it says so.
      user_ids, item_ids, words: original names, str [U+1], [V+1], [W+1]; index 0 is ''.
      rec_offsets: int64 [U+2]; user u's clicks are rows rec_offsets[u]:rec_offsets[u+1].
      rec_items, rec_times: int32 and int64 [R], times ascending within a user.
      search_offsets, search_times: int64 [U+2], [S], likewise.
      word_offsets, word_ids: int64 [S+1], int32; the words of search s.
      click_offsets, click_items: int64 [S+1], int32; the items clicked in search s.
      published: the source's own split, where it has one: PART_target_row, PART_rec_end and
        PART_search_end, int64 [E] as in `splits.Examples`, and PART_negatives, int32 [E, N], for
        the parts train, validation and test.
      hash: 16 hex digits over the events, names and profiles; texts and facts are not in it.
      text_offsets: int64 [V+2], and text_bytes: uint8; item i's text is UTF-8 in
        text_bytes[text_offsets[i]:text_offsets[i+1]]. None where the source has no texts.
      unclicked_offsets, unclicked_items: int64 [S+1], int32; the items shown in search s and not
        clicked, as they stood on its page. None where the source does not say what was shown.
      places: original names, str [P+1], index 0 is ''; search_places: int32 [S], where search s
        looked or was made, 0 where that is not known. None where the source has no places.
      profile_offsets: int64 [U+2], and profile_bytes: uint8; what is known of user u, as text by
        name, is JSON in profile_bytes[profile_offsets[u]:profile_offsets[u+1]], nothing where
        nothing is. None where the source has no profiles.
      search_begins: int64 [S], when each search was asked, where that is earlier than its time, at
        which it is history; a search's own history ends there. None where no search's is.
      fact_offsets: int64 [V+2], and fact_bytes: uint8; what is known of item i, of title, price,
        brand and category, is JSON as of profiles. None where the source has no facts of items.
    """

    name: str
    is_sample: bool
    user_ids: np.ndarray
    item_ids: np.ndarray
    words: np.ndarray
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
    places: np.ndarray | None = None
    search_places: np.ndarray | None = None
    profile_offsets: np.ndarray | None = None
    profile_bytes: np.ndarray | None = None
    search_begins: np.ndarray | None = None
    fact_offsets: np.ndarray | None = None
    fact_bytes: np.ndarray | None = None

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
        """The words of a search."""
        ids = self.word_ids[self.word_offsets[search] : self.word_offsets[search + 1]]
        return [str(self.words[word]) for word in ids]

    def unclicked(self, search: int) -> np.ndarray:
        """The items shown in a search and not clicked, int32; none where that is not known."""
        if self.unclicked_offsets is None or self.unclicked_items is None:
            return np.zeros(0, np.int32)
        ends = self.unclicked_offsets
        return self.unclicked_items[ends[search] : ends[search + 1]]

    def asked_at(self, search: int) -> int:
        """When a search was asked."""
        asked = self.search_times if self.search_begins is None else self.search_begins
        return int(asked[search])

    def place(self, search: int) -> str:
        """The place of a search; empty where it is not known."""
        if self.places is None or self.search_places is None:
            return ""
        return str(self.places[self.search_places[search]])

    def profile(self, user: int) -> dict[str, str]:
        """What is known of a user, by name; nothing where the source has no profiles."""
        return _json_at(self.profile_offsets, self.profile_bytes, user)

    def facts(self, item: int) -> dict[str, str]:
        """Title, price, brand and category of an item as text, as far as the source has them."""
        return _json_at(self.fact_offsets, self.fact_bytes, item)

    def item_texts(self) -> list[str]:
        """The texts of items 1..V, '' for an item without.

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


@dataclasses.dataclass(frozen=True)
class RawEvents:
    """What a reader hands over: original names, any order.

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
    """

    click_user: Sequence[str]
    click_item: Sequence[str]
    click_time: Sequence[int]
    search_user: Sequence[str]
    search_time: Sequence[int]
    search_words: Sequence[Sequence[str]]
    search_clicks: Sequence[Sequence[str]]
    items: Sequence[str] = ()
    item_texts: Mapping[str, str] | None = None
    search_unclicked: Sequence[Sequence[str]] | None = None
    search_places: Sequence[str] | None = None
    user_profiles: Mapping[str, Mapping[str, str]] | None = None
    search_begins: Sequence[int] | None = None
    item_facts: Mapping[str, Mapping[str, str]] | None = None


def tie_break(values: Sequence[str], seed: int = 0) -> np.ndarray:
    """A seeded hash of each value, uint64: the order of equal times, unrelated to id order."""
    key = str(seed).zfill(16)[:16]
    return pd.util.hash_array(np.asarray(values, dtype=object), hash_key=key, categorize=True)


def _number(names: pd.Index, values: Sequence[str]) -> np.ndarray:
    return names.get_indexer(pd.Index(np.asarray(values, dtype=object))).astype(np.int32) + 1


def _names(*columns: Sequence[str]) -> pd.Index:
    parts = [np.asarray(list(c), dtype=object) for c in columns]
    return pd.Index(np.unique(np.concatenate(parts).astype(str)).astype(object))


def _ragged(rows: Sequence[Sequence[str]]) -> tuple[np.ndarray, list[str]]:
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    return np.concatenate([[0], np.cumsum(lengths)]), [value for row in rows for value in row]


def build_log(name: str, events: RawEvents, *, is_sample: bool = False) -> Log:
    """Numbers names and sorts events.

    The same user, item and time twice is one click. A search with neither words nor clicks is
    dropped: nothing can be learnt from it, and a row of zeros means padding.

    Raises:
      UserError: there is not one click.
    """
    if not len(events.click_user):
        raise UserError(f"expected clicks in the log of {name}, found none; check the source files")
    clicks = pd.DataFrame(
        {
            "user": np.asarray(events.click_user, dtype=object),
            "item": np.asarray(events.click_item, dtype=object),
            "time": np.asarray(events.click_time, dtype=np.int64),
        }
    ).drop_duplicates()
    word_ends, flat_words = _ragged(events.search_words)
    click_ends, flat_clicks = _ragged(events.search_clicks)
    keep = (np.diff(word_ends) > 0) | (np.diff(click_ends) > 0)
    search_user = np.asarray(events.search_user, dtype=object)
    search_time = np.asarray(events.search_time, dtype=np.int64)
    users = _names(clicks["user"].tolist(), search_user[keep].tolist())
    unclicked_ends, flat_unclicked = _ragged(events.search_unclicked or ())
    items = _names(clicks["item"].tolist(), flat_clicks, flat_unclicked, events.items)
    words = _names(flat_words)

    click_users = _number(users, clicks["user"])
    order = np.lexsort((tie_break(clicks["item"]), clicks["time"], click_users))
    kept = np.flatnonzero(keep)
    search_users = _number(users, search_user[kept].tolist())
    texts = [_text_of_search(events, i) for i in kept.tolist()]
    search_order = kept[np.lexsort((tie_break(texts), search_time[kept], search_users))]
    word_offsets, word_rows = take_ragged(word_ends, search_order)
    click_offsets, click_rows = take_ragged(click_ends, search_order)
    word_ids = _number(words, flat_words) if flat_words else np.zeros(0, np.int32)
    click_items = _number(items, flat_clicks) if flat_clicks else np.zeros(0, np.int32)
    log = Log(
        name=name,
        is_sample=is_sample,
        user_ids=_with_padding(users),
        item_ids=_with_padding(items),
        words=_with_padding(words),
        rec_offsets=offsets_of_users(click_users, len(users)),
        rec_items=_number(items, clicks["item"].to_numpy()[order]),
        rec_times=clicks["time"].to_numpy()[order],
        search_offsets=offsets_of_users(search_users, len(users)),
        search_times=search_time[search_order],
        word_offsets=word_offsets,
        word_ids=word_ids[word_rows],
        click_offsets=click_offsets,
        click_items=click_items[click_rows],
    )
    if events.item_texts is not None:
        ends, flat = _bytes_of([events.item_texts.get(item, "") for item in items.tolist()])
        log = dataclasses.replace(log, text_offsets=ends, text_bytes=flat)
    if events.search_unclicked is not None:
        unclicked_offsets, unclicked_rows = take_ragged(unclicked_ends, search_order)
        log = dataclasses.replace(
            log,
            unclicked_offsets=unclicked_offsets,
            unclicked_items=_number(items, flat_unclicked)[unclicked_rows],
        )
    if events.search_places is not None:
        of_searches = np.asarray(events.search_places, dtype=object)[search_order]
        # '' is at place 0 already.
        places = _names(of_searches[of_searches != ""].tolist())
        log = dataclasses.replace(
            log, places=_with_padding(places), search_places=_number(places, of_searches.tolist())
        )
    if events.search_begins is not None:
        begins = np.asarray(events.search_begins, dtype=np.int64)[search_order]
        if (begins != log.search_times).any():
            log = dataclasses.replace(log, search_begins=begins)
    if events.user_profiles is not None:
        ends, flat = _json_of(events.user_profiles, users.tolist())
        log = dataclasses.replace(log, profile_offsets=ends, profile_bytes=flat)
    if events.item_facts is not None:
        ends, flat = _json_of(events.item_facts, items.tolist())
        log = dataclasses.replace(log, fact_offsets=ends, fact_bytes=flat)
    return dataclasses.replace(log, hash=content_hash(log))


def _bytes_of(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Offsets int64 [n+2] and UTF-8 of the texts of ids 1..n."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, 0, *map(len, encoded)], dtype=np.int64)
    return ends, np.frombuffer(b"".join(encoded), np.uint8)


def _json_of(
    known: Mapping[str, Mapping[str, str]], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """`_bytes_of` what is known by name as JSON, nothing where nothing is."""
    found = [known.get(name) for name in names]
    return _bytes_of([json.dumps(one, ensure_ascii=False) if one else "" for one in found])


def _text_of_search(events: RawEvents, search: int) -> str:
    """All that tells a search from another one of its user and time."""
    parts = [*events.search_words[search], "\t", *events.search_clicks[search]]
    if events.search_unclicked is not None:
        parts += ["\t", *events.search_unclicked[search]]
    if events.search_places is not None:
        parts += ["\t", events.search_places[search]]
    return " ".join(parts)


def _with_padding(names: pd.Index) -> np.ndarray:
    return np.array(["", *names.tolist()], dtype=np.str_)


def offsets_of_users(users: np.ndarray, num_users: int) -> np.ndarray:
    """int64 [num_users + 2]: where the rows of each user start, given the user of every row."""
    counts = np.bincount(users, minlength=num_users + 1)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def take_ragged(ends: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(offsets [n+1], row numbers) of the ragged rows `order`, in that order."""
    lengths = np.diff(ends)[order]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.repeat(ends[:-1][order] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return offsets, rows


def content_hash(log: Log) -> str:
    """16 hex digits over names, ids, times and the published split; places, what was shown, when
    searches were asked and profiles count where a log has them."""
    digest = hashlib.sha256()
    optional = (*UNCLICKED_ARRAYS, *PLACE_ARRAYS, *PROFILE_ARRAYS, *BEGIN_ARRAYS)
    for name in (*ARRAYS, *optional):
        if getattr(log, name) is None:
            continue
        array = np.ascontiguousarray(getattr(log, name))
        if array.dtype.kind == "U":
            # In parts, because a list of millions of names would take more than their array.
            for start in range(0, len(array), _HASHED_NAMES):
                part = "\n".join(array[start : start + _HASHED_NAMES].tolist())
                digest.update(("\n" * (start > 0) + part).encode())
        else:
            digest.update(array.data if array.size else b"")
    for name in sorted(log.published):
        array = np.ascontiguousarray(log.published[name])
        digest.update(name.encode() + (array.data if array.size else b""))
    return digest.hexdigest()[:16]
