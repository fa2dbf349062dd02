"""Identifiers through launch.train on a made-up catalogue: results, repetition, mistakes."""

import json
import shutil

import numpy as np
import pytest

from configs import (
    gensar_amazon_beauty,
    gensar_identifiers_amazon_beauty,
    sasrec,
)
from core import checksums, results
from core.errors import UserError
from experiments.evaluate import evaluate
from experiments.export_vectors import export
from experiments.methods import open_experiment
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.train import train
from gensar_jax.identifiers import load_table
from gensar_jax.own_identifiers import train_table
from input_pipelines.dataset import Dataset

SMALL = {
    "vectors.width": 8,
    "vectors.sketch_width": 4,
    "model.widths": (16,),
    "model.latent_width": 4,
    "model.shared_levels": 1,
    "model.specific_levels": 2,
    "model.codes": 8,
    "train.epochs": 6,
    "train.evals": 2,
    "train.batch_size": 32,
    "train.kmeans_iterations": 3,
}
KINDS = ("pot", "drum", "lamp", "kite", "soap")


def write_beauty(folder, *, items=100, titles=True):
    """Items of 5 kinds; a user buys of one kind; items 4 and 9 have the same title, 5 has none."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    with open(folder / "items.jsonl", "w") as file:
        for item in range(items):
            title = f"{KINDS[item % 5]} model{item}" if titles else ""
            title = {4: "drum same", 9: "drum same", 5: ""}.get(item, title)
            file.write(json.dumps({"item": item, "query_ids": [], "title": title}) + "\n")
    (folder / "queries.tsv").write_text("0\tpots\n")
    with open(folder / "sequences.tsv", "w") as file:
        for user in range(60):
            bought = user % 5 + 5 * rng.permutation(items // 5)[:6]
            file.write(f"{user}\t{' '.join(map(str, bought))}\n")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_beauty(tmp_path_factory.mktemp("raw") / "beauty")


@pytest.fixture(scope="module")
def config(folder, tmp_path_factory):
    small = gensar_identifiers_amazon_beauty.get_config()
    small.data_dir = folder
    small.cache_dir = str(tmp_path_factory.getbasetemp() / "cache")
    small.update_from_flattened_dict(SMALL)
    return small


def changed(config, **flat):
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({k.replace("__", "."): v for k, v in flat.items()})
    return other


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "w"
    return workdir, train(config, str(workdir))


def test_a_run_leaves_a_unique_table_and_every_number(trained, config, capsys):
    workdir, found = trained
    (row,) = found["rows"]
    assert (row["stage"], row["split"], row["examples"]) == ("identifiers", "catalogue", 100)
    values = row["metrics"]
    for source in ("semantic", "collaborative"):
        assert values[f"collision_rate_after/{source}"] == 0.0
        assert values[f"colliding_items/{source}"] > 0.0, "else nothing was resolved here"
        for name in ("prefix_correlation", "neighbours_kept"):
            assert np.isfinite(values[f"{name}/{source}"])
            assert np.isfinite(values[f"kmeans_{name}/{source}"])
    log = Dataset(resolve(config)).log
    table = load_table(str(workdir), data_hash=log.hash)
    assert table.hash == row["identifiers"] and table.codes["semantic"].shape == (100, 3)
    assert (workdir / "curves.png").stat().st_size > 5000
    assert "collision_rate_after/semantic" in (workdir / "summary.md").read_text()
    results.print_table(found, results.reported_split(found))
    printed = capsys.readouterr().out
    assert "100 examples" in printed and "kmeans_neighbours_kept/collaborative" in printed


def test_the_same_command_again_changes_nothing_and_the_seed_decides(trained, config, tmp_path):
    workdir, found = trained
    before = (workdir / "identifiers.json").read_text()
    assert train(config, str(workdir)) == found
    assert (workdir / "identifiers.json").read_text() == before
    again = train(config, str(tmp_path / "again"))["rows"][0]
    first = found["rows"][0]
    assert again["identifiers"] == first["identifiers"] and again["metrics"] == first["metrics"]


def test_a_run_of_identifiers_ranks_nothing(trained):
    workdir, _ = trained
    with pytest.raises(UserError, match="a model that ranks items, found one of gensar_ident"):
        evaluate(Restored(str(workdir)), "test", "neg99")


def refused(config):
    with pytest.raises(UserError) as error:
        open_experiment(resolve(config), Dataset(resolve(config)))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_mistakes_end_in_one_line_before_anything_is_written(config, tmp_path):
    workdir = tmp_path / "w"
    with pytest.raises(UserError, match=r"at least 256 items, .* found 100"):
        train(changed(config, model__codes=256), str(workdir))
    assert not workdir.exists()
    message = refused(changed(config, model__sources=("visual",)))
    assert "config.model.sources of semantic, collaborative, found 'visual'" in message
    assert "of 64 identifiers" in refused(changed(config, model__specific_levels=1))
    assert "config.train" in refused(changed(config, train__epochs=0))
    assert "config.vectors" in refused(changed(config, vectors__sketch_share=1.5))
    assert "explained/catalogue" in refused(changed(config, eval__selection="ndcg@5/neg99"))


def test_items_without_any_text(config, tmp_path):
    bare = changed(config, data_dir=write_beauty(tmp_path / "bare", titles=False))
    bare.data_dir = str(tmp_path / "bare")
    # Two items share the title "drum same" there; without it none has text.
    path = tmp_path / "bare" / "items.jsonl"
    path.write_text(path.read_text().replace("drum same", ""))
    message = refused(bare)
    assert "expected text on the items, found none on all 100" in message
    assert "or set --config.model.sources to ('collaborative',)" in message
    # Clicks alone are enough for collaborative identifiers.
    open_experiment(
        resolve(changed(bare, model__sources=("collaborative",))), Dataset(resolve(bare))
    )


def test_exported_vectors_of_another_log_are_refused_and_its_own_are_used(config, tmp_path):
    data = Dataset(resolve(config))
    path = tmp_path / "items.npy"
    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    np.save(path, rows)
    files = checksums.describe(str(tmp_path), ["items.npy"])

    def describe(**values):
        checksums.write_sealed(str(tmp_path / "items.json"), {"files": files} | values)

    describe(data_hash="another")
    given = changed(config, vectors__collaborative=str(path))
    assert f"vectors of the log {data.log.hash}" in refused(given)
    describe(data_hash=data.log.hash, training_split="by_user-0123456789ab")
    message = refused(given)
    assert f"item vectors in {path} of the training clicks of leave_one_out-" in message
    assert "found those of by_user-0123456789ab" in message
    describe(data_hash=data.log.hash)
    assert "found no record of them; make them again with" in refused(given)
    describe(data_hash=data.log.hash, training_split=data.training_split)
    experiment = open_experiment(resolve(given), data)
    used = experiment.item_vectors["collaborative"]
    np.testing.assert_allclose(used, rows / np.linalg.norm(rows, axis=1)[:, None], rtol=1e-5)


def test_vectors_of_a_trained_recommender_become_collaborative_vectors(config, tmp_path):
    """launch.train and launch.export_vectors, then what identifiers are trained on."""
    trained = sasrec.get_config("amazon_beauty")
    trained.data_dir = write_beauty(tmp_path / "beauty", items=120)
    trained.cache_dir = config.cache_dir
    trained.model.width, trained.model.layers = 8, 1
    trained.train.max_epochs, trained.eval.protocols = 1.0, ("neg99",)
    train(trained, str(tmp_path / "sasrec"))
    path = tmp_path / "items.npy"
    export(Restored(str(tmp_path / "sasrec")), "item", str(path))
    given = changed(config, data_dir=trained.data_dir, vectors__collaborative=str(path))
    experiment = open_experiment(resolve(given), Dataset(resolve(given)))
    rows = np.load(path)
    assert rows.shape == (120, 8)
    expected = rows / np.linalg.norm(rows, axis=1)[:, None]
    np.testing.assert_allclose(experiment.item_vectors["collaborative"], expected, rtol=1e-5)
    # SASRec has seen clicks that another split holds out.
    other = changed(given, data__split="by_user")
    assert "of the training clicks of by_user-" in refused(other)


def test_a_table_serves_the_split_that_trained_it(trained, config, tmp_path):
    folder, _ = trained
    joint = gensar_amazon_beauty.get_config()
    joint.data_dir, joint.cache_dir = config.data_dir, config.cache_dir
    joint.identifiers = str(folder)
    own = Dataset(resolve(joint))
    assert train_table(joint, own).training_split == own.training_split
    for split in ("by_user", "global_time"):
        other = changed(joint, data__split=split)
        with pytest.raises(UserError) as error:
            train(other, str(tmp_path / "w"))
        message = str(error.value)
        assert f"identifiers in {folder} of the training clicks of {split}-" in message
        assert f"found those of {own.training_split}; " in message and "\n" not in message
    assert not (tmp_path / "w").exists()
    # Nor does a table that does not say what trained it.
    shutil.copytree(folder, tmp_path / "silent")
    path = tmp_path / "silent" / "identifiers.json"
    described = json.loads(path.read_text())
    del described["training_split"], described["checksum"]
    checksums.write_sealed(str(path), described)
    joint.identifiers = str(tmp_path / "silent")
    with pytest.raises(UserError, match=r"identifiers\.json in .*silent, found none .*KeyError"):
        train_table(joint, own)


def test_a_single_source_gives_both_identifiers_the_same_codes(config, tmp_path):
    single = changed(config, model__sources=("semantic",), train__epochs=1, train__evals=1)
    workdir = tmp_path / "w"
    row = train(single, str(workdir))["rows"][0]
    table = load_table(str(workdir), data_hash=row["data_hash"])
    assert table.shared_levels == 3
    assert table.codes["semantic"].tolist() == table.codes["collaborative"].tolist()
    assert "collision_rate/collaborative" not in row["metrics"]
