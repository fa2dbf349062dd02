"""Sweeps by function and by command, on a data set of seconds."""

import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jobs
import numpy as np
import pytest
from ml_collections import config_dict

from configs import lcr_ser, unisar
from core.errors import UserError
from core.loop import LoopConfig
from core.metrics import Sums
from core.workdir import Workdir
from experiments.evaluate import evaluate
from experiments.restored import Restored
from experiments.train import train
from input_pipelines.dataset import Dataset
from lcrsr.experiment import LCRSERExperiment
from studies.ablation import figure2, figures
from studies.ablation import runs as side_by_side
from studies.ablation.ablate import ablate, run_of
from studies.ablation.arms import run_arms
from studies.ablation.sweeps import Setting
from studies.compare import read_rows

ROOT = pathlib.Path(__file__).parent.parent.parent
SHORT = {"train.max_epochs": 1.0, "model.max_steps": 1, "train.active_steps": 1}


def changed(config, **values):
    config = config_dict.ConfigDict(config.to_dict())
    config.update_from_flattened_dict(values)
    return config


def metrics_of(workdir):
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    return {(row["stage"], row["protocol"]): (row["step"], row["metrics"]) for row in rows}


def nothing(arms):
    raise AssertionError(f"expected nothing to train, found {[arm.name for arm in arms]}")


@pytest.mark.slow
def test_arms_are_normal_runs_and_are_not_trained_again(small_config, tmp_path):
    # So fast that the two arms come apart in a few updates.
    config = changed(small_config, **SHORT, **{"rl.enabled": False, "train.learning_rate": 0.02})
    folder = tmp_path / "sweep"
    table = ablate(config, "k:0,1", str(folder))
    assert "| K = 0 | after training | 0 |" in table
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
    assert {row.name.partition("=")[0] for row in rows} == {"lcr_ser train.active_steps"}
    assert train(config, str(arm))["rows"], "the arm's own command finds it finished"

    assert ablate(config, "k:0,1", str(folder), train=nothing) == table
    with pytest.raises(UserError, match="with sweep 'k:0,1', found 'k:0'; pass another"):
        ablate(config, "k:0", str(folder))
    with pytest.raises(UserError, match="with config its own, found another"):
        ablate(changed(config, **{"model.heads": 1}), "k:0,1", str(folder))


@pytest.mark.slow
def test_a_sweep_over_rl_pretrains_once(small_config, tmp_path):
    trained = []

    def watched(arms):
        trained.extend((arm.task.name, arm.name) for arm in arms)
        return run_arms(arms)

    config = changed(small_config, **SHORT)
    ablate(config, "lambda_kl:0,2", str(tmp_path / "w"), train=watched)
    assert [stage for stage, _ in trained] == ["train", "rl", "rl", "control"]
    first, second = (metrics_of(tmp_path / "w/arms" / f"lambda_KL={v}" / "seed0") for v in (0, 2))
    assert first["train", "full"] == second["train", "full"]
    assert first["control", "full"] == second["control", "full"]
    lines = [
        json.loads(line)
        for line in (tmp_path / "w/arms/lambda_KL=2/seed0/metrics.jsonl").read_text().splitlines()
    ]
    assert {line["stage"] for line in lines} == {"train", "rl", "control"}
    kl = [line["train/kl"] for line in lines if "train/kl" in line]
    assert kl


def environment():
    """One device, on which a sweep takes one arm a call, and every sweep here the same programs."""
    return jobs.one_device() | {"XLA_FLAGS": jobs.xla_flags(1)}


def command(csv_folder, cache, workdir, *more):
    flags = {"model.width": 8, "model.ffn_width": 8, "train.max_epochs": 3, "rl.enabled": False}
    flags |= {"data_dir": csv_folder, "cache_dir": cache, "model.max_steps": 1}
    flags |= {"train.batch_size": 8, "train.active_steps": 1}
    flags |= {"eval.batch_size": 32, "eval.full_batch_size": 16}
    return [
        *(sys.executable, "-m", "launch.ablate", "--config=configs/lcr_ser_csv_log.py"),
        *(f"--config.{name}={value}" for name, value in flags.items()),
        *("--sweep=lambda_tcl:0,0.5", f"--workdir={workdir}", *more),
    ]


