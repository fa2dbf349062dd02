"""GenSAR on Amazon's raw files: the paper's own config, end to end on a made-up category."""

import gzip
import json

import numpy as np
import pytest

from configs import gensar, gensar_identifiers
from experiments.methods import open_experiment
from experiments.resolve import resolve
from experiments.train import train
from input_pipelines.dataset import Dataset

USERS, LENGTH = 16, 8
IDENTIFIERS = {
    "vectors.semantic": "tfidf_svd",
    "vectors.width": 8,
    "vectors.sketch_width": 4,
    "model.widths": (16,),
    "model.latent_width": 4,
    "model.codes": 16,
    "model.sinkhorn_iterations": 3,
    "train.epochs": 4,
    "train.evals": 1,
    "train.batch_size": 32,
}
JOINT = {
    "vocabulary.pieces": 420,
    "prompts.max_inputs": 128,
    "prompts.max_targets": 16,
    "mixture.nsip": 16,
    "mixture.nsqp": 8,
    "mixture.pseudo_query": 8,
    "mixture.desc2id": 8,
    "mixture.id2desc": 8,
    "model.size": "tiny",
    "train.batch_size": 32,
    "train.accumulate": 2,
    "train.row_inputs": 128,
    "train.row_targets": 24,
    "train.epochs": 1.0,
    "train.evals": 1,
    "eval.beam": 10,
    "eval.validation_users": 4,
    "eval.test_users": 4,
    "eval.batch_size": 4,
    "eval.protocols": ("neg99",),
    "eval.search_protocols": ("bm25_99",),
}


def pack(path, lines):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every review is of another item and has a query, its item's category."""
    raw = tmp_path_factory.mktemp("raw")
    reviews, metadata, qrels = [], [], []
    for user in range(USERS):
        for place in range(LENGTH):
            number = user * LENGTH + place
            item, kind = f"B{number:03}", number % 4
            reviews.append({"reviewerID": f"A{user}", "asin": item, "unixReviewTime": place})
            record = {"asin": item, "title": f"radio model{number}", "categories": [["Audio"]]}
            metadata.append(record | ({"description": f"plays fm{kind}"} if number % 3 else {}))
            qrels.append(f"A{user}_{kind} 0 {item} 1")
    pack(raw / "reviews_Electronics_5.json.gz", map(json.dumps, reviews))
    pack(raw / "meta_Electronics.json.gz", map(str, metadata))
    pack(raw / "query_text.txt.gz", [f"electronics audio kind{kind}" for kind in range(4)])
    pack(raw / "train.qrels.gz", qrels[::2])
    pack(raw / "test.qrels.gz", qrels[1::2])
    return str(raw)


def small(module, sizes, folder, cache):
    config = module.get_config("amazon_electronics")
    config.data_dir, config.cache_dir = folder, str(cache)
    config.update_from_flattened_dict(sizes)
    return config


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    """The joint config on identifiers of the other command, and the row of these."""
    cache = tmp_path_factory.mktemp("cache")
    workdir = str(tmp_path_factory.mktemp("identifiers") / "w")
    first = small(gensar_identifiers, IDENTIFIERS, folder, cache)
    (row,) = train(first, workdir)["rows"]
    config = small(gensar, JOINT, folder, cache)
    config.identifiers = workdir
    return config, row


def test_the_papers_config_finds_all_it_reads_in_the_raw_files(prepared):
    config, table = prepared
    assert table["examples"] == USERS * LENGTH and table["data"] == "amazon_electronics"
    data = Dataset(resolve(config))
    experiment = open_experiment(resolve(config), data)
    experiment.check_data()  # candidates of bm25_99 among them
    examples = experiment.examples
    assert set(examples.mixture.tasks) == set(config.mixture)
    written = examples.training_example("desc2id", 0, 0).inputs
    text = examples.vocabulary.text_of(written)
    assert "radio model" in text and "Audio" not in text


@pytest.mark.slow
def test_the_papers_config_trains_and_tests_both_tasks(prepared, tmp_path):
    config, table = prepared
    rows = train(config, str(tmp_path / "w"))["rows"]
    columns = ("neg99/exact", "neg99/beam10", "search/bm25_99/exact", "search/bm25_99/beam10")
    assert tuple(row["protocol"] for row in rows) == columns
    for row in rows:
        assert row["examples"] == 4 and row["identifiers"] == table["identifiers"]
        assert np.isfinite(list(row["metrics"].values())).all()


def test_both_commands_train_the_same_identifiers(folder, tmp_path):
    """What the joint config would train itself is what the command of the identifiers trains."""
    alone = resolve(small(gensar_identifiers, {}, folder, tmp_path))
    joint = resolve(small(gensar, {}, folder, tmp_path))
    for section in ("vectors", "model", "train"):
        assert joint[f"identifier_{section}"].to_dict() == alone[section].to_dict()
    assert joint.identifier_vectors.semantic == "BAAI/bge-base-en-v1.5"
