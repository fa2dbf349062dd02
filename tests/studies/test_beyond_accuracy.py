"""Coverage, Gini index and novelty by hand, and the table of what runs keep."""

import numpy as np
import pytest

from configs import baseline
from core.errors import UserError
from experiments.train import train
from studies import beyond_accuracy
from studies.compare import read_rows


def test_lists_by_hand():
    # Items 1 and 2 in two lists each, item 3 in one, item 4 in none.
    best = np.array([[1, 2, 9], [2, 1, 9], [3, 0, 9]])
    clicks = np.array([0, 3, 1, 0, 0])
    values = beyond_accuracy.of_lists(best, clicks, 2)
    assert values["coverage@2"] == 0.75
    # Sorted 0, 1, 2, 2: (-3*0 - 1*1 + 1*2 + 3*2) / (4 * 5).
    assert values["gini@2"] == pytest.approx(7 / 20)
    # Shares of clicks, one more each: 4/8, 2/8, 1/8: 1, 2, 3 bits.
    assert values["novelty@2"] == pytest.approx((2 * 1 + 2 * 2 + 3) / 5)


def test_even_lists_have_gini_0_and_one_list_for_all_nearly_1():
    clicks = np.zeros(101, int)
    even = beyond_accuracy.of_lists(np.arange(1, 101).reshape(50, 2), clicks, 2)
    assert even["gini@2"] == pytest.approx(0.0) and even["coverage@2"] == 1.0
    alike = beyond_accuracy.of_lists(np.ones((50, 1), int), clicks, 1)
    assert alike["gini@1"] == pytest.approx(0.99) and alike["coverage@1"] == 0.01


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    paths = []
    for method in ("popularity", "item_knn"):
        config = baseline.get_config(f"{method},qilin")
        config.cache_dir, config.on_sample.users = str(folder / "cache"), 60
        train(config, str(folder / method))
        paths.append(str(folder / method))
    return paths


def test_runs_keep_what_the_table_shows(runs):
    rows = read_rows(runs, "hr@10/full", "test")
    head, _, popular, neighbours = (
        line.strip("| ").split(" | ")
        for line in beyond_accuracy.table(rows, runs, "test", "full", 10)
    )
    assert head == ["full", "mrr@10", "coverage@10", "gini@10", "novelty@10"]
    values = {
        name: dict(zip(head[1:], map(float, numbers), strict=True))
        for name, *numbers in (popular, neighbours)
    }
    # Everyone gets the same items but what he has seen.
    assert values["popularity"]["coverage@10"] < values["item_knn"]["coverage@10"]
    assert values["popularity"]["gini@10"] > values["item_knn"]["gini@10"]
    assert values["popularity"]["novelty@10"] < values["item_knn"]["novelty@10"]
    # Lists of sampled candidates say nothing of the catalogue.
    rows = read_rows(runs, "hr@10/neg99", "test")
    assert beyond_accuracy.table(rows, runs, "test", "neg99", 10)[0] == "| neg99 | mrr@10 |"
    with pytest.raises(UserError, match="expected --beyond of at most 20, which the lists"):
        beyond_accuracy.table(rows, runs, "test", "full", 30)
