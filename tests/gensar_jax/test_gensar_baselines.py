"""GenSAR's baselines from their configs, on a made-up catalogue."""

import numpy as np
import pytest
from test_gensar import SHARED, SMALL, changed, refused, small_config, write_beauty

from configs import genre_identifiers, gensar, p5_cid_identifiers
from core.errors import UserError
from core.object_store import FOLDER_VARIABLE
from experiments.export_t5x import export
from experiments.methods import open_experiment
from experiments.predict import predict
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.train import train
from gensar_jax import identifiers
from gensar_jax.own_identifiers import given_table, own_identifiers, train_table
from input_pipelines import histories
from input_pipelines.dataset import Dataset
from serving.recommender import Recommender


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_config(tmp_path_factory)


@pytest.fixture(scope="module")
def data(small):
    return Dataset(resolve(small))


def config_of(small, variant, **changes):
    """A variant's config on the made-up catalogue, its mixture whole."""
    config = gensar.get_config(f"amazon_beauty,{variant}")
    kept = {
        key: value
        for key, value in SMALL.items()
        if not key.startswith("mixture.") and key not in ("eval.protocols", "eval.search_protocols")
    }
    config.update_from_flattened_dict(kept)
    config.data_dir, config.cache_dir = small.data_dir, small.cache_dir
    if variant in ("lc_rec", "dsi_qg"):
        config.identifiers = small.identifiers
    if variant == "p5_cid":
        config.identifier_model.update({"clusters": 3, "most_items": 10})
    return changed(config, **changes)


def opened(config, data):
    experiment = open_experiment(resolve(config), data)
    experiment.train_identifiers()
    return experiment


def test_dsi_qg_reads_queries_alone_in_one_prompt(small, data):
    examples = opened(config_of(small, "dsi_qg"), data).examples
    assert set(examples.mixture.tasks) == {"nsip", "pseudo_search"}
    # Every prompt is that of a query: of a training search, or made of an item's words.
    log = data.log
    asked = {histories.query_text(log, int(row)) for row in examples.searches.target_row}
    asked |= {query for _, query in examples.query_pairs}
    prompts = {
        tuple(examples.prompts.next_searched_item([], query, 1, phrasing).inputs)
        for query in asked
        for phrasing in range(10)
    }
    stream = examples.stream(0, examples.mixture.examples_per_epoch)
    assert all(tuple(example.inputs) in prompts for example in stream)
    # A made query is asked as a real one is.
    item, query = examples.query_pairs[0]
    made = examples.training_example("pseudo_search", 0, 2)
    assert made == examples.prompts.next_searched_item([], query, item, 2)


def test_lc_rec_reads_and_writes_texts_too(small, data):
    config = config_of(small, "lc_rec", mixture__next_text=12, mixture__told_history=9)
    examples = opened(config, data).examples
    assert set(examples.mixture.tasks) == {
        *("nrip", "desc2id", "id2desc", "next_text", "told_history"),
    }
    assert examples.mixture.counts["next_text"] == 12 and examples.mixture.counts["nrip"] == 60
    texts = data.log.item_texts()
    for row in range(examples.sizes["told_history"]):
        told = examples.training_example("told_history", row, 0)
        prompt = examples.vocabulary.text_of(told.inputs)
        assert "pot model" in prompt and "<" not in prompt
        # The loss is on the answer alone: its codes and an end.
        assert len(told.targets) == examples.identifiers["semantic"].shape[1] + 1
    train_rows = data.splits.train
    row = examples._told["next_text"][3]
    item = int(data.log.rec_items[train_rows.target_row[row]])
    written = examples.training_example("next_text", 3, 1)
    assert examples.vocabulary.text_of(written.targets) == texts[item - 1]
    assert "<M1_" in examples.vocabulary.text_of(written.inputs)
    for example in examples.stream(0, 500):
        assert not any("heldout" in examples.vocabulary.text_of(tokens) for tokens in example)


def test_p5_cid_clusters_training_clicks_alone(small, data):
    experiment = opened(config_of(small, "p5_cid"), data)
    examples, table = experiment.examples, experiment.table
    assert examples.mixture.tasks == ("nrip",) and table.alphabet == identifiers.SYMBOLS
    codes = table.codes["semantic"]
    # Items of validation and test share no training user: they hang on a node of their own.
    held_out = np.array([int(name) >= SHARED for name in data.log.item_ids[1:].tolist()])
    alone = set(codes[held_out, 0])
    assert held_out.sum() == 24 and len(alone) == 1
    clicked = np.unique(data.log.rec_items[data.splits.training_rows])
    assert not alone & set(codes[clicked - 1, 0])
    example = examples.training_example("nrip", 5, 0)
    item = int(data.log.rec_items[data.splits.train.target_row[5]])
    length = int((codes[item - 1] >= 0).sum())
    assert len(example.targets) == length + 1 and example.targets[-1] == 1
    assert 0 not in example.inputs and example.inputs.count(1) == 1
    # One command makes the same table.
    own = p5_cid_identifiers.get_config("amazon_beauty")
    own.data_dir, own.cache_dir = small.data_dir, small.cache_dir
    own.model.update({"clusters": 3, "most_items": 10})
    made, metrics = open_experiment(resolve(own), data).fit()
    assert made.hash == table.hash and metrics["items_alone"] >= 24 / len(codes)
    folder, _ = own_identifiers(resolve(config_of(small, "p5_cid")), data)
    again = identifiers.load_table(folder, data_hash=data.log.hash)
    assert again.hash == table.hash


