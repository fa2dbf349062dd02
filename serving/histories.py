"""Turns requests into histories by the numbers of a run's log, and these into a log of their own.

Of a known user the log's events come first; events of the request join them by their times.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from serving.requests import Request

# An export is opened where what reads logs is not installed.
if TYPE_CHECKING:
    from input_pipelines.candidates import TouchedItems
    from input_pipelines.dataset import Dataset
    from input_pipelines.log import Log
    from input_pipelines.splits import Examples

# The place of an event that the request did not give.
OF_LOG = -1
# Characters of a text that stands for a title.
_TITLE = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistoryClick:
    """Holds a click by the item's number; `given` is its place in the request, or `OF_LOG`."""

    item: int
    time: int
    given: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistorySearch:
    """Holds a search by numbers.

    Attributes:
      words: known ones, as numbers.
      text: all words.
      clicked: numbers of known items.
      given: its place in the request, or `OF_LOG`.
    """

    words: tuple[int, ...]
    text: tuple[str, ...]
    clicked: tuple[int, ...]
    time: int
    given: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """Holds what is known of who asks, both kinds in time order.

    Attributes:
      user: the number in the log, 0 for someone unknown.
      touched: numbers of the items that the user has touched, of the whole log too.
      skipped_items, skipped_words, skipped_events: as in `requests.Answer`.
    """

    user: int
    clicks: tuple[HistoryClick, ...]
    searches: tuple[HistorySearch, ...]
    touched: np.ndarray
    skipped_items: int = 0
    skipped_words: int = 0
    skipped_events: int = 0


class HistoryReader:
    """Reads the histories of requests.

    Args:
      data: of a run; its log may have all events, the latest, or none.

    Attributes:
      items, words_by_name: numbers of the log's items and words.
    """

    def __init__(self, data: Dataset):
        self._data, self._log = data, data.log

        def numbers(names):
            return {name: number for number, name in enumerate(names) if number}

        self.items = numbers(self._log.item_ids)
        self._users, self.words_by_name = numbers(self._log.user_ids), numbers(self._log.words)

    @functools.cached_property
    def _touched(self) -> TouchedItems | None:
        if not len(self._log.rec_items) + len(self._log.click_items):
            return None
        from input_pipelines.candidates import TouchedItems

        return TouchedItems(self._log)

    def known(self, ids: Sequence[str]) -> np.ndarray:
        """Returns the numbers int32 of the ids that the catalogue has."""
        return np.array([self.items[i] for i in ids if i in self.items], np.int32)

    def choice(
        self, request: Request, history: History
    ) -> tuple[np.ndarray | None, np.ndarray, int]:
        """Returns the items to choose from (None: all), those to leave out, and how many ids of the
        question the catalogue lacks.
        """
        candidates, skipped = None, history.skipped_items
        if request.candidates is not None:
            candidates = self.known(request.candidates)
            skipped += len(request.candidates) - len(candidates)
        left_out = self.known(request.exclude)
        if not request.keep_seen:
            left_out = np.concatenate([left_out, history.touched])
        return candidates, left_out, skipped

    def words(self, query: str) -> tuple[list[str], list[int]]:
        """Splits a typed query into words; returns them, and the numbers of those in the log."""
        words = self._data.query_words(query)
        return words, [self.words_by_name[word] for word in words if word in self.words_by_name]

    def asked(self, request: Request) -> tuple[History, list[int]]:
        """Reads who asks, and the numbers of the query's words; unknown ones count as skipped."""
        history = self.read(request)
        if request.query is None:
            return history, []
        words, known = self.words(request.query)
        skipped = history.skipped_words + len(words) - len(known)
        return dataclasses.replace(history, skipped_words=skipped), known

    def read(self, request: Request) -> History:
        """Reads who asks and what they did before `request.at`."""
        user = self._users.get(request.user, 0) if request.user is not None else 0
        at = request.at
        clicks, searches = self._of_log(user)
        if at is not None:
            clicks = [one for one in clicks if one.time < at]
            searches = [one for one in searches if one.time < at]
        latest = max([one.time for one in clicks] + [one.time for one in searches], default=0)
        # Events without times are the latest; those of one kind keep their order.
        now = latest + 1 if at is None else at - 1
        in_log = {(one.item, one.time) for one in clicks}
        skipped_items = skipped_words = skipped_events = 0
        for place, click in enumerate(request.clicks):
            time = now if click.time is None else click.time
            item = self.items.get(click.item)
            if at is not None and time >= at:
                skipped_events += 1
            elif item is None:
                skipped_items += 1
            # The same user, item and time twice is one click, as in a log.
            elif click.time is None or (item, time) not in in_log:
                clicks.append(HistoryClick(item=item, time=time, given=place))
        for place, search in enumerate(request.searches):
            time = now if search.time is None else search.time
            if at is not None and time >= at:
                skipped_events += 1
                continue
            text, words = self.words(search.query)
            clicked = self.known(search.clicked).tolist()
            skipped_words += len(text) - len(words)
            skipped_items += len(search.clicked) - len(clicked)
            searches.append(
                HistorySearch(
                    words=tuple(words),
                    text=tuple(text),
                    clicked=tuple(clicked),
                    time=time,
                    given=place,
                )
            )
        clicks.sort(key=lambda one: one.time)
        searches.sort(key=lambda one: one.time)
        touched = [one.item for one in clicks]
        touched += [item for one in searches for item in one.clicked]
        if user and self._touched is not None:
            touched += self._touched.of_user(user, earlier_than=at).tolist()
        return History(
            user=user,
            clicks=tuple(clicks),
            searches=tuple(searches),
            touched=np.unique(np.array(touched, np.int32)),
            skipped_items=skipped_items,
            skipped_words=skipped_words,
            skipped_events=skipped_events,
        )

    def _of_log(self, user: int) -> tuple[list[HistoryClick], list[HistorySearch]]:
        log = self._log
        if not user:
            return [], []
        rows = slice(*np.asarray(log.rec_offsets[user : user + 2]).tolist())
        pairs = zip(log.rec_items[rows].tolist(), log.rec_times[rows].tolist(), strict=True)
        clicks = [HistoryClick(item=item, time=time, given=OF_LOG) for item, time in pairs]
        searches = []
        for row in range(*np.asarray(log.search_offsets[user : user + 2]).tolist()):
            words = log.word_ids[log.word_offsets[row] : log.word_offsets[row + 1]]
            clicked = log.click_items[log.click_offsets[row] : log.click_offsets[row + 1]]
            searches.append(
                HistorySearch(
                    words=tuple(words.tolist()),
                    text=tuple(log.words[words].tolist()),
                    clicked=tuple(clicked.tolist()),
                    time=int(log.search_times[row]),
                    given=OF_LOG,
                )
            )
        return clicks, searches


