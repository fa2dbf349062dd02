"""A small made-up data set as CSV, and a config of seconds for it."""

import csv

import numpy as np
import pytest

from configs import lcr_ser

SMALL = {
    "data.rec_length": 6,
    "data.search_length": 4,
    "data.words": 3,
    "data.clicks": 2,
    "model.width": 8,
    "model.ffn_width": 8,
    "model.max_steps": 2,
    "model.mlp_widths": (16, 8),
    "train.active_steps": 2,
    "train.batch_size": 32,
    "train.max_epochs": 2.0,
    "rl.examples": 96,
    "rl.batch_size": 16,
    "rl.evals": 2,
    "rl.trajectories": 3,
    "rl.negatives": 9,
    "eval.batch_size": 32,
    "eval.full_batch_size": 16,
    "loop.log_every": 4,
    "loop.checkpoint_every": 3,
}


@pytest.fixture(scope="session")
def csv_folder(tmp_path_factory):
    """60 users, 150 items; some users without searches, some with a single click."""
    folder = tmp_path_factory.mktemp("csv_log")
    rng = np.random.default_rng(0)
    with open(folder / "clicks.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "time"])
        for user in range(60):
            for place in range(1 if user < 3 else int(rng.integers(4, 9))):
                writer.writerow([f"u{user}", f"i{rng.integers(150)}", 100 * place + 50])
    with open(folder / "items.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["item", "title"]] + [[f"i{i}", "a pot"] for i in range(150)])
    with open(folder / "searches.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "session", "time", "query", "clicked_items"])
        for user in range(10, 60):
            for place in range(int(rng.integers(1, 4))):
                query = " ".join(rng.choice(["red", "tea", "pot", "map"], 2))
                writer.writerow([f"u{user}", f"s{user}-{place}", 100 * place + 20, query, ""])
    return folder


@pytest.fixture(scope="session")
def small_config(csv_folder, tmp_path_factory):
    config = lcr_ser.method()
    config.dataset = "csv_log"
    config.data_dir = str(csv_folder)
    config.cache_dir = str(tmp_path_factory.getbasetemp() / "cache")
    config.update_from_flattened_dict(SMALL)
    return config
