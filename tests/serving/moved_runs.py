"""A small made-up log as CSV, and runs on it whose data are then moved away."""

import csv
import shutil

import jax
import numpy as np

from core.workdir import Workdir
from experiments.methods import open_experiment
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.train import train
from input_pipelines import kept_data
from input_pipelines.dataset import Dataset

SHARED = {
    "data.rec_length": 6,
    "data.search_length": 4,
    "data.words": 3,
    "data.clicks": 2,
    "data.kept_events": -1,
    "train.batch_size": 32,
    "train.max_epochs": 1.0,
    "eval.batch_size": 32,
    "eval.full_batch_size": 16,
    "eval.protocols": ("full",),
    "eval.metrics": ("ndcg@5",),
    "eval.selection": "ndcg@5/full",
    "loop.writers": (),
}
SMALL = SHARED | {
    "model.width": 8,
    "model.ffn_width": 8,
    "model.max_steps": 2,
    "model.mlp_widths": (16, 8),
    "model.init_scale": 1.0,
    "train.active_steps": 2,
    "rl.enabled": False,
}
USERS, ITEMS = 30, 60


def write_log(folder):
    """Users u0.. with 4 to 8 clicks and up to 3 searches each; u0 and u1 click once."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    with open(folder / "clicks.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "time"])
        for user in range(USERS):
            for place in range(1 if user < 2 else int(rng.integers(4, 9))):
                writer.writerow([f"u{user}", f"i{rng.integers(ITEMS)}", 100 * place + 50])
    with open(folder / "items.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["item", "title"]] + [[f"i{i}", f"pot {i}"] for i in range(60)])
    with open(folder / "searches.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "session", "time", "query", "clicked_items"])
        for user in range(5, USERS):
            # The last searches of some come after all clicks, and are held out.
            late = [50] if user >= 15 else []
            for place in [*range(int(rng.integers(1, 4))), *late]:
                query = " ".join(rng.choice(["red", "tea", "pot", "map"], 2))
                clicked = f"i{rng.integers(ITEMS)}"
                writer.writerow([f"u{user}", f"s{user}-{place}", 100 * place + 20, query, clicked])


def _described(config, folder, values):
    write_log(folder / "data")
    config.dataset, config.data_dir = "csv_log", str(folder / "data")
    config.cache_dir = str(folder / "cache")
    config.update_from_flattened_dict(values)
    return config


def _move_away(folder):
    shutil.rmtree(folder / "data")
    shutil.rmtree(folder / "cache")


def run_of(config, folder, values):
    """Trains a run on the log and moves the log away; returns the run's folder."""
    train(_described(config, folder, values), str(folder / "run"))
    _move_away(folder)
    return str(folder / "run")


class Untrained(Restored):
    """A run at its first state, opened with what it would keep, its data moved away."""

    def __init__(self, config, folder, values=SMALL):
        config = resolve(_described(config, folder, values))
        kept_data.keep(Dataset(config), str(folder), config.data.kept_events)
        _move_away(folder)
        self.workdir = Workdir(str(folder))
        self.data = kept_data.open_kept(config, str(folder))
        self.experiment = open_experiment(config, self.data)
        state = jax.jit(self.experiment.train_task().random_state)()
        self.params, self.tables = state["params"], state["tables"]