def title_of(log: Log, item: int) -> str:
    """Returns an item's title, or how its text begins; '' where the log has neither."""
    if title := log.facts(item).get("title"):
        return title
    if log.text_offsets is None or log.text_bytes is None:
        return ""
    first, last = log.text_offsets[item : item + 2]
    text = log.text_bytes[first:last].tobytes().decode().strip()
    return text.splitlines()[0][:_TITLE] if text else ""


def log_of(
    log: Log, histories: Sequence[History], words: Mapping[str, int] | None = None
) -> tuple[Log, Examples]:
    """Makes a log whose user i + 1 has done what history i says, and an example after all of it.

    Searches of which no word and no clicked item is left are left out, as logs have none.

    Args:
      log: whose items and words it has.
      words: of the log by name, where the new log is to have unknown words too; None leaves them
        out.
    """
    names = (log.word_text_offsets, log.word_text_bytes)
    if words is not None:
        histories, names = _with_own_words(log, histories, words)
    searches = [[one for one in h.searches if one.words or one.clicked] for h in histories]
    clicks = [h.clicks for h in histories]
    every_click = [one for some in clicks for one in some]
    every_search = [one for some in searches for one in some]

    def ends(rows, padding):
        return np.cumsum([0] * padding + [len(row) for row in rows], dtype=np.int64)

    no_names = (np.zeros(len(histories) + 2, np.int64), np.zeros(0, np.uint8))
    made = dataclasses.replace(
        log,
        user_id_offsets=no_names[0],
        user_id_bytes=no_names[1],
        word_text_offsets=names[0],
        word_text_bytes=names[1],
        rec_offsets=ends(clicks, 2),
        rec_items=np.array([one.item for one in every_click], np.int32),
        rec_times=np.array([one.time for one in every_click], np.int64),
        search_offsets=ends(searches, 2),
        search_times=np.array([one.time for one in every_search], np.int64),
        word_offsets=ends([one.words for one in every_search], 1),
        word_ids=np.array([w for one in every_search for w in one.words], np.int32),
        click_offsets=ends([one.clicked for one in every_search], 1),
        click_items=np.array([i for one in every_search for i in one.clicked], np.int32),
        published={},
        unclicked_offsets=None,
        unclicked_items=None,
        search_places=None,
        place_offsets=None,
        place_bytes=None,
        search_begins=None,
        profile_offsets=None,
        profile_bytes=None,
    )
    from input_pipelines.splits import Examples

    user = np.arange(1, len(histories) + 1, dtype=np.int32)
    examples = Examples(
        user=user,
        target_row=np.zeros(len(user), np.int64),
        rec_end=made.rec_offsets[user + 1],
        search_end=made.search_offsets[user + 1],
    )
    return made, examples


def _with_own_words(
    log: Log, histories: Sequence[History], words: Mapping[str, int]
) -> tuple[list[History], tuple[np.ndarray, np.ndarray]]:
    """Numbers the words that a log lacks after its own; returns the names of all."""
    own: dict[str, int] = {}

    def number(word: str) -> int:
        return words.get(word) or own.setdefault(word, len(words) + 1 + len(own))

    def whole(search: HistorySearch) -> HistorySearch:
        return dataclasses.replace(search, words=tuple(map(number, search.text)))

    changed = [
        dataclasses.replace(history, searches=tuple(map(whole, history.searches)))
        for history in histories
    ]
    from input_pipelines.names import lay_out

    offsets, flat = lay_out(own)
    first = np.asarray(log.word_text_offsets)
    ends = np.concatenate([first, first[-1] + offsets[2:]])
    return changed, (ends, np.concatenate([np.asarray(log.word_text_bytes), flat]))
