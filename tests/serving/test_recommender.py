"""A run recommends to anyone, from its folder alone."""

import shutil

import jax
import numpy as np
import pytest
from moved_runs import ITEMS, SHARED, SMALL, Untrained, run_of

from configs import item_knn, jsr, lcr_ser, popularity, unified_ssr, unisar
from configs import user as user_config
from core.errors import UserError
from experiments.evaluate import columns
from experiments.predict import predict
from experiments.restored import Restored
from input_pipelines import kept_data
from lcrsr.embedding import look_up
from serving.export import export_run
from serving.recommender import Recommender
from serving.requests import Request, parse


@pytest.fixture(scope="module")
def model(run):
    return Recommender(run)


UNISAR = SHARED | {
    "model.width": 8,
    "model.hidden": 8,
    "model.experts": 2,
    "model.expert_width": 4,
    "model.tower_widths": (8, 4),
    "model.init_scale": 1.0,
}


def ids(answer):
    return [item.item for item in answer.items]


def scored(answer):
    return [(item.item, item.score) for item in answer.items]


def predicted(run, users, top_k=5):
    rows = predict(run, users, top_k)
    by_user = {user: [] for user in users}
    for row in rows:
        by_user[row["user"]].append((row["item"], row["score"]))
    return by_user


def events(model, user):
    """The clicks and searches of a user of the log, as a request gives them."""
    log = model._answers.data.log
    number = log.user_ids.index(user)
    rows = range(*log.rec_offsets[number : number + 2].tolist())
    clicks = [(log.item_ids[log.rec_items[row]], int(log.rec_times[row])) for row in rows]
    searches = []
    for row in range(*log.search_offsets[number : number + 2].tolist()):
        clicked = log.click_items[log.click_offsets[row] : log.click_offsets[row + 1]]
        names = log.item_ids[clicked].tolist()
        searches.append((" ".join(log.query(row)), names, int(log.search_times[row])))
    return clicks, searches


def test_users_of_the_log_get_what_predict_gives(run, model):
    users = ["u0", *(f"u{number}" for number in range(2, 25))]
    expected = predicted(run, users)
    alone = {user: scored(model.recommend(user=user, k=5)) for user in users}
    assert alone == expected
    together = model.recommend_many([Request(user=user, k=5) for user in users])
    assert [scored(answer) for answer in together] == [expected[user] for user in users]
    assert all(answer.known_user for answer in together)


def test_events_of_a_request_count_as_those_of_the_log(model):
    clicks, searches = events(model, "u9")
    whole = model.recommend(clicks=clicks, searches=searches)
    assert not whole.known_user
    # In another order, with times, the answer is the same.
    assert model.recommend(clicks=clicks[::-1], searches=searches[::-1]) == whole
    without_times = model.recommend(
        clicks=[item for item, _ in clicks], searches=[(q, c) for q, c, _ in searches]
    )
    assert scored(without_times) == scored(whole)
    # The log's events joined by the last ones once more are the log's: one click is one click.
    assert scored(model.recommend(user="u9", clicks=clicks)) == scored(model.recommend(user="u9"))
    joined = model.recommend(user="u9", clicks=[("i1", 10_000)])
    assert scored(joined) != scored(model.recommend(user="u9", exclude=["i1"]))


def test_only_what_is_earlier_is_history(model):
    clicks, searches = events(model, "u9")
    at = clicks[2][1]
    early = model.recommend(clicks=clicks[:2], searches=[s for s in searches if s[2] < at])
    answer = model.recommend(clicks=clicks, searches=searches, at=at)
    assert scored(answer) == scored(early)
    later = sum(time >= at for *_, time in [*clicks, *searches])
    assert answer.skipped_events == later > 0


