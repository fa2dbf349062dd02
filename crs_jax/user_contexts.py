"""Users' contexts from a log: what a user has done before a query, for CRS's prompts."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import numpy as np
from ml_collections import config_dict

from core.errors import UserError
from crs_jax.contexts import Event, UserContext
from input_pipelines import histories, repeated_interactions, times
from input_pipelines.dataset import Dataset
from input_pipelines.splits import Examples

# Milliseconds of a minute, an hour and a day, with the letter of each.
_AGES = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"))
# What config.data.times may be: the log's own, or none shown.
TIMES = ("log", "none")


def hour(milliseconds: int) -> str:
    """Writes '2024-11-03 14h' for a time since 1970, in UTC; minutes are left out."""
    return f"{datetime.datetime.fromtimestamp(milliseconds // 1000, datetime.UTC):%Y-%m-%d %Hh}"


def age(milliseconds: int) -> str:
    """Writes '3h' for three hours and a bit, '0m' for seconds."""
    for length, letter in _AGES:
        if milliseconds >= length:
            return f"{milliseconds // length}{letter}"
    return "0m"


class UserContexts:
    """Tells what users have done before their searches.

    A click that a search of its time holds is told there alone: the two are one interaction.

    Args:
      settings: `config.data`.
      data: the data it names.
      name: the id of an item as text, given its number.

    Raises:
      UserError: a setting that does not fit.
    """

    def __init__(self, settings: config_dict.ConfigDict, data: Dataset, name: Callable[[int], str]):
        self._settings, self._data, self._log, self._name = settings, data, data.log, name
        self._numbers: dict[str, int] | None = None
        # Nanoseconds of the log's unit; None shows no times.
        is_told = settings.times == "log"
        self._unit = times.CLOCKS.get(self._log.time_unit) if is_told else None
        self._most_unclicked = settings.unclicked
        told = np.ones(len(self._log.rec_items), bool)
        if settings.use_search:
            told = ~repeated_interactions.repeated_clicks(self._log, settings.clicks)
        self._clicks = np.flatnonzero(told)
        self._dated = settings.query_time and self._has_clock()

    def _has_clock(self) -> bool:
        """Tells whether all times are dates in the log's unit."""
        if self._unit is None:
            return False
        return times.unit_of(self._log.rec_times, self._log.search_times) == self._log.time_unit

    def query(self, search: int) -> str:
        """Returns the text of a search."""
        return histories.query_text(self._log, search)

    def context(
        self,
        user: int,
        rec_end: int,
        search_end: int,
        query: str,
        now: int | None,
        place: str | None,
    ) -> UserContext:
        """Returns a user's events before a query: the latest `config.data.history` of both kinds.

        Args:
          rec_end, search_end: as of `splits.Examples`.
          now: the query's time; None counts ages from the latest event and tells no time.
          place: the query's; None where it is not known.
        """
        log, most = self._log, self._settings.history
        first, last = np.searchsorted(self._clicks, [log.rec_offsets[user], rec_end])
        clicks = self._clicks[max(first, last - most) : last]
        searches = np.arange(max(int(log.search_offsets[user]), search_end - most), search_end)
        if not self._settings.use_search:
            searches = searches[:0]
        moments = np.concatenate([log.rec_times[clicks], log.search_times[searches]])
        moments = moments.astype(np.int64)
        order = np.argsort(moments, kind="stable")[len(moments) - min(most, len(moments)) :]
        asked = None if now is None else self.time(now)
        if now is None:
            now = int(moments.max(initial=0))
        events = []
        for at in order.tolist():
            when = self._age(now - int(moments[at]))
            if at < len(clicks):
                item = int(log.rec_items[clicks[at]])
                events.append(Event(clicked=[self._name(item)], time=when))
                continue
            row = int(searches[at - len(clicks)])
            first = int(log.click_offsets[row])
            last = min(int(log.click_offsets[row + 1]), first + self._settings.clicks)
            unclicked = log.unclicked(row)[: self._most_unclicked]
            events.append(
                Event(
                    query=self.query(row) or None,
                    clicked=[self._name(int(item)) for item in log.click_items[first:last]],
                    unclicked=[self._name(int(item)) for item in unclicked],
                    time=when,
                    place=log.place(row) or None,
                )
            )
        profile = log.profile(user) if self._settings.profiles else {}
        return UserContext(query=query, profile=profile, events=events, time=asked, place=place)

    def time(self, now: int) -> str | None:
        """Returns the hour of a time of the log; None where times are no dates or are not told."""
        return hour(self._milliseconds(now)) if self._dated else None

    def _age(self, difference: int) -> str | None:
        return None if self._unit is None else age(self._milliseconds(difference))

    def _milliseconds(self, time: int) -> int:
        """Turns a time in the log's unit into milliseconds."""
        return time * (self._unit or 0) // times.CLOCKS["milliseconds"]

    def asked(self, line: str) -> tuple[str, UserContext]:
        """Returns user and context of 'USER TAB QUERY', or of 'USER' and the latest query.

        Raises:
          UserError: an unknown user, or one without a query.
        """
        log = self._log
        if self._numbers is None:
            self._numbers = {name: i for i, name in enumerate(log.user_ids.tolist()) if i}
        name, tab, query = line.partition("\t")
        if name not in self._numbers:
            raise UserError(
                f"expected user ids of {self._data.label}, found {name!r}; correct the --users file"
            )
        user = self._numbers[name]
        rec_end, search_end = (
            int(offsets[user + 1]) for offsets in (log.rec_offsets, log.search_offsets)
        )
        if not tab:
            searches = range(int(log.search_offsets[user]), search_end)
            latest = next((row for row in reversed(searches) if self.query(row)), None)
            if latest is not None:
                return name, self._before(user, latest)
        words = self._data.query_text(query)
        if not words:
            what = f"no word in {query[:40]!r}" if query.strip() else "none in the log"
            raise UserError(
                f"expected a query of user {name}, found {what}; write {name} TAB query"
            )
        return name, self.context(user, rec_end, search_end, words, None, None)

    def _before(self, user: int, search: int) -> UserContext:
        """Returns the context of a search of the log, without its clicks and all that came after
        it.
        """
        log = self._log
        time = log.asked_at(search)
        rec_end, search_end = (
            int(offsets[user] + np.searchsorted(times[slice(*offsets[user : user + 2])], time))
            for offsets, times in (
                (log.rec_offsets, log.rec_times),
                (log.search_offsets, log.search_times),
            )
        )
        return self._of_search(user, rec_end, search_end, search)

    def _of_search(self, user: int, rec_end: int, search_end: int, search: int) -> UserContext:
        now, place = self._log.asked_at(search), self._log.place(search) or None
        return self.context(user, rec_end, search_end, self.query(search), now, place)

    def context_of(self, examples: Examples, row: int) -> UserContext:
        """Returns the context of a search example."""
        return self._of_search(
            int(examples.user[row]),
            int(examples.rec_end[row]),
            int(examples.search_end[row]),
            int(examples.target_row[row]),
        )
