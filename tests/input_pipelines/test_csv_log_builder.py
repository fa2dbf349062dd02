"""csv_log as a TFDS data set, built by Beam: the log's events, one record a user."""

import importlib
import itertools
import pathlib

import numpy as np
import pytest
from test_beam_engine import raw_folder
from test_csv_shards import events

from input_pipelines import histories
from input_pipelines.readers import csv_log

for package in ("apache_beam", "tensorflow_datasets"):
    pytest.importorskip(package, reason=f"needs {package}")
FILE = "input_pipelines.readers.csv_log_builder"


def build(raw, out, options):
    """Does what `tfds build` does; the program itself starts only where mlcroissant is."""
    import tensorflow as tf

    # Batches are streamed by TensorFlow later in the same process: it must still let them.
    tf.config.set_visible_devices([], "GPU")
    command = importlib.import_module("tensorflow_datasets.scripts.cli.build")
    cli = importlib.import_module("tensorflow_datasets.scripts.cli.cli_utils")
    command.Args(
        positional_datasets=[importlib.util.find_spec(FILE).origin],
        paths=cli.PathOptions(data_dir=pathlib.Path(out), manual_dir=pathlib.Path(raw)),
        generation=cli.GenerationOptions(beam_pipeline_options=options),
    ).execute()


def records_of(out):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(next(pathlib.Path(out).glob("csv_log/*")))
    records = tfds.as_numpy(builder.as_dataset(split="users"))
    return {record["user"].decode(): record for record in records}


def texts(values):
    return [value.decode() for value in values]


@pytest.mark.parametrize(
    "options", ["runner=DirectRunner", "direct_running_mode=multi_processing,direct_num_workers=2"]
)
def test_records_are_the_events_of_the_log(tmp_path, options):
    raw = raw_folder(tmp_path / "raw")
    build(raw, tmp_path / "tfds", options)
    log, records = csv_log.read_csv_log(raw), records_of(tmp_path / "tfds")
    assert set(records) == set(log.user_ids.tolist()[1:]) and len(records) > 20
    for user, name in enumerate(log.user_ids.tolist()[1:], 1):
        record = records[name]
        clicks = slice(*log.rec_offsets[user : user + 2])
        searches = range(*log.search_offsets[user : user + 2])
        assert texts(record["click_item"]) == log.item_ids[log.rec_items[clicks]].tolist()
        assert record["click_time"].tolist() == log.rec_times[clicks].tolist()
        assert record["search_time"].tolist() == [log.search_times[s] for s in searches]
        assert record["search_begin"].tolist() == [log.asked_at(s) for s in searches]
        queries = [histories.query_text(log, s) for s in searches]
        assert texts(record["search_query"]) == queries
        ends = [0, *np.cumsum(record["search_click_count"]).tolist()]
        names = texts(record["search_click_item"])
        clicked = [names[a:b] for a, b in itertools.pairwise(ends)]
        ends = log.click_offsets
        assert clicked == [
            log.item_ids[log.click_items[ends[s] : ends[s + 1]]].tolist() for s in searches
        ]
    # Nothing but the data set is left of what the workers shared.
    assert {path.name for path in (tmp_path / "tfds").iterdir()} <= {"csv_log", "downloads"}


@pytest.mark.parametrize(
    ("row", "words"), [(5, "soon"), (slice(110, None), "seconds and milliseconds|one unit")]
)
def test_mistakes_end_before_any_record(tmp_path, row, words):
    clicks, _ = events()
    clicks["time"] = clicks["time"].astype(object)
    clicks.loc[clicks.index[row], "time"] = "soon" if row == 5 else 1_700_000_000_000
    raw = raw_folder(tmp_path / "raw", clicks)
    with pytest.raises(Exception, match=words):
        build(raw, tmp_path / "tfds", "runner=DirectRunner")
    assert not list((tmp_path / "tfds").rglob("*.tfrecord*"))
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))
