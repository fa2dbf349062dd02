"""A run's folder keeps what scoring needs of its data: whole, or not at all."""

import os

import numpy as np
import pytest

from core.errors import UserError
from input_pipelines import kept_data
from input_pipelines.log import RawEvents, build_log
from input_pipelines.log_checks import validate_log

LOG = build_log(
    "made_up",
    RawEvents(
        click_user=["a", "a", "a", "b"],
        click_item=["x", "y", "z", "x"],
        click_time=[1, 2, 3, 4],
        search_user=["b", "b", "a"],
        search_time=[1, 2, 3],
        search_words=[["red"], ["tea", "pot"], ["map"]],
        search_clicks=[["x"], [], ["y", "z"]],
        item_texts={"x": "an x"},
    ),
)


def test_the_latest_events_of_each_user_stay():
    latest = kept_data.latest_events(LOG, 1)
    validate_log(latest)
    assert latest.item_ids[latest.rec_items].tolist() == ["z", "x"]
    assert latest.rec_times.tolist() == [3, 4]
    assert [latest.query(search) for search in range(2)] == [["map"], ["tea", "pot"]]
    assert latest.item_ids[latest.click_items].tolist() == ["y", "z"]
    assert latest.item_texts() == LOG.item_texts()
    assert latest.words.tolist() == LOG.words.tolist()


def test_none_and_all():
    none = kept_data.latest_events(LOG, 0)
    validate_log(none)
    assert (len(none.rec_items), len(none.search_times)) == (0, 0)
    assert none.user_ids.tolist() == ["", "a", "b"]
    assert kept_data.latest_events(LOG, -1) is LOG
    many = kept_data.latest_events(LOG, 100)
    np.testing.assert_array_equal(many.rec_items, LOG.rec_items)
    np.testing.assert_array_equal(many.word_ids, LOG.word_ids)


class FakeData:
    log, training_split = LOG, "leave_one_out-0"
    trained_users = np.ones(3, bool)

    def item_words(self):
        return None


def kept(folder, most=0):
    kept_data.keep(FakeData(), str(folder), most)
    return folder / "serving"


def test_a_folder_is_written_once_and_anew_for_other_events(tmp_path):
    record = kept(tmp_path) / "kept.json"
    first = record.stat().st_ino
    assert kept(tmp_path).is_dir() and record.stat().st_ino == first
    assert not kept_data.keeps_every_event(str(tmp_path))
    kept(tmp_path, -1)
    assert record.stat().st_ino != first
    assert kept_data.keeps_every_event(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["serving"]


def test_a_killed_write_leaves_nothing(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(kept_data.checksums, "write_sealed", killed)
    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path)
    assert not kept_data.is_kept(str(tmp_path))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["arrays.npz", "kept.json", "log/item_id_bytes.npy"])
@pytest.mark.parametrize("damage", ["cut", "changed", "removed"])
def test_a_damaged_file_is_refused(tmp_path, name, damage):
    path = kept(tmp_path) / name
    content = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[-3] ^= 1
        path.write_bytes(content)
    from ml_collections import config_dict

    config = config_dict.ConfigDict({"data": {"split": "leave_one_out"}, "dataset": "csv_log"})
    with pytest.raises(UserError) as error:
        kept_data.open_kept(config, str(tmp_path))
    assert "\n" not in str(error.value)
