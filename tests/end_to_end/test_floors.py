"""A trained model is held against popularity and item-kNN on validation, and told where below."""

import pytest

from configs import item_knn, popularity
from core import results
from experiments.methods import open_experiment
from experiments.resolve import resolve
from input_pipelines.dataset import Dataset
from lcrsr import floors


@pytest.fixture
def data(small_config):
    return Dataset(resolve(small_config))


@pytest.mark.parametrize("protocol", ["neg99", "full"])
def test_floors_are_what_the_fitted_methods_reach(data, small_config, protocol):
    values = floors.floors(data, f"ndcg@5/{protocol}")
    assert list(values) == ["popularity", "item-kNN"]
    for method, name in ((popularity, "popularity"), (item_knn, "item-kNN")):
        config = method.method()
        for key in ("dataset", "data_dir", "cache_dir"):
            config[key] = small_config[key]
        experiment = open_experiment(resolve(config), data)
        sums = experiment.evaluate(None, None, "validation", protocol)
        assert values[name] == pytest.approx(sums.means()["ndcg@5"])


def test_item_knn_is_left_out_where_it_would_not_fit(data, monkeypatch):
    monkeypatch.setattr(floors, "_MOST_PAIRS", 10)
    assert list(floors.floors(data, "ndcg@5/neg99")) == ["popularity"]


def test_a_stage_below_a_floor_is_told():
    measured = {
        "metric": "ndcg@5/neg99",
        "value": 0.25,
        "floors": {"popularity": 0.1, "item-kNN": 0.26},
    }
    row = {
        "stage": "train",
        "split": "test",
        "protocol": "neg99",
        "step": 3,
        "validation": measured,
    }
    assert results.remarks({"rows": [row]}, "test") == [
        "after training: below item-kNN on validation (ndcg@5/neg99 0.2500, item-kNN 0.2600); find "
        "out why before you use it"
    ]
    measured["value"] = 0.26
    assert results.remarks({"rows": [row]}, "test") == []