def test_what_is_unknown_is_skipped_and_counted(model):
    plain = model.recommend(clicks=["i1"], searches=[("red", ["i2"])], user="u9")
    odd = model.recommend(
        clicks=["nothing", "i1"],
        searches=[("red zebra", ["i2", "none"]), ("zebra lion", [])],
        user="u9",
    )
    assert scored(odd) == scored(plain)
    assert (odd.skipped_items, odd.skipped_words) == (2, 3)
    stranger = model.recommend(user="nobody", clicks=["i1"])
    assert not stranger.known_user
    assert stranger == model.recommend(clicks=["i1"])


def test_someone_without_any_event_gets_an_answer(model):
    answer = model.recommend(k=3)
    assert len(answer.items) == 3
    assert all(np.isfinite(item.score) for item in answer.items)


def test_seen_candidates_and_exclude(model):
    clicks, searches = events(model, "u9")
    touched = {item for item, _ in clicks} | {item for _, names, _ in searches for item in names}
    every = model.recommend(user="u9", k=model.catalogue_size)
    assert set(ids(every)).isdisjoint(touched)
    assert len(every.items) == model.catalogue_size - len(touched)
    kept = model.recommend(user="u9", k=model.catalogue_size, keep_seen=True)
    assert len(kept.items) == model.catalogue_size
    first, second, third = ids(every)[:3]
    few = model.recommend(user="u9", candidates=[third, first, "nothing"], exclude=["none"])
    assert ids(few) == [first, third] and few.skipped_items == 1
    assert ids(model.recommend(user="u9", k=1, exclude=[first])) == [second]


def test_titles_and_probabilities(model):
    item = model.recommend(user="u9", k=1).items[0]
    assert item.title == f"pot {item.item[1:]}" == model.titles[item.item]
    assert item.probability == pytest.approx(1 / (1 + np.exp(-item.score)), abs=1e-6)
    assert len(model.titles) == model.catalogue_size == ITEMS


def test_a_second_user_compiles_nothing(model):
    for size in (1, 8, 64):  # every shape once
        model.recommend_many([Request(user="u2")] * size)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "compile" in name else None
    )
    jax.jit(lambda x: x + 1)(np.zeros(77))
    assert compiled, "the listener hears of compilations"
    compiled.clear()
    for count in (1, 5, 20, 70):
        users = [Request(user=f"u{n % 30}", k=1 + n % 9, exclude=("i3",)) for n in range(count)]
        model.recommend_many(users)
    model.recommend(clicks=["i1"] * 50, searches=["red tea pot map"] * 9, reasoning_steps=1)
    assert compiled == []


def test_one_bad_request_fails_alone(model):
    good, bad = Request(user="u9"), Request(user="u9", k=ITEMS + 1)
    answers = model.recommend_many([good, bad, good])
    assert answers[0] == answers[2] == model.recommend(user="u9")
    assert isinstance(answers[1], UserError)
    assert "expected k of at most 60" in str(answers[1])
    assert model.recommend_many([]) == []


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ({"query": "red"}, "found one to search"),
        ({"reasoning_steps": 3}, "expected reasoning_steps of 0 to 2"),
        ({"k": 0}, "expected k as a whole number from 1"),
        ({"clicks": [("i1", float("nan"))]}, "the time of click 1"),
    ],
)
def test_what_cannot_be_answered_says_so(model, question, reason):
    with pytest.raises(UserError, match=reason):
        model.recommend(**question)


