"""Builds logs from events named by integers, with arrays throughout, for millions of rows."""

from __future__ import annotations

import dataclasses

import numpy as np

from core.errors import UserError
from input_pipelines import random_streams
from input_pipelines.empty_searches import count_left_out, with_content
from input_pipelines.log import (
    Log,
    content_hash,
    laid_out_names,
    offsets_of_users,
    take_ragged,
)
from input_pipelines.names import lay_out_numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberedEvents:
    """Holds events named by the source's own integers, in any order; R clicks, S searches.

    Attributes:
      click_user, click_item, click_time: int64 [R].
      search_user, search_time: int64 [S].
      word_ends, word_values: int64 [S+1]; search s has the words word_values[ends[s]:ends[s+1]].
      search_click_ends, search_click_values: int64 [S+1], the items clicked, likewise.
      items: int64, further items of the catalogue.
      time_unit: as in `Log`.
    """

    click_user: np.ndarray
    click_item: np.ndarray
    click_time: np.ndarray
    search_user: np.ndarray
    search_time: np.ndarray
    word_ends: np.ndarray
    word_values: np.ndarray
    search_click_ends: np.ndarray
    search_click_values: np.ndarray
    items: np.ndarray
    time_unit: str


def build_numbered_log(name: str, events: NumberedEvents, *, is_sample: bool = False) -> Log:
    """Builds the log of the events, by the rules of `log.build_log`.

    The same user, item and time twice is one click; a search with neither words nor clicks is
    dropped; equal times stand in the order of a hash, unrelated to id order.

    Raises:
      UserError: there is not one click.
    """
    if not len(events.click_user):
        raise UserError(f"expected clicks in the log of {name}, found none; check the source files")
    keep = with_content(events.word_ends, events.search_click_ends)
    searches = np.flatnonzero(keep)
    users = np.unique(np.concatenate([events.click_user, events.search_user[searches]]))
    items = np.unique(np.concatenate([events.click_item, events.search_click_values, events.items]))
    words = np.unique(events.word_values)

    click_user, click_item = _number(users, events.click_user), _number(items, events.click_item)
    tie = random_streams.mix(events.click_item)
    order = np.lexsort((tie, events.click_time, click_user))
    click_user, click_item = click_user[order], click_item[order]
    click_time = events.click_time[order]
    new = np.ones(len(order), bool)
    new[1:] = (
        (click_user[1:] != click_user[:-1])
        | (click_time[1:] != click_time[:-1])
        | (click_item[1:] != click_item[:-1])
    )
    click_user, click_item, click_time = click_user[new], click_item[new], click_time[new]

    search_user = _number(users, events.search_user[searches])
    tie = _row_keys(events)[searches]
    search_order = searches[np.lexsort((tie, events.search_time[searches], search_user))]
    word_offsets, word_rows = take_ragged(events.word_ends, search_order)
    click_offsets, click_rows = take_ragged(events.search_click_ends, search_order)
    log = Log(
        name=name,
        is_sample=is_sample,
        **laid_out_names(lay_out_numbers(users), lay_out_numbers(items), lay_out_numbers(words)),
        rec_offsets=offsets_of_users(click_user, len(users)),
        rec_items=click_item,
        rec_times=click_time,
        search_offsets=offsets_of_users(search_user, len(users)),
        search_times=events.search_time[search_order],
        word_offsets=word_offsets,
        word_ids=_number(words, events.word_values[word_rows]),
        click_offsets=click_offsets,
        click_items=_number(items, events.search_click_values[click_rows]),
        time_unit=events.time_unit,
        reading=count_left_out(keep),
    )
    return dataclasses.replace(log, hash=content_hash(log))


def _number(names: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the ids of `values`, int32 from 1; the sorted `names` hold all of them."""
    return (np.searchsorted(names, values) + 1).astype(np.int32)


def _row_keys(events: NumberedEvents) -> np.ndarray:
    return random_streams.keys(
        random_streams.keys_of_rows(events.word_ends, events.word_values),
        random_streams.keys_of_rows(events.search_click_ends, events.search_click_values),
    )
