"""LatentR3 from its config: what is refused, a whole run, and one that is killed in its RL."""

import json
import shutil
import signal
import subprocess
import sys

import jax
import jobs
import numpy as np
import pytest
from test_crs import ROOT, SMALL, kill_in, write_beauty

from configs import crs
from core.checkpoints import Checkpoints
from core.errors import UserError
from experiments.evaluate import evaluate
from experiments.methods import open_experiment
from experiments.predict import predict
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.train import train
from input_pipelines.dataset import Dataset
from serving.recommender import Recommender

# What CRS's own stages alone have.
_OTHERS = ("rl.", "distill.", "evolve.", "prompts.max_reasoning")
CHANGES = {key: value for key, value in SMALL.items() if not key.startswith(_OTHERS)} | {
    "latent_sft.examples": 64,
    "latent_sft.epochs": 2.0,
    "latent_sft.learning_rate": 5e-3,
    "latent_rl.steps": 3,
    "latent_rl.batch_size": 8,
    "latent_rl.trajectories": 3,
    "latent_rl.learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_beauty(tmp_path_factory.mktemp("latentr3") / "beauty")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def config_of(folder, cache, **changes):
    config = crs.get_config("amazon_beauty,latentr3")
    config.data_dir, config.cache_dir = folder, str(cache)
    for key, value in {**CHANGES, **changes}.items():
        section, _, name = key.partition(".")
        config[section][name] = value
    return resolve(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mesh.data": 2}, "one device for latentr3, found config.mesh of 2 x 1; set both to 1"),
        ({"thoughts.count": 0}, r"expected config\.thoughts\.count above 0, found 0"),
        ({"latent_rl.trajectories": 1}, r"config\.latent_rl\.trajectories of 2 or more, found 1"),
        ({"latent_rl.clip_low": 1.5}, r"expected config\.latent_rl\.clip_low"),
        ({"latent_rl.noise": -1.0}, r"expected config\.latent_rl\.noise of 0 or more, found -1"),
        ({"latent_sft.examples": -2}, r"config\.latent_sft\.examples of 0 or more, found -2"),
        ({"latent_rl.lenght": 3}, "lenght"),
        ({"sft.row_length": 100}, "row_length of at least 240"),
    ],
)
def test_settings_that_do_not_fit(folder, cache, changes, message):
    with pytest.raises(UserError, match=message):
        config_of(folder, cache, **changes)


def test_settings_of_crs_alone_are_not_there(folder, cache):
    config = crs.get_config("amazon_beauty,latentr3")
    assert not {"distill", "rl", "evolve"} & set(config) and "max_reasoning" not in config.prompts
    with pytest.raises(UserError, match="evolve"):
        config.evolve = {"iterations": 1}
        config.data_dir, config.cache_dir = folder, str(cache)
        resolve(config)


def test_its_prompts_ask_for_the_id_at_once(folder, cache):
    config = config_of(folder, cache)
    experiment = open_experiment(config, Dataset(config))
    for split in ("train", "test"):
        one, other = (experiment.asked(split, reason) for reason in (True, False))
        np.testing.assert_array_equal(one[0], other[0])
    said = experiment.examples.vocabulary.decode(one[0][0, : one[1][0]].tolist())
    assert "Answer at once." in said and "<think>" not in said
    # The shapes of every stage without any training data.
    shapes = {stage: experiment.abstract_state(stage) for stage in experiment.stages}
    attention = [path for path in shapes["latent_rl"]["params"]["trained"]]
    assert len(attention) == 6 and all(path.startswith("latent/") for path in attention)
    assert set(attention) < set(shapes["latent_sft"]["params"]["trained"])
    assert not any(path.startswith("latent/") for path in shapes["align"]["params"]["trained"])


