"""Every data set's config of LCR-SER opens on small files of its format."""

import importlib

import pytest

from input_pipelines import kuaisar_sample
from launch.data import Data, resolve
from launch.methods import open_experiment


@pytest.mark.parametrize("scale", ["small", "large"])
def test_kuaisar(tmp_path, scale):
    raw = tmp_path / "raw"
    kuaisar_sample.write_kuaisar(str(raw), num_users=20, scale=scale, seed=3)
    config = importlib.import_module(f"configs.lcr_ser_kuaisar_{scale}").get_config()
    config.data_dir, config.cache_dir = str(raw), str(tmp_path / "cache")
    data = Data(resolve(config))
    assert data.label == "kuaisar (sample data)" and data.splits.name == "global_time"
    experiment = open_experiment(config, data)
    batch = experiment.example_batch()
    assert batch["candidates"].shape == (256, 100)
    # Chronological: every training click is earlier than every test click.
    times = data.log.rec_times
    latest = times[data.splits.train.target_row].max()
    assert latest < times[data.splits.validation.target_row].min()
    assert len(data.splits.test) == pytest.approx(0.1 * len(times), rel=0.05)
