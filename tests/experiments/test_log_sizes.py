"""Runs on logs of any size: the batch they get, users who know nearly all, empty splits."""

import pathlib

import numpy as np
import pytest

from configs import baseline, lcr_ser_csv_log, lcr_ser_qilin, sasrec
from core import results
from core.errors import UserError
from experiments.evaluate import evaluate
from experiments.methods import open_experiment
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.train import train
from input_pipelines.dataset import Dataset
from lcrsr.ranker_experiment import batch_for, epochs_for

EXAMPLE = pathlib.Path(__file__).parents[1] / "data" / "csv_log"


def write_log(folder, clicks, items=0):
    """clicks.csv of (user, item, time), no searches, and so many items beside."""
    folder.mkdir()
    (folder / "clicks.csv").write_text(
        "user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in clicks)
    )
    (folder / "searches.csv").write_text("user,session,time,query,clicked_items\n")
    (folder / "items.csv").write_text(
        "item,title\n" + "".join(f"x{i},pot {i}\n" for i in range(items))
    )
    return str(folder)


def config_of(choice, raw, tmp_path, **values):
    config = baseline.get_config(choice)
    config.data_dir, config.cache_dir = raw, str(tmp_path / "cache")
    config.eval.batch_size = config.eval.full_batch_size = 16
    config.update_from_flattened_dict(values)
    return config


@pytest.mark.parametrize(
    "examples, batch",
    [(0, 32), (4, 32), (19_199, 32), (19_200, 64), (131_413, 256), (307_200, 1024), (10**9, 1024)],
)
def test_a_batch_leaves_an_epoch_three_hundred_updates(examples, batch):
    assert batch_for(examples) == batch


def test_a_batch_set_by_hand_wins_and_configs_with_one_keep_it(tmp_path):
    clicks = [(f"u{u}", f"i{u + t}", t) for u in range(9) for t in range(5)]
    raw = write_log(tmp_path / "raw", clicks)
    config = config_of("sasrec,csv_log", raw, tmp_path)
    data = Dataset(resolve(config))
    assert open_experiment(resolve(config), data).config.train.batch_size == 32
    config.train.batch_size = 7
    assert open_experiment(resolve(config), data).config.train.batch_size == 7
    assert sasrec.get_config("amazon_beauty").train.batch_size == 256
    assert resolve(lcr_ser_qilin.get_config()).train.batch_size == 128
    assert resolve(baseline.get_config("sasrec,qilin")).train.batch_size == 128


def test_epochs_by_the_size_of_the_log():
    # 4 on large logs, twice as many on those of a quarter.
    assert epochs_for(10_000_000) == epochs_for(2**17) == 4.0
    assert epochs_for(2**15) == 8.0
    assert epochs_for(2**13) == 16.0
    assert resolve(lcr_ser_qilin.get_config()).train.max_epochs == 0.0


def test_epochs_of_zero_are_those_by_the_size_and_others_stay(tmp_path):
    clicks = [(f"u{u}", f"i{u + t}", t) for u in range(9) for t in range(5)]
    raw = write_log(tmp_path / "raw", clicks)
    for given, wanted in ((0.0, epochs_for(18)), (3.0, 3.0)):
        config = config_of("sasrec,csv_log", raw, tmp_path, **{"train.max_epochs": given})
        data = Dataset(resolve(config))
        assert open_experiment(resolve(config), data).config.train.max_epochs == wanted


def test_a_catalogue_below_a_hundred_items_trains_and_selects_by_the_full_ranking(tmp_path, caplog):
    clicks = [(f"u{u}", f"i{(u + t) % 40}", t) for u in range(60) for t in range(6)]
    raw = write_log(tmp_path / "raw", clicks)
    values = {"train.max_epochs": 2.0, "model.width": 8}
    config = config_of("sasrec,csv_log", raw, tmp_path, **values)
    (row,) = train(config, str(tmp_path / "w"))["rows"]
    assert row["still_improving"] in (True, False)
    assert row["protocol"] == "full" and row["selected_on"] == "ndcg@5/full on validation"
    assert "selecting on ndcg@5/full: neg99 can rank 0% of the validation examples" in caplog.text
    assert "neg99 leaves out 60 of 60 test examples" in caplog.text
    assert "ndcg@5/full" in (tmp_path / "w" / "metrics.jsonl").read_text()
    with pytest.raises(
        UserError, match="99 items that they have not touched for neg99, found none"
    ):
        evaluate(Restored(str(tmp_path / "w")), "test", "neg99")
    config.eval.protocols = ("neg99",)
    with pytest.raises(UserError, match="rank the whole catalogue: protocol full"):
        train(config, str(tmp_path / "v"))
    assert not (tmp_path / "v").exists()