def test_its_first_stage_has_the_searches_that_crs_distils(folder, cache):
    config = config_of(folder, cache, **{"latent_sft.examples": 5})
    data = Dataset(config)
    own = open_experiment(config, data)
    crs_config = crs.get_config("amazon_beauty")
    crs_config.data_dir, crs_config.cache_dir = folder, str(cache)
    for key, value in {**SMALL, "distill.examples": 5}.items():
        section, _, name = key.partition(".")
        crs_config[section][name] = value
    other = open_experiment(resolve(crs_config), data)
    rows = own.fine_tuned_on()
    assert len(own.examples.train) > 5
    np.testing.assert_array_equal(rows, other.examples.distilled())


@pytest.fixture(scope="module")
def whole(folder, cache, tmp_path_factory):
    """A run that nothing has stopped."""
    workdir = tmp_path_factory.mktemp("whole") / "w"
    train(config_of(folder, cache), str(workdir))
    return workdir


@pytest.mark.slow
@pytest.mark.trains
def test_a_whole_run_its_results_and_predictions(whole):
    rows = {row["stage"]: row for row in json.loads((whole / "results.json").read_text())["rows"]}
    assert list(rows) == ["align", "latent_sft", "latent_rl"]
    assert rows["latent_rl"]["algorithm"] == "latent_grpo" and rows["align"]["algorithm"] is None
    restored = Restored(str(whole))  # the latest stage
    again = evaluate(restored, "test", "search/catalogue")
    assert again["metrics"] == rows["latent_rl"]["metrics"]
    found = list(predict(restored, ["3", "7\tkind2 things"], 3))
    assert [row["rank"] for row in found] == [1, 2, 3, 1, 2, 3]
    assert all(row["reasoning"] == "" for row in found)
    answered = Recommender(restored).search("kind2 things", user="7", k=3, keep_seen=True)
    assert [item.item for item in answered.items] == [row["item"] for row in found[3:]]
    # RL has moved the attention alone.
    before = Restored(str(whole), "latent_sft").params["trained"]
    for path, leaf in restored.params["kept"].items():
        np.testing.assert_array_equal(leaf, before[path])


def start(folder, cache, workdir):
    flags = [f"--config.{key}={value}" for key, value in CHANGES.items()]
    command = [sys.executable, "-m", "launch.train"]
    command += ["--config=configs/crs.py:amazon_beauty,latentr3", f"--workdir={workdir}"]
    command += [f"--config.data_dir={folder}", f"--config.cache_dir={cache}", *flags]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=jobs.one_device(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def contents(run):
    """The last state of each stage, and the metrics of the rows."""
    restored = Restored(str(run))
    states = []
    for stage in restored.experiment.stages:
        checkpoints = Checkpoints(str(run / "checkpoints" / stage))
        state, _, step = checkpoints.restore(restored.experiment.abstract_state(stage))
        checkpoints.close()
        states.append((step, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]))
    rows = json.loads((run / "results.json").read_text())["rows"]
    return states, {row["stage"]: (row["step"], row["metrics"]) for row in rows}


@pytest.mark.slow
@pytest.mark.trains
@pytest.mark.parametrize("stage", ["latent_sft", "latent_rl"])
def test_killed_in_a_stage_a_run_ends_in_the_same_bits(folder, cache, whole, tmp_path, stage):
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    before = ["align", "latent_sft"][: 1 + (stage == "latent_rl")]
    for name in {"latent_sft", "latent_rl"} - set(before):
        shutil.rmtree(killed / "checkpoints" / name)
    results = json.loads((killed / "results.json").read_text())
    results["rows"] = [row for row in results["rows"] if row["stage"] in before]
    (killed / "results.json").write_text(json.dumps(results))
    assert kill_in(start(folder, cache, killed), killed, stage) == -signal.SIGKILL
    last = start(folder, cache, killed)
    output = last.communicate(timeout=400)[0]
    assert last.returncode == 0, output
    assert f"{stage}: continues from the checkpoint of step" in output, output
    assert contents(killed) == contents(whole)
