"""Floors of search answer anyone's searches."""

import pytest
from moved_runs import SHARED, run_of

from configs import retrieval
from core.errors import UserError
from serving.recommender import Recommender
from serving.requests import Request

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
