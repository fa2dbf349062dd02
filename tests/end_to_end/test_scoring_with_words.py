"""A run whose items carry words is scored with them, whoever scores it."""

import csv
import shutil

import jax
import numpy as np
import pytest

from core import metrics
from core.workdir import open_workdir
from experiments.methods import open_experiment
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.teacher import Teacher
from input_pipelines.dataset import Dataset
from lcrsr.adaptive import AdaptiveScorer
from lcrsr.lcr_ser import TEACHER
from studies import adaptive
from studies.ablation import figures


class Untrained(Restored):
    """A run at its first state, with rows so large that items and words tell on the scores."""

    def __init__(self, config, folder):
        self.data = Dataset(config)
        self.experiment = open_experiment(config, self.data)
        self.workdir = open_workdir(folder, config.to_dict())
        state = jax.jit(self.experiment.train_task().random_state)()
        self.params = state["params"]
        self.tables = {name: 20 * table for name, table in state["tables"].items()}


@pytest.fixture(scope="module")
def run(small_config, csv_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    data = folder / "data"
    shutil.copytree(csv_folder, data)
    with open(data / "searches.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rng = np.random.default_rng(1)
    for row in rows:  # items get words from the searches that led to them
        row["clicked_items"] = " ".join(f"i{item}" for item in rng.integers(150, size=3))
    with open(data / "searches.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    config = small_config.copy_and_resolve_references()
    config.data_dir, config.rl.enabled = str(data), False
    config.data.item_words, config.train.table_update = 2, "dense"
    return Untrained(resolve(config), str(folder / "w"))


@pytest.fixture(scope="module")
def expected(run):
    """The evaluator's ndcg@10."""
    return run.experiment.evaluate(run.params, run.tables, "test", "neg99").means()["ndcg@10"]


def test_a_teacher_ranks_as_the_evaluator(run, expected):
    one = Teacher(run, run.experiment.config, run.data)
    sums = metrics.Sums(("ndcg@10",))
    for batch in one.with_scores(lambda start: run.data.sampled("test", "neg99"))(0):
        above, tied = jax.device_get(metrics.target_ranks(batch[TEACHER]))
        sums.add(above, tied, batch["mask"], np.zeros(len(above), bool))
    assert sums.means()["ndcg@10"] == pytest.approx(expected, abs=1e-6)


def test_the_scores_of_every_k_end_in_the_evaluators(run, expected):
    (curve,) = figures.every_k([run], "train", "ndcg@10/neg99").curves.values()
    assert curve[-1][1] == pytest.approx(expected, abs=1e-6)


def test_adaptive_steps_end_in_the_evaluators_scores(run, expected):
    scorer = AdaptiveScorer(run.experiment.model, 32)
    values = adaptive.metrics_of_every_k(run, scorer, "test", "ndcg@10")[2]
    assert values[:, -1].mean() == pytest.approx(expected, abs=1e-6)


def test_targets_of_hidden_states_are_items_with_their_words(run):
    target = figures.hidden_states(run).target
    items = np.asarray(run.data.log.rec_items)[run.data.split("test").target_row]
    raw, words = (np.asarray(t["item"])[items] for t in (run.tables, run.tables_with_words))
    assert len(target)
    assert np.abs(target[:, None] - words).max(-1).min(1).max() < 1e-6
    assert np.abs(target[:, None] - raw).max(-1).min(1).max() > 1e-3
