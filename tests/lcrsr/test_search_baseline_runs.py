"""Floors of the search task from configs, on a made-up catalogue."""

import json
import pathlib

import numpy as np
import pytest

from configs import retrieval
from core.errors import UserError
from core.several_relevant import measure
from core.workdir import Workdir
from experiments.evaluate import evaluate
from experiments.restored import Restored
from experiments.train import train

USERS, ITEMS = 12, 120


def write_beauty(folder):
    """Item i has query i % 4; the users with an even number end with item 1, the others with 5.

    Both have query 1, and item 1 is bought by all in training, item 5 by the odd ones alone.
    """
    folder.mkdir()
    with open(folder / "items.jsonl", "w") as file:
        for item in range(ITEMS):
            record = {"item": item, "query_ids": [item % 4], "title": f"kind{item % 4} model{item}"}
            file.write(json.dumps(record) + "\n")
    (folder / "queries.tsv").write_text("".join(f"{q}\tkind{q} thing\n" for q in range(4)))
    with open(folder / "sequences.tsv", "w") as file:
        for user in range(USERS):
            ends = [8, 1] if user % 2 == 0 else [12, 5]
            starts = [20 + user, 5, 40 + user] if user % 2 == 0 else [20 + user, 1, 40 + user]
            file.write(f"{user}\t{' '.join(map(str, starts + ends))}\n")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_beauty(tmp_path_factory.mktemp("raw") / "beauty")


def config_of(kind, folder, tmp_path_factory):
    config = retrieval.get_config(f"{kind},amazon_beauty")
    config.data_dir = folder
    config.cache_dir = str(tmp_path_factory.getbasetemp() / "cache")
    return config


