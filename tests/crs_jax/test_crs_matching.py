"""Matching baselines on a catalogue whose ranks are known: ten items of each query's kind."""

import json
import sys
import types

import numpy as np
import pytest

from configs import matching
from core.errors import UserError
from experiments.evaluate import evaluate
from experiments.methods import open_experiment
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.train import train
from input_pipelines.dataset import Dataset

USERS, ITEMS, KINDS = 30, 60, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matching") / "beauty"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = [
        {"item": item, "query_ids": [item % KINDS], "title": f"kind{item % KINDS} no{item}"}
        for item in range(ITEMS)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [f"{q}\tkind{q} things" for q in range(KINDS)]
    (folder / "queries.tsv").write_text("\n".join(queries) + "\n")
    lines = [f"{user}\t{' '.join(map(str, rng.permutation(ITEMS)[:5]))}\n" for user in range(USERS)]
    (folder / "sequences.tsv").write_text("".join(lines))
    return str(folder)


def config_of(folder, cache, system, **model):
    config = matching.get_config(f"{system},amazon_beauty")
    config.data_dir, config.cache_dir = folder, str(cache)
    config.model.update(model)
    return resolve(config)


def test_bm25_ties_all_items_of_the_kind(folder, tmp_path):
    results = train(config_of(folder, tmp_path, "bm25"), str(tmp_path / "w"))
    (row,) = results["rows"]
    # One of ten equal items is the target: expectations over their order.
    assert row["metrics"]["hr@1/search/catalogue"] == pytest.approx(0.1)
    assert row["metrics"]["hr@5/search/catalogue"] == pytest.approx(0.5)
    assert row["metrics"]["hr@10/search/catalogue"] == pytest.approx(1.0)
    assert row["examples"] == 3 and row["task"] == "search" and row["kind"] == "bm25"
    assert sum(group["examples"] for group in row["user_groups"]) == 3


@pytest.mark.parametrize("system", ["tfidf", "dense"])
def test_vectors_put_the_kind_first(folder, tmp_path, system):
    config = config_of(folder, tmp_path, system, width=8)
    experiment = open_experiment(config, Dataset(config))
    means = experiment.evaluate(None, None, "test", "search/catalogue").means()
    assert means["hr@10"] == pytest.approx(1.0) and means["hr@1"] < 1.0


def test_a_sentence_model_is_loaded_once(folder, tmp_path, monkeypatch):
    loaded = []

    class Kinds:
        """Vectors by the digit after 'kind'."""

        def __init__(self, name):
            loaded.append(name)

        def encode(self, texts, show_progress_bar):
            return np.eye(KINDS)[[int(text.partition("kind")[2][0]) for text in texts]]

    package = types.SimpleNamespace(SentenceTransformer=Kinds)
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    config = config_of(folder, tmp_path, "dense", vectors="bge")
    experiment = open_experiment(config, Dataset(config))
    means = experiment.evaluate(None, None, "test", "search/catalogue").means()
    assert means["hr@10"] == pytest.approx(1.0) and loaded == ["bge"]


def test_rows_of_validation_do_not_stand_for_the_test(folder, tmp_path):
    config = config_of(folder, tmp_path, "bm25")
    train(config, str(tmp_path / "w"))
    (tmp_path / "w" / "results.json").unlink()
    evaluate(Restored(str(tmp_path / "w")), "validation", "search/catalogue")
    results = train(config, str(tmp_path / "w"))
    assert [row["split"] for row in results["rows"]] == ["validation", "test"]


def test_dsi_reads_the_query_alone_and_ranks_the_same_searches(folder, tmp_path):
    config = matching.get_config("dsi,amazon_beauty")
    config.update_from_flattened_dict(
        {
            "data_dir": folder,
            "cache_dir": str(tmp_path / "cache"),
            "model.size": "tiny",
            "vocabulary.pieces": 320,
            "identifier_model.codes": 8,
            "identifier_vectors.width": 8,
            "identifier_train.epochs": 2,
            "identifier_train.evals": 1,
            "identifier_train.batch_size": 32,
            "train.batch_size": 64,
            "train.epochs": 10.0,
            "train.evals": 1,
            "prompts.max_inputs": 128,
            "train.row_inputs": 128,
        }
    )
    config = resolve(config)
    experiment = open_experiment(config, Dataset(config))
    experiment.train_identifiers()
    prompt = experiment.examples.evaluation_inputs(experiment.evaluated("search", "test")[0])
    assert len({tuple(row) for row in prompt}) <= KINDS, "a prompt is its query and nothing else"
    (row,) = train(config, str(tmp_path / "w"))["rows"]
    assert row["protocol"] == "search/catalogue" and row["examples"] == 3
    assert set(row["metrics"]) >= {"hr@10/search/catalogue", "ndcg@10/search/catalogue"}


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"sentence-transformers .* set model\.vectors to"):
        config = config_of(folder, tmp_path, "dense", vectors="nobody/knows")
        open_experiment(config, Dataset(config))
    for choice in ("bm25,mars", "splade,qilin", "dsi,trivago"):
        with pytest.raises(ValueError, match=f"found '{choice}'"):
            matching.get_config(choice)
