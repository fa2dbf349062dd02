"""Sweeps by function and by command, on a data set of seconds."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import config_dict

from core.errors import UserError
from launch import arm_runs, sweep_figures
from launch.ablate import ablate
from launch.compare import read_rows
from launch.evaluate import evaluate
from launch.restore import Restored
from launch.train import train

ROOT = pathlib.Path(__file__).parent.parent.parent
SHORT = {"pretrain.max_epochs": 1.0, "model.max_steps": 1, "pretrain.active_steps": 1}


def changed(config, **values):
    config = config_dict.ConfigDict(config.to_dict())
    config.update_from_flattened_dict(values)
    return config


def metrics_of(workdir):
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    return {(row["stage"], row["protocol"]): (row["step"], row["metrics"]) for row in rows}


@pytest.mark.slow
def test_arms_are_normal_runs_and_are_not_trained_again(small_config, tmp_path, monkeypatch):
    config = changed(small_config, **SHORT, **{"rl.enabled": False})
    folder = tmp_path / "sweep"
    table = ablate(config, "k:0,1", str(folder))
    assert "| K = 0 | after pre-training | 0 |" in table
    found = json.loads((folder / "table.json").read_text())
    assert [row["value"] for row in found["rows"]] == [0.0, 1.0]
    assert found["rows"][1]["against_first"]["p_holm"] <= 1.0
    assert (folder / "table.png").stat().st_size > 5000

    train(config, str(tmp_path / "alone"))
    ((key, (step, expected)), *_) = metrics_of(tmp_path / "alone").items()
    arm = folder / "arms" / "K=1" / "seed0"
    ours = metrics_of(arm)[key]
    # A score of 57 users may move across another by rounding.
    assert ours[0] == step and ours[1] == pytest.approx(expected, abs=0.02)
    again = evaluate(Restored(str(arm)), "test", key[1])["metrics"]
    assert again == pytest.approx(ours[1])
    rows = read_rows([str(p) for p in (folder / "arms").glob("*/*")], "ndcg@5/full", "test")
    assert {row.name.partition("=")[0] for row in rows} == {"lcr_ser pretrain.active_steps"}
    assert train(config, str(arm))["rows"], "the arm's own command finds it finished"

    monkeypatch.setattr(arm_runs, "run_arms", None)  # nothing is trained
    assert ablate(config, "k:0,1", str(folder)) == table
    with pytest.raises(UserError, match="with sweep 'k:0,1', found 'k:0'; pass another"):
        ablate(config, "k:0", str(folder))
    with pytest.raises(UserError, match="with config its own, found another"):
        ablate(changed(config, **{"model.heads": 1}), "k:0,1", str(folder))


@pytest.mark.slow
def test_a_sweep_over_rl_pretrains_once(small_config, tmp_path, monkeypatch):
    trained = []
    run_arms = arm_runs.run_arms

    def watched(arms):
        trained.extend((arm.task.name, arm.name) for arm in arms)
        return run_arms(arms)

    monkeypatch.setattr(arm_runs, "run_arms", watched)
    ablate(changed(small_config, **SHORT), "lambda_kl:0,2", str(tmp_path / "w"))
    assert [stage for stage, _ in trained] == ["pretrain", "rl", "rl", "control"]
    first, second = (metrics_of(tmp_path / "w/arms" / f"lambda_KL={v}" / "seed0") for v in (0, 2))
    assert first["pretrain", "full"] == second["pretrain", "full"]
    assert first["control", "full"] == second["control", "full"]
    lines = [
        json.loads(line)
        for line in (tmp_path / "w/arms/lambda_KL=2/seed0/metrics.jsonl").read_text().splitlines()
    ]
    assert {line["stage"] for line in lines} == {"pretrain", "rl", "control"}
    kl = [line["train/kl"] for line in lines if "train/kl" in line]
    assert kl


def command(csv_folder, cache, workdir, *more):
    flags = {"model.width": 8, "model.ffn_width": 8, "pretrain.max_epochs": 3, "rl.enabled": False}
    flags |= {"data_dir": csv_folder, "cache_dir": cache, "model.max_steps": 1}
    flags |= {"pretrain.batch_size": 8, "pretrain.active_steps": 1}
    flags |= {"eval.batch_size": 32, "eval.full_batch_size": 16}
    return [
        *(sys.executable, "-m", "launch.ablate", "--config=configs/lcr_ser_csv_log.py"),
        *(f"--config.{name}={value}" for name, value in flags.items()),
        *("--sweep=lambda_tcl:0,0.5", f"--workdir={workdir}", *more),
    ]


def test_workdirs_of_something_else_are_refused(small_config, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserError, match="empty or a sweep's workdir"):
        ablate(small_config, "k:0,1", str(tmp_path))
    empty = str(tmp_path / "w")
    with pytest.raises(UserError, match="1 x 1 in a sweep, found 2 x 1"):
        ablate(changed(small_config, **{"mesh.data": 2}), "k:0,1", empty)
    with pytest.raises(UserError, match="found 'map/neg99'"):
        ablate(small_config, "k:0,1", empty, metric="map/neg99")
    with pytest.raises(UserError, match="--seeds of 1 or more, found 0"):
        ablate(small_config, "k:0,1", empty, seeds=0)
    assert not pathlib.Path(empty).exists()


def test_a_mistake_on_the_command_line_is_one_line(csv_folder, tmp_path):
    wrong = command(csv_folder, tmp_path / "cache", tmp_path / "w", "--sweep=k:2")
    done = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "config.model.max_steps = 1, found 2" in lines[0]
    assert not (tmp_path / "w").exists()


def test_distances_by_hand():
    target = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    states = np.array([[[3.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [1.0, 1.0]]], np.float32)
    expected = [[0.0, 1.0], [2.0, 1.0 - 0.5**0.5]]
    np.testing.assert_allclose(sweep_figures.distances(target, states), expected, atol=1e-5)
