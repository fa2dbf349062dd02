"""Reads trivago's hotel sessions (RecSys Challenge 2019) from parquet files of actions.

    user_id, session_id, timestamp, step, action_type, reference, city, impressions, prices

Timestamps are in seconds. From actions to events of the log:

- 'search for destination', 'search for poi' and 'filter selection' are searches at their own time;
  the words are those of the reference, which is the text that was typed or chosen ('Rome, Italy',
  '4 Star'). 'search for item' is one too, but of what was typed the files hold the hotel's number
  alone: that is its word. At its time nothing is clicked yet, so it has no items. A filter that the
  files call 'unknown' is dropped.
- 'clickout item' is a click on the reference. At the same time it is the search that it answers,
  with the words of the session's latest search, the one clicked item, and the other impressions as
  unclicked, in the order of the page. A session that has not searched so far gives a search without
  words: its page was shown for the city that it came for. Click and search are two faces of one
  event, as in amazon_beauty: neither is in the other's history. The same click-out twice in a
  second is one.
- The place of a search is the city of its row.
- Other actions (looking at images, ratings, deals or facts, sorting) are no events; the hotels they
  name, if any, are items of the catalogue, as are all impressions.

The challenge's metadata of hotels is not among these files, and nothing here names a hotel. What
stands in for a title is what the pages tell: 'hotel 5967314 in Marseille, France, price 90', with
the number that 'search for item' looks for, the city of most of the pages that showed it, and its
median price there, to the nearest ten; without a price where no page has shown it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from core.errors import UserError, reason_of
from input_pipelines import id_columns, ids, segmenters
from input_pipelines.file_bounds import open_parquet
from input_pipelines.log import Log, RawEvents, build_log

_TEXT_COLUMNS = ("user_id", "session_id", "action_type", "reference", "city")
_ID_COLUMNS = ("user_id", "session_id")
_NUMBER_COLUMNS = ("timestamp", "step")
_LIST_COLUMNS = ("impressions", "prices")
_COLUMNS = (*_TEXT_COLUMNS, *_NUMBER_COLUMNS, *_LIST_COLUMNS)
_SESSION = ("user_id", "session_id")
_CLICK = "clickout item"
_ITEM_SEARCH = "search for item"
_SEARCHES = ("search for destination", "search for poi", _ITEM_SEARCH, "filter selection")
_ITEM_VIEWS = tuple(f"interaction item {what}" for what in ("image", "info", "rating", "deals"))
_UNKNOWN = "unknown"
_PRICE_STEP = 10
_MOST_DIGITS = 18  # of 64 bits


def raw_files(data_dir: str) -> list[pathlib.Path]:
    """Lists the parquet files of a folder, sorted. Raises UserError where there is none."""
    paths = sorted(pathlib.Path(data_dir).glob("*.parquet"))
    if not paths:
        raise UserError(
            f"expected trivago's sessions as *.parquet in {data_dir}, found no such file; pass the "
            "folder that holds them"
        )
    return paths


def read_trivago(data_dir: str, *, segmenter: str = "characters") -> Log:
    """Reads the sessions of a folder into a log; times are in seconds.

    Args:
      segmenter: 'characters' or 'jieba'.

    Raises:
      UserError: no file, or one that cannot be read, is empty, lacks a column or holds what the
        column cannot; the message names file, row and column.
    """
    split_query = segmenters.segmenter(segmenter)
    actions = pd.concat([_actions(path) for path in raw_files(data_dir)], ignore_index=True)
    actions = actions.sort_values([*_SESSION, "timestamp", "step"], kind="stable")
    clicks = actions[actions.action_type == _CLICK]
    clicks = clicks.drop_duplicates(["user_id", "reference", "timestamp"])
    searches = actions[actions.action_type.isin(_SEARCHES) & (actions.reference != _UNKNOWN)]
    words = {text: split_query(text) for text in searches.reference.unique()}
    latest = _latest_queries(actions, searches.reference)[clicks.index]
    views = actions[actions.action_type.isin((*_ITEM_VIEWS, _ITEM_SEARCH))]
    views = views[_each(_is_id, views.reference)]
    pages = _pages(clicks)
    unclicked = [
        [item for item in dict.fromkeys(shown) if item != clicked]
        for shown, clicked in zip(clicks.impressions, clicks.reference, strict=True)
    ]
    all_searches = pd.concat([searches, clicks])
    events = RawEvents(
        click_user=clicks.user_id.tolist(),
        click_item=clicks.reference.tolist(),
        click_time=clicks.timestamp.tolist(),
        search_user=all_searches.user_id.tolist(),
        search_time=all_searches.timestamp.tolist(),
        search_words=[words.get(text, []) for text in (*searches.reference, *latest)],
        search_clicks=[[]] * len(searches) + [[item] for item in clicks.reference],
        items=[*pages.item.unique(), *views.reference.unique()],
        item_texts=_titles(pages, pd.concat([views, clicks])),
        search_unclicked=[[]] * len(searches) + unclicked,
        search_places=all_searches.city.tolist(),
        time_unit="seconds",
    )
    return build_log("trivago", events)


def _latest_queries(actions: pd.DataFrame, queries: pd.Series) -> pd.Series:
    """Returns the latest search's reference up to each action of a session, '' before any.

    Args:
      actions: by session and time.
      queries: references of the actions that are searches.
    """
    sessions = [actions[name] for name in _SESSION]
    return queries.reindex(actions.index).groupby(sessions).ffill().fillna("")


def _pages(clicks: pd.DataFrame) -> pd.DataFrame:
    """Returns item, city and price (NaN where not given) of every impression of the click-outs."""
    pages = pd.DataFrame({"item": clicks.impressions, "city": clicks.city, "price": clicks.prices})
    pages = pages[pages.item.map(len) > 0].explode(["item", "price"], ignore_index=True)
    return pages.astype({"price": float})


def _titles(pages: pd.DataFrame, actions: pd.DataFrame) -> dict[str, str]:
    """Returns what stands in for the title of every item shown, looked at or clicked.

    Args:
      actions: whose reference is an item; their city stands in where no page has shown it.
    """
    named = pd.DataFrame({"item": actions.reference, "city": actions.city})
    seen = pd.concat([pages[["item", "city"]], named[~named.item.isin(pages.item)]])
    # The commonest city; of equally common ones the first by name.
    counts = seen.groupby(["item", "city"], sort=True).size().reset_index(name="count")
    counts = counts.sort_values("count", ascending=False, kind="stable").drop_duplicates("item")
    prices = (pages.groupby("item").price.median() / _PRICE_STEP).round() * _PRICE_STEP
    texts = {}
    for item, city in zip(counts["item"], counts["city"], strict=True):
        price = prices.get(item, np.nan)
        told = "" if np.isnan(price) else f", price {price:.0f}"
        texts[item] = f"hotel {item} in {city}{told}"
    return texts


def _actions(path: pathlib.Path) -> pd.DataFrame:
    """Reads and checks the rows of a file; impressions and prices are lists of one length."""
    try:
        with open_parquet(path, _COLUMNS) as file:
            missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise UserError(
                    f"expected the columns {', '.join(_COLUMNS)} in {path}, found no "
                    f"{', '.join(missing)}; use the file as published"
                )
            table = file.read(columns=list(_COLUMNS))
        columns = {name: table[name].to_pylist() for name in _COLUMNS}
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = reason_of(error)
        raise UserError(
            f"expected a whole parquet file at {path}, found one that cannot be read ({reason}); "
            "use another copy"
        ) from None
    if not table.num_rows:
        raise UserError(f"expected actions in {path}, found no row; use another copy")
    for name in _ID_COLUMNS:
        columns[name] = id_columns.of_column(table[name], f"column {name} of {path}")
    frame = pd.DataFrame(columns, dtype=object)
    for name in _TEXT_COLUMNS:
        _refuse(path, frame, name, _each(_is_text, frame[name]), "text that is not empty")
    for name in _NUMBER_COLUMNS:
        _refuse(path, frame, name, _each(_is_whole, frame[name]), "a whole number")
        frame[name] = frame[name].map(int).astype(np.int64)
    for name in ("reference", "city"):
        frame[name] = frame[name].map(ids.whole_text)
    for name in _LIST_COLUMNS:
        frame[name] = frame[name].map(_parts)
    clicks = frame.action_type == _CLICK
    free = ~clicks & (frame.action_type != _ITEM_SEARCH)
    _refuse(path, frame, "reference", free | _each(_is_id, frame.reference), "an item's number")
    for name in _LIST_COLUMNS:
        right = ~clicks | _each(lambda parts: all(map(_is_id, parts)), frame[name])
        _refuse(path, frame, name, right, "numbers separated by |")
    lengths = frame.impressions.map(len) == frame.prices.map(len)
    _refuse(path, frame, "prices", ~clicks | lengths, "as many prices as impressions")
    return frame


def _each(test: Callable[[Any], bool], cells: pd.Series) -> np.ndarray:
    """Tells which cells pass a test, bool; Series.map gives no booleans where there is no cell."""
    return np.fromiter(map(test, cells), bool, len(cells))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_id(value: str) -> bool:
    return value.isascii() and value.isdecimal()


def _is_whole(value: object) -> bool:
    if isinstance(value, bool | np.bool_):
        return False
    if isinstance(value, str):
        return _is_id(value) and len(value) <= _MOST_DIGITS
    return isinstance(value, int | np.integer) and abs(int(value)) < 10**_MOST_DIGITS


def _parts(value: object) -> Sequence[str]:
    """Returns the parts of 'a|b'; none of an empty cell."""
    return str(value).split("|") if value not in (None, "") else []


def _refuse(
    path: pathlib.Path, frame: pd.DataFrame, name: str, right: np.ndarray, expected: str
) -> None:
    """Raises UserError with the first row whose cell is not `right`."""
    wrong = np.flatnonzero(~np.asarray(right))
    if len(wrong):
        value = frame[name].iloc[int(wrong[0])]
        cell = "|".join(value) if isinstance(value, list) else value
        raise UserError(
            f"expected {expected} in column {name} of {path}, found {str(cell)[:60]!r} in row "
            f"{wrong[0] + 1}; mend the file"
        )
