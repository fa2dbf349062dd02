"""Tests the questions that benchmarks.serving asks, and the catalogue that it makes up."""

import json

import numpy as np
import pytest
from moved_runs import ITEMS, SHARED, Untrained, run_of

from benchmarks import serving as benchmark
from configs import popularity, sasrec
from core.errors import UserError
from serving.export import export as export_workdir
from serving.export import export_run
from serving.exported import ExportedModel
from serving.index import IndexedModel
from serving.requests import Click, Request, parse


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sasrec")
    run = Untrained(
        sasrec.method(), folder, SHARED | {"model.width": 8, "model.loss": "cross_entropy"}
    )
    run.stage, run.step = "train", 0
    export_run(run, str(folder / "E"))
    return str(folder / "E")


def test_a_catalogue_is_enlarged_by_items_near_its_own(export, tmp_path):
    benchmark.write_enlarged(export, str(tmp_path), 300)
    own, model = ExportedModel(export), IndexedModel(str(tmp_path), str(tmp_path), first=40)
    assert model.data.log.num_items == 300 and model.catalogue_size == 40
    np.testing.assert_array_equal(model.vectors[:ITEMS], own.vectors)
    spread = np.abs(model.vectors[ITEMS:]).max() / np.abs(own.vectors).max()
    assert 0.3 < spread < 4 and model.recall(8).ranked >= 0.9
    question = Request(clicks=(Click("i1"), Click("i2")), k=5, keep_seen=True)
    few = Request(clicks=question.clicks, candidates=("i4", "i9"), k=2)
    (answer,), (other,) = model.recommend_many([few]), own.recommend_many([few])
    assert [item.item for item in answer.items] == [item.item for item in other.items]
    assert len(model.recommend_many([question])[0].items) == 5


def test_questions_are_of_the_export(export):
    questions = [parse(json.loads(body)) for body in benchmark.questions(export, 20)]
    assert {1, 0} < {len(question.searches) for question in questions}
    model = ExportedModel(export)
    assert not sum(answer.skipped_items for answer in model.recommend_many(questions))


def test_a_row_says_whether_its_marks_are_met():
    row = benchmark.Row("rate", "15 requests/s", {"answers": 3}, {"p50 <= 30": True, "x": False})
    assert row.line() == "| 15 requests/s | 3 | p50 <= 30: met, x: MISSED |"


def test_an_export_without_vectors_is_refused(tmp_path):
    keys = {"eval.protocols": ("full",), "eval.metrics": ("ndcg@5",), "data.kept_events": 0}
    manifest = export_workdir(run_of(popularity.method(), tmp_path, keys), str(tmp_path / "E"))
    assert manifest["method"] == "popularity"
    with pytest.raises(UserError, match=r"with vectors of items .* leave the part index out"):
        benchmark.write_enlarged(str(tmp_path / "E"), str(tmp_path), 300)
