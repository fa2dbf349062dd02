"""launch.prepare_data: the data card, --validate, and training on the folder that it leaves."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from configs import lcr_ser_csv_log
from core.errors import UserError
from experiments.resolve import resolve
from input_pipelines.dataset import Dataset

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "data" / "csv_log"


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "launch.prepare_data", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "prepared"
    done = run("--dataset=csv_log", f"--raw_dir={EXAMPLE}", f"--data_dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_the_card_by_hand(prepared):
    folder, card = prepared
    expected = {
        "users": 5,
        "items": 9,
        "clicks": 10,
        "searches": 6,
        "queries": 5,
        "clicks_in_searches": 6,
        "searches_without_click": 1 / 6,
        "leakage_check": "passed",
        "time_unit": "positions",
        "click_times": ["100", "700"],
        "targets_in_latest_search": {"train": 1, "validation": 2, "test": 1},
        "split": "leave_one_out",
        "prepared": str(folder),
    }
    assert {name: card[name] for name in expected} == expected
    assert sum(card["examples"].values()) <= 10 and card["examples"]["test"] == 2
    assert list(card["clicks_in_training_histories"]) == ["0", "0.25", "0.5", "0.75", "0.95", "1"]


def test_validating_prints_the_same_card(prepared):
    folder, card = prepared
    done = run("--validate", f"--data_dir={folder}")
    assert done.returncode == 0 and json.loads(done.stdout) == card
    by_time = run("--validate", f"--data_dir={folder}", "--split=global_time")
    assert json.loads(by_time.stdout)["split"] == "global_time"


def test_training_reads_the_prepared_folder(prepared):
    folder, card = prepared
    config = lcr_ser_csv_log.get_config()
    config.data_dir = str(folder)
    data = Dataset(resolve(config))
    assert (data.directory, data.log.hash) == (str(folder), card["hash"])
    assert len(data.splits.test) == card["examples"]["test"]


def test_other_names_of_columns_are_told_to_both_programs(tmp_path, prepared):
    raw, folder = tmp_path / "raw", tmp_path / "prepared"
    shutil.copytree(EXAMPLE, raw)
    for name in ("clicks", "searches"):
        text = (raw / f"{name}.csv").read_text(encoding="utf-8")
        (raw / f"{name}.csv").write_text(text.replace("user,", "user_id,", 1), encoding="utf-8")
    done = run(
        "--dataset=csv_log",
        f"--raw_dir={raw}",
        f"--data_dir={folder}",
        "--columns=user=user_id,session=",
        "--time_unit=seconds",
    )
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)
    assert (card["hash"], card["time_unit"]) == (prepared[1]["hash"], "seconds")
    config = lcr_ser_csv_log.get_config()
    config.data_dir, config.cache_dir = str(raw), str(tmp_path / "cache")
    with pytest.raises(UserError, match=r"or add user=user_id to config\.data\.columns"):
        Dataset(resolve(config))
    config.data.columns = "user=user_id"
    assert Dataset(resolve(config)).log.hash == card["hash"]
    # Of a prepared folder the names are settled.
    config.data_dir, config.data.columns = str(folder), ""
    assert Dataset(resolve(config)).log.time_unit == "seconds"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--validate"], "expected --validate with --data_dir=D alone"),
        (["--validate", f"--data_dir={EXAMPLE}"], "expected a prepared log with meta.json"),
        (["--dataset=csv_log"], "expected --dataset=NAME and --raw_dir=DIR, found one missing"),
        (
            ["--dataset=csv_log", f"--raw_dir={EXAMPLE}", "--split=thirds"],
            "expected --split of leave_one_out, global_time, by_user, published, found 'thirds'",
        ),
    ],
)
def test_mistakes_end_in_one_line(arguments, found):
    done = run(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert found in done.stderr.splitlines()[-1]