def test_because_is_what_asking_without_an_event_gives(model):
    clicks, searches = ["i1", "i2", "i3"], [("red", ["i4"]), ("tea map", [])]
    answer = model.recommend(clicks=clicks, searches=searches, k=4, because=True)
    plain = model.recommend(clicks=clicks, searches=searches, k=4)
    assert scored(answer) == scored(plain)
    everything = {"k": ITEMS, "keep_seen": True, "exclude": ["i1", "i2", "i3", "i4"]}
    for place, item in enumerate(answer.items):
        moved = item.because.moved
        assert len(moved) == 5
        changes = [abs(one.score) for one in moved]
        assert changes == sorted(changes, reverse=True) and changes[0] > 0
        one = next(m for m in moved if m.kind == "click" and m.given == 1)
        assert one.item == "i2"
        less = model.recommend(clicks=["i1", "i3"], searches=searches, **everything)
        assert item.score - one.score == pytest.approx(dict(scored(less))[item.item], abs=3e-6)
        assert place + 1 + one.rank == ids(less).index(item.item) + 1
        one = next(m for m in moved if m.kind == "search" and m.given == 1)
        assert (one.query, one.clicked) == ("tea map", ())
        less = model.recommend(clicks=clicks, searches=searches[:1], **everything)
        assert item.score - one.score == pytest.approx(dict(scored(less))[item.item], abs=3e-6)


def test_ranks_by_step_are_those_of_asking_with_each(model):
    question = {"user": "u9", "k": 5}
    answer = model.recommend(**question, because=True)
    for steps in range(3):
        ranked = ids(model.recommend(user="u9", k=ITEMS - 1, reasoning_steps=steps))
        for item in answer.items:
            assert item.because.rank_by_step[steps] == ranked.index(item.item) + 1
    assert [item.because.rank_by_step[2] for item in answer.items] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("method", [popularity, item_knn])
def test_fitted_baselines_answer_from_what_they_keep(method, tmp_path):
    keys = {"eval.protocols": ("full",), "eval.metrics": ("ndcg@5",), "data.kept_events": 0}
    config = method.method()
    run = run_of(config, tmp_path, keys)
    model = Recommender.load(run)
    answer = model.recommend(clicks=["i1", "i2"], k=5)
    assert len(answer.items) == 5 and answer.items[0].probability is None
    # No event of the log is there.
    assert model.recommend(user="u9", k=ITEMS).known_user
    assert len(model.recommend(user="u9", k=ITEMS).items) == ITEMS
    shutil.rmtree(f"{run}/serving")
    with pytest.raises(UserError, match="expected"):
        Recommender.load(run)


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    return Untrained(unisar.method(), tmp_path_factory.mktemp("unisar"), UNISAR)


def test_a_joint_ranker_answers_searches(joint):
    model = Recommender(joint)
    assert model.tasks == ("recommend", "search")
    red, tea = model.search("red", user="u9", k=5), model.search("tea", user="u9", k=5)
    assert scored(red) != scored(tea) != scored(model.recommend(user="u9", k=5))
    same = model.search("red zebra", user="u9", k=5)
    assert scored(same) == scored(red) and same.skipped_words == 1
    # The scores are those of the search task for these very candidates.
    answers = model._answers
    known = [answers.reader.words("red")[1]]
    batch = answers.batch([answers.reader.read(Request(user="u9"))], known)
    batch["candidates"] = np.array([[answers.reader.items[i.item] for i in red.items]], np.int32)
    ranker = joint.experiment.ranker

    @jax.jit
    def scores(params, tables, batch):
        rows = look_up(tables, batch)
        return ranker.search(params, ranker.represent(params, batch, rows), batch, rows)

    expected = scores(joint.params, joint.tables, batch)[0]
    np.testing.assert_allclose([i.score for i in red.items], expected, atol=1e-5)
    # Questions of both kinds are answered in their order.
    requests = [Request(user="u9", query="red", k=5), Request(user="u9", k=5)]
    both = model.recommend_many([*requests, Request(query="zebra")])
    assert scored(both[0]) == scored(red)
    assert scored(both[1]) == scored(model.recommend(user="u9", k=5))
    assert "a word of the training queries, found 'zebra'" in str(both[2])


