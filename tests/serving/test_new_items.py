"""Items that joined after training are scored by their words."""

import types

import jax
import numpy as np
import pytest
from moved_runs import ITEMS, SMALL, Untrained

from configs import crs, lcr_ser
from core.errors import UserError
from crs_jax.baselines.latentr3 import LatentR3Experiment
from lcrsr.embedding import look_up
from serving.export import export_run
from serving.exported import ExportedModel
from serving.index import IndexedModel
from serving.item_descriptions import NewItem, parse, read_items
from serving.new_items import WithNewItems
from serving.recommender import Recommender
from serving.requests import Click, Request

NEW = [
    {"item": "n1", "title": "Red kettle", "words": "tea pot"},
    {"item": "n2", "title": "red zebra"},
    {"item": "i3", "title": "known already"},
    {"item": "n3", "title": "zebra lion"},
]


def test_a_run_with_semantic_ids_says_why_no_items_join():
    experiment = object.__new__(LatentR3Experiment)
    experiment.config = crs.get_config("qilin,latentr3")
    with pytest.raises(UserError, match="latentr3 whose items have the identifiers of its traini"):
        WithNewItems(types.SimpleNamespace(experiment=experiment), NEW)


@pytest.fixture(scope="module")
def with_words(tmp_path_factory):
    values = SMALL | {"data.item_words": 2, "train.table_update": "dense"}
    return Untrained(lcr_ser.method(), tmp_path_factory.mktemp("words"), values)


@pytest.fixture(scope="module")
def model(with_words):
    return Recommender(WithNewItems(with_words, NEW))


def test_a_new_item_is_its_words_and_the_mean_row(with_words, model):
    answers = model._answers
    answer = model.recommend(user="u9", candidates=["n1", "n2", "n3", "i3"], keep_seen=True)
    assert {item.item for item in answer.items} == {"n1", "n2", "i3"}
    # n3 has no word of the training queries.
    assert answer.skipped_items == 1 and model.catalogue_size == ITEMS + 2
    tables, words = with_words.tables, answers.reader.words_by_name
    mean = np.asarray(tables["item"])[1:].mean(0)
    for item, known in {"n1": ["tea", "pot"], "n2": ["red"]}.items():
        vector = mean + np.asarray(tables["word"])[[words[word] for word in known]].mean(0)
        batch = answers.batch([answers.reader.read(Request(user="u9"))])
        ranker, whole = with_words.experiment.ranker, with_words.tables_with_words
        rows = look_up(whole, batch)
        users = jax.jit(ranker.represent)(with_words.params, batch, rows)
        score = ranker.score_catalogue(with_words.params, users, rows, vector[None])
        (found,) = (one for one in answer.items if one.item == item)
        assert found.score == pytest.approx(float(score[0, 0]), abs=1e-4)
    assert {one.item: one.title for one in answer.items}["n1"] == "Red kettle"


def test_items_of_the_log_keep_their_scores_and_titles(with_words, model):
    before = Recommender(with_words).recommend(user="u9", k=ITEMS, keep_seen=True)
    after = model.recommend(user="u9", k=ITEMS + 2, keep_seen=True)
    scores = {item.item: (item.title, item.score) for item in after.items}
    assert {item.item: (item.title, item.score) for item in before.items} == {
        name: value for name, value in scores.items() if name not in ("n1", "n2")
    }
    assert len(with_words.data.log.item_ids) == ITEMS + 1, "the run itself is as it was"


def test_a_click_on_a_new_item_is_history(model):
    clicked = model.recommend(clicks=["i1", "n1"], k=5)
    assert clicked.skipped_items == 0
    assert "n1" not in {item.item for item in clicked.items}
    assert [i.score for i in clicked.items] != [
        i.score for i in model.recommend(clicks=["i1"], k=5).items
    ]


def test_a_run_of_ids_alone_says_that_it_cannot(run, tmp_path):
    with pytest.raises(UserError, match="lcr_ser that knows items by their ids alone; train with"):
        WithNewItems(run, NEW)
    run.stage, run.step = "train", 0
    export_run(run, str(tmp_path / "E"))
    with pytest.raises(UserError, match=r"the export of a run whose items have words .* lcr_ser"):
        Recommender.load(str(tmp_path / "E"), items=NEW)


@pytest.mark.parametrize("scorer", ["mlp", "dot_product"])
def test_an_export_scores_them_as_its_run(scorer, tmp_path):
    values = SMALL | {
        "data.item_words": 2,
        "train.table_update": "dense",
        "model.scorer": scorer,
    }
    (tmp_path / "run").mkdir()
    run = Untrained(lcr_ser.method(), tmp_path / "run", values)
    run.stage, run.step = "train", 0
    out = str(tmp_path / "E")
    export_run(run, out)
    question = Request(clicks=(Click("i1"), Click("n1")), k=ITEMS, keep_seen=True)
    (other,) = Recommender(WithNewItems(run, NEW)).recommend_many([question])
    models = [ExportedModel(out, NEW)]
    if scorer == "dot_product":
        models.append(IndexedModel(out, out, first=ITEMS + 2, items=NEW))
    for model in models:
        assert model.catalogue_size == ITEMS + 2 and model.titles["n2"] == "red zebra"
        (answer,) = model.recommend_many([question])
        scores = {item.item: item.score for item in other.items}
        assert {"n1", "n2"} & scores.keys() and answer.skipped_items == 0
        assert {item.item: item.score for item in answer.items} == pytest.approx(scores, abs=1e-5)


def test_items_are_read_from_a_file(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"item": "n1", "title": "T"}\n\n{"item": 7}\n', encoding="utf-8")
    assert read_items(str(path)) == [NewItem(item="n1", title="T"), NewItem(item="7")]
    for text, reason in {
        '{"item": "n1"}\n{"item"': "as a JSON object in line 2 of",
        "\n": "expected items in .*, one a line, found none",
        "[1]": r"expected new item 1 with the keys item, title, words, found '\[1\]'",
    }.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=reason):
            read_items(str(path))
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"as UTF-8 text in .*; correct --items"):
        read_items(str(path))
    with pytest.raises(UserError, match="No such file"):
        read_items(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        (["n1"], "expected new item 1 with the keys item, title, words, found 'n1'"),
        ([{"item": "n1", "name": "x"}], "expected new item 1 with the keys"),
        ([{"title": "x"}], "expected an id and texts in new item 1, found null"),
        ([{"item": "n1", "title": ["x"]}], "expected an id and texts in new item 1"),
        ([{"item": "n1"}, {"item": "n1"}], "expected each new item once, found 'n1' again"),
    ],
)
def test_items_that_are_not_described_are_refused(items, reason):
    with pytest.raises(UserError, match=reason):
        parse(items)


def test_numbers_are_ids_and_texts_may_be_absent():
    assert parse([{"item": 7, "title": None}]) == [NewItem(item="7")]
