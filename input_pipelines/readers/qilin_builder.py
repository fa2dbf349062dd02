"""Writes Qilin as a TensorFlow dataset: one record per user, in the columns of the log schema.

    tfds build input_pipelines/readers/qilin_builder.py --manual_dir=QILIN_FOLDERS --data_dir=OUT

For programs that read TFDS records; nothing here reads them (`qilin.read_qilin` reads the folders
themselves). The program `tfds` of TFDS 4.9.10 starts only where apache-beam and mlcroissant are
installed; without them:

    config = tfds.download.DownloadConfig(manual_dir=QILIN_FOLDERS)
    Qilin(data_dir=OUT).download_and_prepare(download_config=config)

No other module here imports TensorFlow when it is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from input_pipelines.readers import qilin

_SPLIT = "users"
_INTEGERS = (
    *("click_item", "click_time", "search_time", "search_click_count", "search_click_item"),
    *("search_begin", "search_unclicked_count", "search_unclicked_item"),
)


class Qilin(tfds.core.GeneratorBasedBuilder):
    """Builds the records of Qilin's users: their searches and recommendation clicks."""

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
            clicked = [events.search_clicks[ends[s] : ends[s + 1]] for s in search]
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
                    "search_click_item": _concatenate(clicked),
                    "search_unclicked_count": np.diff(passed_ends)[search],
                    "search_unclicked_item": _concatenate(passed),
                    "shown_item": events.shown_item[show],
                },
            )


def _concatenate(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *parts])