def test_popularity_of_the_query_ranks_what_was_bought_after_it(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "w"
    config = config_of("query_popularity", folder, tmp_path_factory)
    results = train(config, str(workdir))
    rows = {row["protocol"]: row for row in results["rows"]}
    assert set(rows) == {"search/full", "search/bm25_99"}
    for protocol, row in rows.items():
        assert row["examples"] == USERS and row["task"] == "search" and row["stage"] == "fit"
        assert all(name.endswith(f"/{protocol}") for name in row["metrics"])
    # Six users bought item 5 in training and six item 1; nothing else of query 1 more than once,
    # and what a user has bought does not count: every target is first.
    assert rows["search/full"]["metrics"]["hr@1/search/full"] == 1.0
    again = evaluate(Restored(str(workdir)), "test", "search/full")
    assert again["metrics"] == rows["search/full"]["metrics"]
    with pytest.raises(UserError, match="--task=search"):
        Restored(str(workdir)).experiment.columns("recommendation", "full")
    with pytest.raises(UserError, match="found 'neg98'"):
        Restored(str(workdir)).experiment.columns("search", "neg98")
    with np.load(workdir / rows["search/full"]["per_user"]) as values:
        assert len(values["user"]) == USERS


def write_two_clicks(folder):
    """Six users click a and b after 'tea' in training; six others do so in their last search."""
    folder.mkdir()
    clicks = [(f"u{u}", f"i{5 * u + t}", 10 * t + 10) for u in range(12) for t in range(5)]
    rows = [f"u{u},s,{15 if u < 6 else 49},tea,a b" for u in range(12)]
    texts = [f"i{i},pot {i}" for i in range(120)]
    for name, header, lines in (
        ("clicks", "user,item,time", [",".join(map(str, row)) for row in clicks]),
        ("searches", "user,session,time,query,clicked_items", rows),
        ("items", "item,title", [*texts, "a,red tea", "b,green tea"]),
    ):
        (folder / f"{name}.csv").write_text("\n".join([header, *lines]) + "\n")
    return str(folder)


def test_the_other_click_of_a_search_never_stands_above_a_target(tmp_path, tmp_path_factory):
    config = retrieval.get_config("query_popularity,csv_log")
    config.data_dir = write_two_clicks(tmp_path / "raw")
    config.cache_dir = str(tmp_path_factory.getbasetemp() / "cache")
    config.eval.search_protocols = ("full", "catalogue", "bm25_99", "neg99")
    for kind in ("query_popularity", "bm25"):
        config.model.kind = kind
        rows = train(config, str(tmp_path / kind))["rows"]
        # a and b are equally popular, and equally near: with the other one there .5 is the most.
        for row in rows:
            assert row["metrics"][f"hr@1/{row['protocol']}"] == 1.0 and row["examples"] == 12
            ranks = Workdir(str(tmp_path / kind)).read_ranks(row)
            # Both clicks of a search belong to one ranking, where both are in it.
            whole = row["protocol"] in ("search/full", "search/catalogue")
            assert len(np.unique(ranks["ranking"])) == (6 if whole else 12)
            if whole:
                of_both = measure(ranks["above"], ranks["tied"], ranks["ranking"], 1)
                assert of_both["recall@1"].tolist() == [0.5] * 6
                assert of_both["map@1"].tolist() == [1.0] * 6
        assert len(rows) == 4


@pytest.mark.parametrize("kind", ["bm25", "tfidf", "dense", "query_knn"])
def test_every_kind_runs(kind, folder, tmp_path_factory, tmp_path):
    config = config_of(kind, folder, tmp_path_factory)
    config.eval.search_protocols = ("full",)
    (row,) = train(config, str(tmp_path / "w"))["rows"]
    hits = row["metrics"]["hr@10/search/full"]
    # 30 items have the word of the query, so that texts alone are a lottery among 30.
    assert hits == 1.0 if kind == "query_knn" else 0.2 < hits < 0.6


ENCODERS = pathlib.Path(__file__).parents[1] / "reference" / "text_encoders"


@pytest.mark.parametrize("encoder", ["bert", "xlm_r", "qwen3"])
def test_a_text_encoder_by_its_folder(encoder, folder, tmp_path_factory, tmp_path):
    config = config_of("dense", folder, tmp_path_factory)
    config.model.vectors = str(ENCODERS / encoder)
    config.eval.search_protocols = ("full", "bm25_99")
    trained = train(config, str(tmp_path / "w"))["rows"]
    assert {row["protocol"] for row in trained} == {"search/full", "search/bm25_99"}
    restored = Restored(str(tmp_path / "w"))
    again = evaluate(restored, "test", "search/full")
    assert (
        again["metrics"]
        == trained[[row["protocol"] for row in trained].index("search/full")]["metrics"]
    )
    # The items' vectors lie beside the data, and a damaged file is refused.
    similarity = restored.experiment.similarity
    assert similarity.items.shape == (ITEMS, 12) and similarity.items.dtype == np.float32
    (stored,) = pathlib.Path(restored.data.directory).glob("text-vectors-*.npy")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    with pytest.raises(UserError, match="it is made again"):
        Restored(str(tmp_path / "w"))
    stored.unlink()
    again = Restored(str(tmp_path / "w")).experiment.similarity
    np.testing.assert_array_equal(again.items, similarity.items)
    for file in pathlib.Path(restored.data.directory).glob("text-vectors-*"):
        file.unlink()


@pytest.mark.parametrize(
    ("kind", "encoder", "message"),
    [
        ("bge", "", r"which is no folder of an encoder .* found 'first'; pass a folder"),
        ("bge", "bert", r"model\.query_prefix of 'red tea for ', as .* found 'Represent"),
        ("e5", "bert", r"model\.pooling of 'first', as .* found 'mean'"),
        ("e5", "xlm_r", r"model\.query_prefix of 'red: ', as .* found 'query: '"),
        ("qwen3_embedding", "xlm_r", r"model\.pooling of 'mean', as .* found 'last'"),
    ],
)
def test_an_encoder_that_contradicts_its_config(
    kind, encoder, message, folder, tmp_path_factory, tmp_path
):
    config = config_of(kind, folder, tmp_path_factory)
    if encoder:
        config.model.vectors = str(ENCODERS / encoder)
    with pytest.raises(UserError, match=message) as error:
        train(config, str(tmp_path / "w"))
    assert "\n" not in str(error.value) and not (tmp_path / "w").exists()


def test_qwen3_embedding_takes_the_instruction_of_its_config(folder, tmp_path_factory, tmp_path):
    config = config_of("qwen3_embedding", folder, tmp_path_factory)
    config.model.vectors = str(ENCODERS / "qwen3")
    config.model.dimensions = 5
    config.eval.search_protocols = ("full",)
    train(config, str(tmp_path / "w"))
    similarity = Restored(str(tmp_path / "w")).experiment.similarity
    assert similarity.items.shape == (ITEMS, 5)


def test_mistakes(folder, tmp_path_factory, tmp_path):
    with pytest.raises(ValueError, match=r"a variant of bm25, .*found 'bm26,amazon_beauty'"):
        retrieval.get_config("bm26,amazon_beauty")
    config = config_of("bm25", folder, tmp_path_factory)
    config.model.kind = "bm26"
    with pytest.raises(UserError, match="found 'bm26'"):
        train(config, str(tmp_path / "w"))
    config = config_of("query_knn", folder, tmp_path_factory)
    config.model.popularity_weight = -1.0
    with pytest.raises(UserError, match=r"config\.model\.popularity_weight of 0 or more"):
        train(config, str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()
