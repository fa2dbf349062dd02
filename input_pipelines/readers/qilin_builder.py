"""Qilin as a TensorFlow dataset: one record per user, in the columns of the log schema.

    builder = Qilin(data_dir=OUT)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=QILIN_FOLDERS)
    )

The only module here that imports TensorFlow when it is imported.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from input_pipelines.readers import qilin

_SPLIT = "users"
_INTEGERS = (
    *("click_item", "click_time", "search_time", "search_click_count", "search_click_item"),
    *("search_begin", "search_unclicked_count", "search_unclicked_item"),
)


class Qilin(tfds.core.GeneratorBasedBuilder):
    """Searches and recommendation clicks of Qilin's users."""

    VERSION = tfds.core.Version("1.1.0")
    # Finding its own file is for checksums of downloads, of which there are none; in TFDS 4.9.10
    # it fails unless importlib_resources, which TFDS does not require, happens to be installed.
    code_path = None
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Download the folders search_train, search_test, recommendation_train and "
        "recommendation_test of the Hugging Face data set THUIR/Qilin into manual_dir."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        columns = {name: tfds.features.Sequence(np.int64) for name in (*_INTEGERS, "shown_item")}
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Per user: clicks on recommendations, searches with their query, clicked notes "
                "(search_click_count of them each, one after the other in search_click_item) and "
                "notes shown without a click (likewise), and all notes shown. Times are in "
                "milliseconds."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "user": np.int64,
                    "search_query": tfds.features.Sequence(tfds.features.Text()),
                    **columns,
                }
            ),
            homepage="https://huggingface.co/datasets/THUIR/Qilin",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        # Read here, so that a malformed file ends before any record is written.
        return {_SPLIT: self._generate_examples(qilin.read_events(str(dl_manager.manual_dir)))}

    def _generate_examples(self, events: qilin.QilinEvents) -> Iterator[tuple[int, dict]]:
        clicks = np.argsort(events.click_user, kind="stable")
        searches = np.argsort(events.search_user, kind="stable")
        shown = np.argsort(events.shown_user, kind="stable")
        ends, passed_ends = events.search_click_ends, events.search_unclicked_ends
        users = np.unique(
            np.concatenate([events.click_user, events.search_user, events.shown_user])
        )

        def parts(order: np.ndarray, owners: np.ndarray) -> Iterator[np.ndarray]:
            bounds = np.searchsorted(owners[order], users, side="right")
            starts = np.searchsorted(owners[order], users, side="left")
            return (order[a:b] for a, b in zip(starts, bounds, strict=True))

        for user, click, search, show in zip(
            users.tolist(),
            parts(clicks, events.click_user),
            parts(searches, events.search_user),
            parts(shown, events.shown_user),
            strict=True,
        ):
            found = [events.search_clicks[ends[s] : ends[s + 1]] for s in search]
            passed = [events.search_unclicked[passed_ends[s] : passed_ends[s + 1]] for s in search]
            yield (
                user,
                {
                    "user": user,
                    "click_item": events.click_item[click],
                    "click_time": events.click_time[click],
                    "search_time": events.search_time[search],
                    "search_begin": events.search_begin[search],
                    "search_query": [events.search_query[s] for s in search],
                    "search_click_count": np.diff(ends)[search],
                    "search_click_item": _concatenate(found),
                    "search_unclicked_count": np.diff(passed_ends)[search],
                    "search_unclicked_item": _concatenate(passed),
                    "shown_item": events.shown_item[show],
                },
            )


def read_through_builder(data_dir: str, records_dir: str) -> qilin.QilinEvents:
    """Prepares the dataset in `records_dir` and flattens its records, one at a time.

    Raises:
      UserError: as `qilin.read_events`.
    """
    tf.config.set_visible_devices([], "GPU")  # the accelerator belongs to JAX
    tfds.disable_progress_bar()
    builder = Qilin(data_dir=records_dir)
    config = tfds.download.DownloadConfig(manual_dir=data_dir, try_download_gcs=False)
    # It prints to standard output, which belongs to the program, that the records will be reused.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=config)
    # Only one user's record exists at a time; what is kept are the columns of the log.
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (*_INTEGERS, "shown_item")}
    owners: dict[str, list[np.ndarray]] = {"click_item": [], "search_time": [], "shown_item": []}
    queries: list[str] = []
    for record in tfds.as_numpy(builder.as_dataset(split=_SPLIT, shuffle_files=False)):
        for name, parts in columns.items():
            parts.append(record[name])
        for name, parts in owners.items():
            parts.append(np.full(len(record[name]), record["user"], np.int64))
        queries += [query.decode() for query in record["search_query"].tolist()]
    flat = {name: _concatenate(parts) for name, parts in columns.items()}
    users = {name: _concatenate(parts) for name, parts in owners.items()}
    return qilin.QilinEvents(
        click_user=users["click_item"],
        click_item=flat["click_item"],
        click_time=flat["click_time"],
        search_user=users["search_time"],
        search_time=flat["search_time"],
        search_begin=flat["search_begin"],
        search_query=queries,
        search_click_ends=np.concatenate([[0], np.cumsum(flat["search_click_count"])]),
        search_clicks=flat["search_click_item"],
        search_unclicked_ends=np.concatenate([[0], np.cumsum(flat["search_unclicked_count"])]),
        search_unclicked=flat["search_unclicked_item"],
        shown_user=users["shown_item"],
        shown_item=flat["shown_item"],
    )


def _concatenate(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *parts])
