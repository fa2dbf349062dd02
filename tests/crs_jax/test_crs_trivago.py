"""CRS on sessions in trivago's format: what its contexts tell, and what is ranked."""

import json
import types

import numpy as np
import pandas as pd
import pytest

from configs import crs_trivago_100k, matching
from experiments.methods import open_experiment
from experiments.resolve import resolve
from input_pipelines.dataset import Dataset

CITIES = ["Rome, Italy", "Paris, France"]
USERS, HOTELS, SHOWN = 30, 40, 8
SMALL = {
    "semantic_ids.codes": (4, 4, 4),
    "vocabulary.size": 330,
    "prompts.max_prompt": 900,
    "prompts.max_reasoning": 8,
    "prompts.max_answer": 40,
    "model.size": "tiny",
    "model.dtype": "float32",
    "model.remat": False,
    "sft.row_length": 1000,
    "evolve.iterations": 1,
    "eval.batch_size": 4,
}


def row(user, time, kind, reference, city, shown=()):
    return {
        "user_id": f"u{user}",
        "session_id": f"s{user}",
        "timestamp": time,
        "step": time,
        "action_type": kind,
        "reference": str(reference),
        "city": city,
        "impressions": "|".join(map(str, shown)) or None,
        "prices": "|".join("70" for _ in shown) or None,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everyone clicks at 100, types a city at 4000, clicks at 4060 and 4090."""
    folder = tmp_path_factory.mktemp("trivago")
    rng, rows = np.random.default_rng(0), []
    for user in range(USERS):
        city = CITIES[user % 2]
        pages = [rng.permutation(HOTELS)[:SHOWN] for _ in range(3)]
        rows += [
            row(user, 100, "clickout item", pages[0][3], city, pages[0]),
            row(user, 4000, "search for destination", city, city),
            row(user, 4060, "clickout item", pages[1][2], city, pages[1]),
            row(user, 4090, "clickout item", pages[2][0], city, pages[2]),
        ]
    pd.DataFrame(rows).to_parquet(folder / "a.parquet")
    return str(folder)


def opened(folder, cache, config=None, **changes):
    config = config or crs_trivago_100k.get_config()
    config.data_dir, config.cache_dir = folder, str(cache)
    config.update_from_flattened_dict(changes)
    config = resolve(config)
    return open_experiment(config, Dataset(config))


def told(experiment, tokens):
    text = experiment.examples.vocabulary.decode(tokens).split("\n")[2]
    return json.loads(text.removesuffix("<|im_end|>"))


def test_a_context_tells_what_was_not_clicked_and_where(folder, tmp_path):
    experiment = opened(folder, tmp_path, **SMALL, **{"data.unclicked": 2})
    examples, log = experiment.examples, experiment.data.log
    held_out = experiment.held_out("test")
    assert len(held_out) == 3  # the last search of each of a tenth of the users
    tokens = examples.prompts(held_out, reason=True)[0]
    context = told(experiment, tokens)
    user, search = int(held_out.user[0]), int(held_out.target_row[0])
    first = int(log.search_offsets[user])
    assert search == first + 3
    names = [[examples.name(int(i)) for i in log.unclicked(first + s)] for s in range(4)]
    clicked = [examples.name(int(log.rec_items[log.rec_offsets[user] + n])) for n in range(3)]
    city = log.place(search)
    words = city.lower().replace(",", "")
    # Ages count from 4090: 3990 s are an hour and a bit, 90 and 30 s a minute and none.
    assert context == {
        "history": [
            {"time": "1h", "place": city, "clicked": [clicked[0]], "unclicked": names[0][:2]},
            {"time": "1m", "place": city, "query": words},
            {
                "time": "0m",
                "place": city,
                "query": words,
                "clicked": [clicked[1]],
                "unclicked": names[2][:2],
            },
        ],
        "query": words,
        "place": city,
    }
    # The answer's page is not told.
    assert [len(part) for part in names] == [SHOWN - 1, 0, SHOWN - 1, SHOWN - 1]
    assert clicked[2] not in str(context["history"])


def test_none_of_it_is_told_with_a_bound_of_zero_and_oldest_events_go_first(folder, tmp_path):
    experiment = opened(folder, tmp_path, **SMALL, **{"data.unclicked": 0})
    examples, held_out = experiment.examples, experiment.held_out("test")
    context = told(experiment, examples.prompts(held_out, reason=True)[0])
    assert not [event for event in context["history"] if "unclicked" in event]
    whole = opened(folder, tmp_path, **SMALL).examples
    tokens = whole.prompts(held_out, reason=True)[0]
    shorter = opened(folder, tmp_path, **SMALL | {"prompts.max_prompt": len(tokens) - 1}).examples
    cut = told(experiment, shorter.prompts(held_out, reason=True)[0])
    assert cut["history"] == told(experiment, tokens)["history"][1:]


def test_a_users_latest_query_is_asked_where_it_was_made(folder, tmp_path):
    examples = opened(folder, tmp_path, **SMALL).examples
    _, context = examples.asked("u1")
    assert (context.query, context.place) == ("paris france", CITIES[1])
    assert examples.asked("u1\thotel")[1].place is None


def test_a_latest_query_is_asked_without_what_it_led_to(folder, tmp_path):
    experiment = opened(folder, tmp_path, **SMALL)
    examples, log = experiment.examples, experiment.data.log
    held_out = experiment.held_out("test")
    latest = {}
    for row, (user, search) in enumerate(
        zip(held_out.user.tolist(), held_out.target_row.tolist(), strict=True)
    ):
        if search == int(log.search_offsets[user + 1]) - 1:
            latest[str(log.user_ids[user])] = row
    assert latest
    for name, row in latest.items():
        assert examples.asked(name) == (name, examples.context_of(held_out, row))
        # The click is known once the user asks something else.
        assert len(examples.asked(f"{name}\thotel")[1].events) > len(examples.asked(name)[1].events)


def test_a_run_blind_to_searches_reads_none(folder, tmp_path):
    seen = opened(folder, tmp_path, **SMALL).examples.asked("u1\thotel")[1]
    blind = opened(folder, tmp_path, **SMALL, **{"data.use_search": False})
    context = blind.examples.asked("u1\thotel")[1]
    assert any(event.query for event in seen.events)
    assert context.events and not any(event.query for event in context.events)


def test_the_shown_hotels_are_ranked(folder, tmp_path):
    experiment = opened(folder, tmp_path, **SMALL)
    examples, log, held_out = experiment.examples, experiment.data.log, experiment.held_out("test")
    asked = []

    def scores(params, prompts, lengths, answers, *, reason):
        asked.append((prompts, lengths, answers, reason))
        # The target first, then second, then behind five others.
        found = np.zeros(answers.shape[:2])
        found[1, 1] = found[2, 1:6] = 1.0
        found[:, 0] = 0.5
        return found

    experiment.inference = types.SimpleNamespace(scores=scores)
    sums = experiment.evaluate(None, experiment.tables("align"), "test", "search/impressions")
    assert sums.per_example()["hr@1"].tolist() == [1, 0, 0]
    assert sums.per_example()["hr@5"].tolist() == [1, 1, 0]
    ((prompts, lengths, answers, reason),) = asked
    assert not reason and answers.shape == (3, SHOWN, 4)
    for row, (search, item) in enumerate(
        zip(held_out.target_row.tolist(), held_out.item.tolist(), strict=True)
    ):
        expected = examples.item_tokens[[item, *log.unclicked(search).tolist()]]
        np.testing.assert_array_equal(answers[row], expected)
        tokens = examples.prompts(held_out, reason=False)[row]
        assert prompts[row, : lengths[row]].tolist() == tokens
    users = experiment.details("test", "search/impressions")["users"]
    assert users.tolist() == held_out.user.tolist()


def test_matching_baselines_rank_them_too(folder, tmp_path):
    experiment = opened(folder, tmp_path, matching.get_config("bm25,trivago"))
    assert experiment.columns("search", "impressions") == ("search/impressions",)
    means = experiment.evaluate(None, None, "test", "search/impressions").means()
    # The hotels of a page are of both cities, as the random pages are.
    assert 0 < means["hr@5"] <= 1
    assert experiment.details("test", "search/impressions")["users"].shape == (3,)
