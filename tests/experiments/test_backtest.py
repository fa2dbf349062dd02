"""A method is tested forward in time, window by window."""

import csv
import json

import numpy as np
import pytest

from configs import popularity, sasrec
from core.errors import UserError
from experiments.backtest import backtest

VALUES = {
    "data.rec_length": 6,
    "data.search_length": 4,
    "data.words": 3,
    "data.clicks": 2,
    "train.batch_size": 16,
    "train.max_epochs": 1.0,
    "train.evals_per_epoch": 1.0,
    "model.width": 8,
    "eval.batch_size": 32,
    "eval.full_batch_size": 32,
    "eval.protocols": ("full",),
    "eval.metrics": ("ndcg@5",),
    "eval.selection": "ndcg@5/full",
    "loop.writers": (),
}
START = 1_700_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 users with 10 clicks each, a day apart; items come with time."""
    folder = tmp_path_factory.mktemp("backtest")
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    with open(folder / "data" / "clicks.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "time"])
        for user in range(30):
            for day in range(10):
                item = f"i{rng.integers(10 + 3 * day)}"
                writer.writerow([f"u{user}", item, START + 86_400 * day + 60 * user])
    (folder / "data" / "searches.csv").write_text("user,session,time,query,clicked_items\n")
    return folder


def config_of(module, folder, values):
    config = module.get_config("csv_log")
    config.update_from_flattened_dict(values)
    config.data_dir, config.cache_dir = str(folder / "data"), str(folder / "cache")
    return config


def test_popularity_forward_in_time(folder):
    values = {"eval.protocols": ("full",), "eval.metrics": ("ndcg@5", "hr@10")}
    config = config_of(popularity, folder, values)
    found = backtest(config, str(folder / "popular"), 3)
    assert [window["test_clicks"] for window in found["windows"]] == [50, 50, 50]
    # Users' last days: the training part of a window ends where the window before has begun.
    assert [window["training_clicks"] for window in found["windows"]] == [135, 180, 225]
    assert all(window["of_new_users"] == 0 for window in found["windows"])
    text = (folder / "popular" / "backtest.md").read_text()
    lines = text.splitlines()
    assert lines[0] == (
        "popularity on csv_log, seed 0: 3 windows, each trained anew; one run a window"
    )
    assert lines[2].endswith("| of new items | of new users | ndcg@5/full | hr@10/full |")
    assert lines[4].startswith("| 2023-11-19 22:13:20 | 2023-11-20 22:33:20 |")
    mean = np.mean([window["rows"][0]["metrics"]["hr@10/full"] for window in found["windows"]])
    assert lines[-1].endswith(f" {mean:.4f} |") and len(lines) == 8
    # The same again reads what is there.
    assert backtest(config, str(folder / "popular"), 3) == found


def test_windows_go_on_from_the_one_before(folder):
    config = config_of(sasrec, folder, VALUES)
    found = backtest(config, str(folder / "on"), 2, continues=True)
    assert found["continues"] and len(found["windows"]) == 2
    record = json.loads((folder / "on/windows/2/run/continued.json").read_text())
    assert record["from"] == str(folder / "on/windows/1/run")
    assert record["rows"]["item"]["gone"] == 0 < record["rows"]["item"]["kept"]
    assert not (folder / "on/windows/1/run/continued.json").exists()
    for window in found["windows"]:
        assert 0 <= window["rows"][0]["metrics"]["ndcg@5/full"] <= 1


def test_other_windows_or_files_in_the_folder_are_refused(folder, tmp_path):
    values = {"eval.protocols": ("full",), "eval.metrics": ("ndcg@5",)}
    config = config_of(popularity, folder, values)
    backtest(config, str(tmp_path / "w"), 2)
    with pytest.raises(UserError, match="another number of windows; pass another --workdir"):
        backtest(config, str(tmp_path / "w"), 3)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(UserError, match="to be empty or a backtest's folder"):
        backtest(config, str(tmp_path / "letters"), 2)
