"""launch.train on a mesh of fake devices: the metrics of one device, readable on one device."""

import json

import pytest
from ml_collections import config_dict

from core.errors import UserError
from experiments.evaluate import evaluate
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.train import train
from lcrsr.ranker_experiment import partition_of


def changed(config, **values):
    config = config_dict.ConfigDict(config.to_dict())
    config.update_from_flattened_dict(values)
    return config


@pytest.mark.slow
def test_both_stages_on_a_mesh_give_one_devices_metrics(small_config, tmp_path):
    short = {"train.max_epochs": 1.0, "rl.examples": 32, "rl.evals": 1}
    alone = train(changed(small_config, **short), str(tmp_path / "alone"))
    on_mesh = changed(small_config, **short, **{"mesh.data": 2, "mesh.model": 4})
    cut = train(on_mesh, str(tmp_path / "cut"))
    assert len(cut["rows"]) == len(alone["rows"]) == 6
    for ours, theirs in zip(cut["rows"], alone["rows"], strict=True):
        assert (ours["stage"], ours["protocol"]) == (theirs["stage"], theirs["protocol"])
        # A score of 60 users may move across another by rounding.
        assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=0.02)
    restored = Restored(str(tmp_path / "cut"), "rl", devices=1)
    assert restored.experiment.partition is None
    row = evaluate(restored, "test", "full")
    before = next(r for r in cut["rows"] if (r["stage"], r["protocol"]) == ("rl", "full"))
    assert row["metrics"] == pytest.approx(before["metrics"], abs=0.02)
    json.dumps(row)


def test_meshes_that_do_not_fit_the_config_are_refused(small_config):
    config = resolve(changed(small_config, **{"mesh.model": 8, "eval.full_batch_size": 12}))
    with pytest.raises(UserError, match=r"config\.eval\.full_batch_size .* 8 devices, found 12"):
        partition_of(config)
    config = changed(small_config, **{"mesh.model": 8, "train.table_update": "dense"})
    with pytest.raises(UserError, match=r"model=1 with train\.table_update='dense'"):
        partition_of(config)
    assert partition_of(small_config) is None
    assert partition_of(changed(small_config, **{"mesh.data": -1})).size == 8