@pytest.mark.slow
def test_killed_it_continues_the_arms_that_are_not_done(csv_folder, tmp_path):
    sweep = command(csv_folder, tmp_path / "cache", tmp_path / "w")
    process = subprocess.Popen(
        sweep, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 400
    second = tmp_path / "w/arms/lambda_TCL=0.5/seed0/checkpoints/train"
    while time.monotonic() < deadline and process.poll() is None:
        if second.is_dir() and any(path.name.isdigit() for path in second.iterdir()):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output
    whole = subprocess.run(
        command(csv_folder, tmp_path / "cache", tmp_path / "whole"),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
    )
    assert whole.returncode == 0, whole.stderr
    done = subprocess.run(sweep, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "continues from" in done.stderr, done.stderr
    for label in ("0", "0.5"):
        arm = f"arms/lambda_TCL={label}/seed0"
        assert metrics_of(tmp_path / "w" / arm) == metrics_of(tmp_path / "whole" / arm)


def test_arms_that_memory_does_not_hold_run_in_groups(small_config, tmp_path):
    data = Dataset(small_config)
    runs = [
        side_by_side.Run(f"K = {k}", changed(small_config, seed=k), str(tmp_path / str(k)))
        for k in range(5)
    ]
    experiments = side_by_side.check_runs(runs, data)
    shapes = jax.eval_shape(experiments[0].train_task().init)
    one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    # Two arms, three copies of each, in four fifths of it.
    memory = int(2.1 * 3 * one / 0.8)
    for devices, sizes in ((1, [2, 2, 1]), (2, [4, 1])):
        groups = side_by_side.groups_that_fit(runs, experiments, memory, devices)
        assert list(map(len, groups)) == sizes
        assert [run for group in groups for run, _ in group] == runs


class Idle:
    """A stage of one update that changes nothing."""

    name, selection, steps_per_epoch, batch_size, partition = "train", "score", 1, 1, None
    numbers, stream = {"seed": 0}, 0
    loop = LoopConfig(
        max_steps=1,
        eval_every=1,
        checkpoint_every=1,
        log_every=1,
        learning_rate=0.1,
        min_learning_rate=0.1,
        plateau_factor=1.0,
        plateau_patience=1,
        stop_patience=1,
    )

    def init(self):
        return {"step": jnp.int32(0), "params": jnp.ones(2), "tables": jnp.ones((2, 2))}

    def batches(self, start):
        return itertools.repeat({"mask": np.ones(1, np.float32)})

    def train_step(self, state, batch, rate, numbers=None):
        return state | {"step": state["step"] + 1}, {"loss": batch["mask"].sum()}

    def evaluate(self, state):
        return {"score": 0.0}


class Scored(LCRSERExperiment):
    """Trains the stage that changes nothing; the scores of seed 1 are NaN."""

    def plan(self, workdir):
        self.test_stage(workdir, "train", (yield Idle(), Idle.loop))

    def evaluate(self, params, tables, split, protocol):
        sums, zeros = Sums(("ndcg@5",)), np.zeros(57, int)
        sums.add(zeros, zeros, zeros + 1, (zeros == 0) & (self.config.seed == 1))
        return sums


def test_an_arm_whose_test_is_not_finite_ends_alone(small_config, tmp_path):
    data = Dataset(small_config)
    runs = [
        side_by_side.Run(f"seed {k}", changed(small_config, seed=k), str(tmp_path / str(k)))
        for k in range(3)
    ]
    stopped = side_by_side.run_all(runs, data, [Scored(run.config, data) for run in runs])
    assert list(stopped) == ["seed 1"]
    assert "found NaN scores in 57 of 57 examples" in stopped["seed 1"]
    assert "in the test of stage train against neg99" in stopped["seed 1"]
    assert [(tmp_path / str(k) / "summary.md").exists() for k in range(3)] == [True, False, True]


def test_the_path_of_the_vectors_leads_from_the_arm(small_config, tmp_path):
    config = changed(small_config)
    sweep = Workdir(str(tmp_path / "w"))
    run = run_of(config, Setting("threshold = 0.5", {"data.search_filter": 0.5}), 0, sweep)
    assert run.config.data.search_filter.vectors == "../../../embedding.npz"
    with pytest.raises(UserError, match=r"vectors .* at \S*/w/embedding\.npz, found no such file"):
        Dataset(run.config, run.path)
    data = Dataset(config)
    sizes = {"item": data.log.num_items + 1, "word": data.log.num_words + 1}
    vectors = {name: np.ones((rows, 2), np.float32) for name, rows in sizes.items()}
    np.savez(sweep.file("embedding.npz"), **vectors)
    Dataset(run.config, run.path)


def test_vectors_come_from_the_first_run_with_all_searches_that_ends(tmp_path):
    def run(label, seed, **data):
        config = config_dict.ConfigDict({"seed": seed, "data": data})
        return side_by_side.Run(f"{label}, seed {seed}", config, str(tmp_path / "arms" / label))

    def train_or_stop(run, data):
        return "nan" if run.config.seed in diverging else None

    exported = []

    def export(path, target):
        exported.append(path)
        pathlib.Path(target).touch()

    runs = [run(f"all{seed}", seed) for seed in (0, 1)]
    runs += [run(f"near{seed}", seed, search_filter={"threshold": 0.5}) for seed in (0, 1)]
    for diverging, names in (
        ((0,), ["all0, seed 0", "near0, seed 0"]),
        ((0, 1), [each.name for each in runs]),
    ):
        workdir = Workdir(str(tmp_path / f"w{len(diverging)}"))
        os.makedirs(workdir.path)
        stopped = figure2.run_all(runs, None, workdir, train_or_stop, export)
        assert list(stopped) == names
    assert exported == [runs[1].path]
    assert "found that all of these have stopped" in stopped["near1, seed 1"]


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


def test_a_sweep_of_another_schema_is_refused(small_config, tmp_path):
    (tmp_path / "sweep.json").write_text('{"sweep": "k:0,1", "seeds": 1, "config": {}}')
    with pytest.raises(UserError, match=r"sweep\.json, found one written by a version before 0"):
        ablate(small_config, "k:0,1", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


@pytest.mark.slow
def test_a_mistake_on_the_command_line_is_one_line(csv_folder, tmp_path):
    wrong = command(csv_folder, tmp_path / "cache", tmp_path / "w", "--sweep=k:2")
    done = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "config.model.max_steps = 1, found 2" in lines[0]
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_figures_show_the_states_and_scores_of_the_runs(small_config, tmp_path):
    config = changed(small_config, **SHORT | {"rl.enabled": False, "train.max_epochs": 2.0})
    ablate(config, "figure6:0,1", str(tmp_path / "w"))
    table = json.loads((tmp_path / "w/table.json").read_text())
    # With all its steps the model of the largest K is the run of that K.
    one_model = table["every_k"][0]["per_seed"][0]
    own = [row["metrics"]["ndcg@5/neg99"][0] for row in table["rows"]]
    assert one_model[1] == pytest.approx(own[1]) and len(one_model) == 2
    assert one_model[0] != pytest.approx(own[0], abs=1e-6)

    hidden = figures.hidden_states(Restored(str(tmp_path / "w/arms/K=1/seed0"), "train"))
    runs = {"K = 1": [hidden]}
    for side in ("rec", "search"):
        assert hidden.cross[side].shape == (*hidden.target.shape[:1], 2, 8)
        np.testing.assert_array_equal(hidden.cross[side][:, 0], hidden.plain[side][:, 0])
        assert np.abs(hidden.cross[side] - hidden.plain[side])[:, 1].max() > 1e-3
    figure = figures.steps_figure(runs, str(tmp_path / "figure4.png"))
    expected = figures.distances(hidden.target, hidden.cross["rec"])
    values = figure.values["distances"]["rec"]
    assert values["means"] == pytest.approx(expected.mean(0).tolist(), rel=1e-5)
    assert [sum(counts) for counts in values["counts"]] == [len(hidden.target)] * 2
    contrast = figures.contrast_figure(runs, str(tmp_path / "figure5.png"))
    near, far = contrast.values["distances"]["K = 1"]["search"]["means"]
    last = figures.distances(hidden.target, hidden.plain["search"])[:, -1]
    assert far == pytest.approx(last.mean(), rel=1e-5) and near != far
    assert all((tmp_path / f"figure{i}.png").stat().st_size > 5000 for i in (4, 5))

    ablate(config, "table4:0,1", str(tmp_path / "times"))
    times = json.loads((tmp_path / "times/table.json").read_text())
    assert times["steps"] == [0, 1] and times["increase_percent"][0] == 0.0
    assert "| time (s) |" in (tmp_path / "times/table.md").read_text()
    assert (tmp_path / "times/table.png").stat().st_size > 5000


def untrained(config, seed=0):
    """What `Restored` gives of a run of this seed, without training it."""
    data = Dataset(config)
    experiment = LCRSERExperiment(changed(config, seed=seed), data)
    state = experiment.train_task().init()
    return SimpleNamespace(
        experiment=experiment,
        data=data,
        params=state["params"],
        tables_with_words=state["tables"],
    )


def test_table_4_has_a_picture(small_config, tmp_path):
    path, data = tmp_path / "table.png", Dataset(small_config)
    section = figures.inference_times(small_config, data, (0, 1), str(path), repeats=1)
    assert path.stat().st_size > 5000 and "![](table.png)" in section.lines


def test_the_one_model_stops_at_the_largest_k_it_was_trained_with(small_config):
    config = changed(small_config, **{"train.active_steps": 1, "model.max_steps": 2})
    section = figures.every_k([untrained(config)], "train", "ndcg@5/neg99")
    assert [len(one) for one in section.values["per_seed"]] == [2]


def hidden_of(seed):
    rng = np.random.default_rng(seed)
    states = {side: rng.standard_normal((40, 3, 8)) for side in ("rec", "search")}
    return figures.Hidden(rng.standard_normal((40, 8)), states, states)


def test_figures_of_hidden_states_are_over_all_seeds(tmp_path):
    runs = {"with L_TCL": [hidden_of(seed) for seed in range(3)]}
    per_seed = [
        figures.distances(hidden.target, hidden.cross["rec"]).mean(0)
        for hidden in runs["with L_TCL"]
    ]
    mean, deviation = np.mean(per_seed, 0), np.std(per_seed, 0, ddof=1)
    steps = figures.steps_figure(runs, str(tmp_path / "figure4.png"))
    rec = steps.values["distances"]["rec"]
    assert rec["means"] == pytest.approx(mean) and [sum(c) for c in rec["counts"]] == [120] * 3
    assert any(f"| step 1 | {mean[1]:.4f} ± {deviation[1]:.4f} |" in x for x in steps.lines)
    contrast = figures.contrast_figure(runs, str(tmp_path / "figure5.png"))
    expected = f"| with L_TCL | recommendation | {mean[2]:.4f} ± {deviation[2]:.4f} |"
    assert any(line.startswith(expected) for line in contrast.lines)
    assert all((tmp_path / f"figure{i}.png").stat().st_size > 5000 for i in (4, 5))


def test_too_few_users_with_both_histories_are_found_before_training(csv_folder, tmp_path):
    with open(csv_folder / "searches.csv", encoding="utf-8") as file:
        lines = file.readlines()
    folder = tmp_path / "few"
    shutil.copytree(csv_folder, folder)
    one = [line for line in lines if line.startswith(("user,", "u20,"))]
    (folder / "searches.csv").write_text("".join(one))
    config = lcr_ser.method()
    config.dataset, config.data_dir = "csv_log", str(folder)
    config.cache_dir = str(tmp_path / "cache")
    with pytest.raises(UserError, match="2 test users with clicks and searches for figure4, found"):
        ablate(config, "figure4", str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_distances_by_hand():
    target = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    states = np.array([[[3.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [1.0, 1.0]]], np.float32)
    expected = [[0.0, 1.0], [2.0, 1.0 - 0.5**0.5]]
    np.testing.assert_allclose(figures.distances(target, states), expected, atol=1e-5)


@pytest.mark.slow
def test_thresholds_retrain_on_fewer_searches(csv_folder, small_config, tmp_path):
    config = unisar.get_config()
    config.dataset, config.data_dir = "csv_log", str(csv_folder)
    config.cache_dir = small_config.cache_dir
    sizes = {"width": 8, "hidden": 8, "experts": 1, "expert_width": 8, "tower_widths": (8,)}
    # These searches led to no clicks to train on.
    config.model.update(sizes | {"alignment_pairs": 16, "search_weight": 0.0})
    config.data.update({"rec_length": 3, "search_length": 2, "words": 2, "clicks": 1})
    config.train.update({"batch_size": 64, "max_epochs": 1.0})
    config.eval.update({"batch_size": 64, "full_batch_size": 64, "protocols": ("neg99",)})
    table = ablate(config, "figure2:-1,1", str(tmp_path / "w"))
    assert "| threshold = 1 | after training |" in table
    saved = json.loads((tmp_path / "w/arms/threshold=-1/seed0/config.json").read_text())
    assert "search_filter" not in saved["data"]
    (tmp_path / "w").rename(tmp_path / "moved")
    none = Restored(str(tmp_path / "moved/arms/threshold=1/seed0"))
    batches = list(none.data.sampled("test", "neg99"))
    assert not any(batch["query_words"].any() for batch in batches)
    assert any(batch["rec_items"].any() for batch in batches)