def test_a_stored_cache_has_identifiers_as_soon_as_they_are_made(small, tmp_path, monkeypatch):
    config = config_of(small, "genre", cache_dir=f"memory://cache/{tmp_path.name}")
    tables = []
    for machine in ("first", "second"):
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / machine))
        resolved = resolve(config)
        data = Dataset(resolved)
        find = train_table if machine == "first" else given_table
        tables.append(find(resolved, data))
    assert tables[1] is not None and tables[1].hash == tables[0].hash


def test_genre_s_identifiers_are_titles_in_the_run_s_own_pieces(small, data, tmp_path):
    experiment = opened(config_of(small, "genre"), data)
    examples = experiment.examples
    titles = data.log.item_texts()
    for item in (1, 20, 140):
        identifier = examples.prompts.catalogue.identifier(item, "semantic")
        assert examples.vocabulary.text_of(identifier) == titles[item - 1]
    searches = data.examples("search", "test")
    prompt = examples.vocabulary.text_of(examples.evaluation_inputs(searches)[0].tolist())
    assert histories.query_text(data.log, int(searches.target_row[0])) in prompt
    # Pieces of another run are others.
    folder, _ = own_identifiers(resolve(config_of(small, "genre")), data)
    other = config_of(small, "genre", vocabulary__pieces=400, identifiers=folder)
    assert "expected identifiers of the pieces" in refused(other, tmp_path)
    # One command makes the same table; this catalogue's titles need no numbers.
    own = genre_identifiers.get_config("amazon_beauty")
    own.data_dir, own.cache_dir = small.data_dir, small.cache_dir
    own.vocabulary.pieces = SMALL["vocabulary.pieces"]
    made, metrics = open_experiment(resolve(own), data).fit()
    assert made.hash == experiment.table.hash and metrics["numbered"] == 0


def test_mistakes_of_baselines_end_in_one_line(small, tmp_path):
    config = config_of(small, "p5_cid")
    assert "config.identifier_method of gensar_identifiers, genre" in refused(
        changed(config, identifier_method="random"), tmp_path
    )
    assert "most_items of at least the 3 clusters" in refused(
        changed(config, identifier_model__most_items=2), tmp_path
    )
    genre = config_of(small, "genre")
    assert "config.identifier_model.repeated of numbered, refused" in refused(
        changed(genre, identifier_model__repeated="kept"), tmp_path
    )
    assert "label_smoothing" in refused(changed(genre, train__label_smoothing=1.0), tmp_path)
    # A table is refused before its folder is written.
    own = genre_identifiers.get_config("amazon_beauty")
    own.data_dir, own.cache_dir = small.data_dir, small.cache_dir
    own.vocabulary.pieces, own.model.repeated = SMALL["vocabulary.pieces"], "refused"
    folder = tmp_path / "twice"
    write_beauty(folder)
    records = (folder / "items.jsonl").read_text().replace('pot model7"', 'pot model8"')
    (folder / "items.jsonl").write_text(records)
    own.data_dir = str(folder)
    assert "found items 7 and 8 with 'pot model8'" in refused(own, tmp_path)
    with pytest.raises(UserError, match="one code a level for T5X"):
        export(config, str(tmp_path / "export"), 1)
    assert not (tmp_path / "export").exists()


@pytest.mark.slow
def test_a_run_of_genre_ends_in_rows_predictions_and_answers(small, tmp_path):
    config = config_of(
        small, "genre", eval__search_protocols=("bm25_99", "full"), eval__length_penalty=1.0
    )
    results = train(config, str(tmp_path / "w"))
    assert {row["protocol"] for row in results["rows"]} == {
        *("search/bm25_99/exact", "search/bm25_99/beam10", "search/full"),
    }
    restored = Restored(str(tmp_path / "w"))
    rows = list(predict(restored, None, 5, "red tea kind2"))
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True) and len({row["item"] for row in rows}) == 5
    answer = Recommender.load(str(tmp_path / "w")).search("red tea kind2", k=5)
    assert [item.item for item in answer.items] == [row["item"] for row in rows]