def exported_as_it_is(restored, folder):
    """Opens an export whose answers to searches and histories are those of its run."""
    restored.stage, restored.step = "train", 0
    manifest = export_run(restored, str(folder / "E"))
    model, run = Recommender.load(str(folder / "E")), Recommender(restored)
    assert manifest["tasks"] == list(model.tasks) == list(run.tasks)
    history = {"clicks": ["i1", "i7", "nothing"], "searches": [("tea pot", ["i4"])]}
    asked = [
        Request(query="red", k=9),
        parse(history | {"k": 9}),
        parse(history | {"query": "tea red zebra", "k": 9}),
    ]
    for answer, other in zip(model.recommend_many(asked), run.recommend_many(asked), strict=True):
        assert ids(answer) == ids(other)
        scores = [item.score for item in other.items]
        assert [item.score for item in answer.items] == pytest.approx(scores, abs=1e-5)
        assert (answer.skipped_items, answer.skipped_words) == (
            other.skipped_items,
            other.skipped_words,
        )
    assert scored(model.search("tea", k=9)) != scored(model.search("red", k=9))
    return model


@pytest.mark.parametrize("method", [jsr, unified_ssr, user_config])
def test_what_reads_the_query_with_the_history_reads_it_in_an_export(method, tmp_path):
    values = {name: UNISAR[name] for name in UNISAR if not name.startswith("model.")}
    width = {"model.width": 8, "model.init_scale": 1.0}
    exported_as_it_is(Untrained(method.method(), tmp_path, values | width), tmp_path)


def test_an_export_of_a_joint_ranker_searches(joint, tmp_path):
    model = exported_as_it_is(joint, tmp_path)
    with pytest.raises(UserError, match="a word of the training queries, found 'zebra'"):
        model.search("zebra")
    with pytest.raises(UserError, match="expected because of recommendations, found a query"):
        model.search("red", because=True)


def test_a_joint_rankers_searches_are_evaluated_as_the_floors_are(joint):
    assert columns(joint, "search", ["full", "catalogue"]) == ["search/full", "search/catalogue"]
    sums = joint.experiment.evaluate(joint.params, joint.tables, "test", "search/full")
    details = joint.experiment.details("test", "search/full")
    assert details["more"]["task"] == "search"
    # By hand: each target's rank among what the recommender finds for its search.
    model = Recommender(joint)
    examples, log = joint.data.examples("search", "test"), joint.data.log
    gains = []
    for user, search, item in zip(examples.user, examples.target_row, examples.item, strict=True):
        question = {"user": log.user_ids[user], "at": int(log.search_times[search])}
        query = " ".join(log.query(search))
        answer = model.search(query, **question, k=ITEMS, keep_seen=True)
        seen = set(model._answers.reader.read(Request(**question)).touched.tolist())
        ranked = [model._answers.reader.items[i] for i in ids(answer)]
        rank = [i for i in ranked if i == item or i not in seen].index(item)
        gains.append(1 / np.log2(2 + rank) if rank < 5 else 0.0)
    assert len(gains) == len(details["users"]) > 5
    assert sums.means()["ndcg@5"] == pytest.approx(np.mean(gains), abs=1e-6)


def test_a_ranker_of_recommendation_has_no_search_task(run):
    with pytest.raises(UserError, match="trained on searches answer them"):
        columns(run, "search", ["full"])


@pytest.mark.slow
def test_a_trained_run_is_loaded_by_its_folder_alone(tmp_path):
    folder = run_of(lcr_ser.method(), tmp_path, SMALL)
    model = Recommender.load(folder)
    restored = Restored(folder, devices=1, kept=True)
    expected = predicted(restored, ["u9", "u2"])
    assert {user: scored(model.recommend(user=user, k=5)) for user in expected} == expected
    # With the latest events alone, those are what is known of a user.
    shutil.rmtree(f"{folder}/serving")
    kept_data.keep(restored.data, folder, 1)
    less = Recommender.load(folder)
    clicks, searches = events(model, "u9")
    answer = less.recommend(user="u9", k=ITEMS)
    touched = {clicks[-1][0], *searches[-1][1]}
    assert len(answer.items) == ITEMS - len(touched)
