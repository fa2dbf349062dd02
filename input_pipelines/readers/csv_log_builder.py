"""Writes `csv_log` as a TensorFlow dataset by Apache Beam: one record per user.

    tfds build input_pipelines/readers/csv_log_builder.py --manual_dir=RAW --data_dir=OUT \
      --beam_pipeline_options=runner=DirectRunner,direct_num_workers=2

For programs that read TFDS records; nothing here reads them. `input_pipelines.beam_engine` reads
and checks the files as `launch.prepare_data --engine=beam` does, in the same pipeline that writes
the records: its workers read a shard or sort a part of the users, one of them joins these into the
whole log, and then each writes the records of some users. All must see RAW and OUT. Columns have
the names of `csv_log`, and numbers as times count in the unit that their size tells.

The program `tfds` of TFDS 4.9.10 starts only where mlcroissant is installed too; without it:

    config = tfds.download.DownloadConfig(manual_dir=RAW, beam_options=PIPELINE_OPTIONS)
    CsvLog(data_dir=OUT).download_and_prepare(download_config=config)

No other module here imports TensorFlow when it is imported.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from core.files import scratch_folder
from input_pipelines import beam_engine
from input_pipelines.beam_records import Records

_SPLIT = "users"


class CsvLog(tfds.core.GeneratorBasedBuilder):
    """Builds the records of the users of a `csv_log`: their clicks and searches, oldest first."""

    VERSION = tfds.core.Version("1.0.0")
    # As of `qilin_builder.Qilin`.
    code_path = None
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put clicks, searches and, where there is one, items into manual_dir, each a file or a "
        "folder of shards, Parquet or CSV, as input_pipelines/readers/csv_log.py describes them."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        texts = tfds.features.Sequence(tfds.features.Text())
        integers = tfds.features.Sequence(np.int64)
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Per user: clicks, and searches with when they were asked (search_begin), when "
                "they are history (search_time), the words of their query, joined, and clicked "
                "items (search_click_count of them each, one after the other in "
                "search_click_item). Times are those of the files, dates in milliseconds."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "user": tfds.features.Text(),
                    "click_item": texts,
                    "click_time": integers,
                    "search_time": integers,
                    "search_begin": integers,
                    "search_query": texts,
                    "search_click_count": integers,
                    "search_click_item": texts,
                }
            ),
        )

    def download_and_prepare(self, **options: Any) -> None:
        """Writes the records, as TFDS does, with a folder beside them that the workers share."""
        with scratch_folder(os.path.join(self._data_dir_root, "csv_log-beam")) as folder:
            self._folder = folder
            super().download_and_prepare(**options)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        # Headers are looked at here, so that files of another kind end before anything is read.
        return {_SPLIT: self._generate_examples(str(dl_manager.manual_dir))}

    def _generate_examples(self, raw_dir: str) -> Records:
        return Records(beam_engine.plan(raw_dir, self._folder))
