"""Floors of search answer anyone's searches."""

import pathlib

import numpy as np
import pytest
from moved_runs import SHARED, run_of

from configs import retrieval
from core.errors import UserError
from experiments.restored import Restored
from serving.recommender import Recommender
from serving.requests import Click, Request
from serving.search_floors import SearchFloorAnswers

ENCODERS = pathlib.Path(__file__).parents[1] / "reference" / "text_encoders"
VALUES = {
    **{key: SHARED[key] for key in ("data.kept_events", "eval.metrics", "loop.writers")},
    "data.rec_length": 6,
    "eval.batch_size": 16,
    "eval.search_protocols": ("full",),
}


def workdir_of(kind, folder):
    return run_of(retrieval.get_config(f"csv_log,{kind}"), folder, VALUES)


def test_bm25_finds_titles(tmp_path):
    workdir = workdir_of("bm25", tmp_path)
    new = [{"item": "n1", "title": "Blue kettle"}, {"item": "n2"}, {"item": "i17", "title": "x"}]
    with_new = Recommender.load(workdir, items=new)
    best = [with_new.search(query, k=1).items[0].item for query in ("kettle", "pot 17")]
    assert best == ["n1", "i17"]
    assert with_new.catalogue_size == 61 and with_new.titles["i17"] == "pot 17"
    model = Recommender.load(workdir)
    assert model.tasks == ("search",)
    answer = model.search("pot 17", k=3)
    assert answer.items[0].item == "i17" and answer.items[0].title == "pot 17"
    assert answer.items[0].score > answer.items[1].score
    assert "i17" not in {i.item for i in model.search("pot 17", clicks=["i17"], k=5).items}
    with pytest.raises(UserError, match="expected a query with words, found '!!'"):
        model.search("!!")
    with pytest.raises(UserError, match="found one to recommend; ask with a query"):
        model.recommend(clicks=["i1"])
    with pytest.raises(UserError, match="expected because of recommendations, found a query"):
        model.search("pot", because=True)


def test_nearness_to_the_history_counts(tmp_path):
    workdir = workdir_of("query_knn", tmp_path)
    with pytest.raises(UserError, match=r"compares texts .* found query_knn, which knows"):
        Recommender.load(workdir, items=[{"item": "n1", "title": "pot"}])
    model = Recommender.load(workdir)
    asked = [Request(query="red tea", k=60, user="u9"), Request(query="red tea", k=60)]
    known, stranger = model.recommend_many(asked)
    assert known.known_user and not stranger.known_user
    assert {i.item: i.score for i in known.items} != {i.item: i.score for i in stranger.items}
    assert len(stranger.items) == 60 > len(known.items)


def test_a_large_catalogue_is_searched_by_an_index_of_vectors(tmp_path):
    pytest.importorskip("usearch")
    config = retrieval.get_config("csv_log,dense")
    config.model.vectors = str(ENCODERS / "bert")
    restored = Restored(run_of(config, tmp_path, VALUES), devices=1, kept=True)
    items = restored.data.log.num_items
    # The titles differ in numbers alone, which the small encoder does not know.
    rng = np.random.default_rng(0)
    restored.experiment.similarity.items = rng.normal(size=(items, 12)).astype(np.float32)
    exact, by_index = (SearchFloorAnswers(restored, most) for most in (items, items - 1))
    requests = [
        Request(query="red tea", k=7),
        Request(query="pot", k=7, clicks=(Click("i3"),), exclude=("i4",)),
        Request(query="red tea", k=7, candidates=("i5", "i6", "nobody")),
        Request(query="!!", k=7),
    ]
    expected, answers = exact.answer(requests), by_index.answer(requests)
    assert isinstance(answers[3], UserError) and str(answers[3]) == str(expected[3])
    for answer, wanted in zip(answers[:3], expected[:3], strict=True):
        assert [i.item for i in answer.items] == [i.item for i in wanted.items]
        assert [i.score for i in answer.items] == pytest.approx([i.score for i in wanted.items])
        assert answer.skipped_items == wanted.skipped_items
    assert len(answers[0].items) == 7 and {i.item for i in answers[2].items} == {"i5", "i6"}
    assert not {"i3", "i4"} & {item.item for item in answers[1].items}
