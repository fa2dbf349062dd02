"""Every data set's config of LCR-SER opens on small files of its format."""

import json
import pathlib
import subprocess
import sys

import pytest

from configs import baseline, datasets, lcr_ser, lcr_ser_qilin, unisar
from core.errors import UserError
from experiments.methods import open_experiment
from experiments.resolve import resolve
from input_pipelines import prepare
from input_pipelines.dataset import Dataset
from input_pipelines.sample import kuaisar_format
from launch.train import default_name
from lcrsr import baseline_experiment

ROOT = pathlib.Path(__file__).parents[2]


def test_as_many_steps_are_in_use_as_there_are_where_nothing_else_is_set():
    config = lcr_ser_qilin.get_config()
    config.model.max_steps = 5
    assert resolve(config).train.active_steps == 5
    config.train.active_steps = 2
    assert (config.model.max_steps, resolve(config).train.active_steps) == (5, 2)


@pytest.mark.parametrize("dataset", ["kuaisar", "kuaisar_large"])
def test_kuaisar(tmp_path, dataset):
    raw = tmp_path / "raw"
    kuaisar_format.write_kuaisar(
        str(raw), num_users=20, scale="large" if dataset.endswith("large") else "small", seed=3
    )
    config = lcr_ser.get_config(dataset)
    config.data_dir, config.cache_dir = str(raw), str(tmp_path / "cache")
    data = Dataset(resolve(config))
    assert data.label == "kuaisar (sample data)" and data.splits.name == "global_time"
    experiment = open_experiment(config, data)
    batch = experiment.example_batch()
    assert batch["candidates"].shape == (256, 100)
    # Chronological: every training click is earlier than every test click.
    times = data.log.rec_times
    latest = times[data.splits.train.target_row].max()
    assert latest < times[data.splits.validation.target_row].min()
    assert len(data.splits.test) == pytest.approx(0.1 * len(times), rel=0.05)


def test_the_reading_benchmark_runs(tmp_path):
    raw, folder = tmp_path / "raw", str(tmp_path / "prepared")
    kuaisar_format.write_kuaisar(str(raw), num_users=20, scale="small", seed=3)
    prepare.prepare_into("kuaisar", str(raw), folder, {})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.reading", f"--data_dir={folder}", "--batches=3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["examples_per_second"] > 0 and report["seconds_to_first_batch"] > 0


@pytest.mark.parametrize("name", ["sasrec_ce", "bert4rec", "rearec_erl", "lrurec"])
def test_a_loss_over_all_items_is_refused_without_dense_tables(tmp_path, name):
    config = baseline.get_config(f"{name},qilin")
    config.dataset, config.data_dir = "csv_log", str(ROOT / "tests" / "data" / "csv_log")
    config.cache_dir = str(tmp_path / "cache")
    assert open_experiment(config, Dataset(resolve(config))).stages == ("train",)
    config.train.table_update = "touched_rows"
    with pytest.raises(UserError, match="table_update='dense'"):
        open_experiment(config, Dataset(resolve(config)))


def test_a_model_that_trains_on_searches_is_not_blind_to_them(tmp_path):
    config = unisar.get_config()
    config.dataset, config.data_dir = "csv_log", str(ROOT / "tests" / "data" / "csv_log")
    config.cache_dir = str(tmp_path / "cache")
    config.data.use_search = False
    with pytest.raises(UserError, match="search_weight=0"):
        open_experiment(config, Dataset(resolve(config)))
    config.model.search_weight = 0.0
    assert open_experiment(config, Dataset(resolve(config))).stages == ("train",)


def test_words_on_items_need_dense_tables_and_no_grpo(tmp_path):
    config = lcr_ser_qilin.get_config()
    config.dataset, config.data_dir = "csv_log", str(ROOT / "tests" / "data" / "csv_log")
    config.cache_dir = str(tmp_path / "cache")
    config.data.use_search, config.data.item_words = False, 4
    with pytest.raises(UserError, match="table_update='dense'"):
        open_experiment(config, Dataset(resolve(config)))
    config.train.table_update = "dense"
    with pytest.raises(UserError, match=r"rl\.enabled=False"):
        open_experiment(config, Dataset(resolve(config)))
    config.rl.enabled = False
    experiment = open_experiment(config, Dataset(resolve(config)))
    assert experiment.item_words.shape[1] == 4 and experiment.item_words.any()
    config.data.item_words = -1
    with pytest.raises(UserError, match="0 or more"):
        open_experiment(config, Dataset(resolve(config)))


def test_any_baseline_on_any_data_set():
    for method in baseline.METHODS:
        for dataset in datasets.EVERY:
            config = baseline.get_config(f"{method},{dataset}")
            assert config.dataset == dataset
            assert config.method in baseline_experiment.names(), method
    assert baseline.get_config("unisar,kuaisar").data.split == "global_time"
    for choice in ("", "unisar", "lcr_ser,qilin", "unisar,kuaisar_large"):
        with pytest.raises(ValueError, match="METHOD,DATASET"):
            baseline.get_config(choice)


def test_a_runs_default_folder_names_its_choice():
    assert default_name("configs/lcr_ser_qilin.py") == "lcr_ser_qilin"
    assert default_name("configs/baseline.py:unisar,kuaisar") == "baseline_unisar_kuaisar"
    assert default_name("configs/gensar_qilin.py:tiger") == "gensar_qilin_tiger"
    assert default_name("configs/sasrec.py:amazon_beauty,ce") == "sasrec_amazon_beauty_ce"