def test_a_busy_user_is_left_out_of_sampled_protocols_alone(tmp_path, caplog):
    busy = [("busy", f"x{i}", i) for i in range(120)]
    others = [(f"u{u}", f"x{7 * u + t}", t) for u in range(15) for t in range(5)]
    raw = write_log(tmp_path / "raw", busy + others, items=200)
    results = train(config_of("popularity,csv_log", raw, tmp_path), str(tmp_path / "w"))
    rows = {row["protocol"]: row for row in results["rows"]}
    assert (rows["neg99"]["examples"], rows["neg99"]["left_out"]) == (15, 1)
    assert rows["full"]["examples"] == 16 and "left_out" not in rows["full"]
    assert rows["neg99"]["selected_on"] == "ndcg@5/neg99 on validation"
    assert "user 'busy' touched all but fewer than 99 of 200 items" in caplog.text
    with np.load(tmp_path / "w" / rows["neg99"]["per_user"]) as values:
        assert len(values["user"]) == len(values["hr@10"]) == 15
    text = (tmp_path / "w" / "summary.md").read_text()
    assert "neg99: without 1 examples of users who have touched nearly all items" in text


def example_config(tmp_path):
    config = lcr_ser_csv_log.get_config()
    config.data_dir, config.cache_dir = str(EXAMPLE), str(tmp_path / "cache")
    return config


def test_the_documented_example_has_all_that_training_reads(tmp_path, caplog):
    config = resolve(example_config(tmp_path))
    experiment = open_experiment(config, Dataset(config))
    experiment.check_data()
    assert experiment.selection == "ndcg@5/full"
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(set(lines))  # pre-training and RL say what they share once


@pytest.mark.parametrize("method", ["popularity", "sasrec"])
def test_a_split_without_a_part_is_one_line_before_anything_is_written(tmp_path, method):
    cases = (
        # All at one time: none is before the cut.
        ([(f"u{u}", f"i{u}", 5) for u in range(9)], "global_time", "clicks of .* that train"),
        # Two clicks a user: nobody validates or tests.
        (
            [(f"u{u}", f"i{u + t}", t) for u in range(9) for t in range(2)],
            "leave_one_out",
            "examples in .*, found none under the split leave_one_out.*at least 3",
        ),
        # Of three users .8 train, and none of the others is a whole one.
        ([("u", f"i{t}", t) for t in range(5)], "by_user", "under the split by_user"),
    )
    for number, (clicks, split, message) in enumerate(cases):
        raw = write_log(tmp_path / f"raw{number}", clicks, items=120)
        config = config_of(f"{method},csv_log", raw, tmp_path, **{"data.split": split})
        with pytest.raises(UserError, match=message):
            train(config, str(tmp_path / "w"))
        assert not (tmp_path / "w").exists()


def test_events_at_one_time_leave_nothing_to_learn_from(tmp_path):
    raw = write_log(
        tmp_path / "raw", [(f"u{u}", f"i{u + t}", 5) for u in range(9) for t in range(6)]
    )
    with pytest.raises(UserError, match=r"no click that trains has an event .* different times"):
        train(config_of("sasrec,csv_log", raw, tmp_path), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_a_table_says_what_was_still_improving_and_whom_a_protocol_leaves_out():
    row = {"stage": "train", "split": "test", "protocol": "full", "step": 1_088}
    rows = [row, row | {"stage": "rl"}, row | {"protocol": "neg99", "left_out": 2}]
    rising = [one | {"still_improving": one["stage"] == "train"} for one in rows]
    assert results.remarks({"rows": rising}, "test") == [
        "after training: still improving at its last evaluation, after 1,088 updates; longer "
        "training may do better",
        "neg99: without 2 examples of users who have touched nearly all items",
    ]
    assert results.remarks({"rows": rising}, "validation") == []
    assert results.remarks({"rows": [row]}, "test") == []
