"""CRS on Qilin's files: contexts with the user's profile and the notes that were not clicked."""

import json
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import crs_sample
from core.errors import UserError
from crs_jax import user_contexts
from experiments.methods import open_experiment
from experiments.resolve import resolve
from input_pipelines import search_protocol
from input_pipelines.dataset import Dataset
from input_pipelines.log import RawEvents, build_log
from input_pipelines.sample.generator import write_sample

USERS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The sample's files, with a table of users."""
    path = tmp_path_factory.mktemp("qilin") / "raw"
    write_sample(str(path), num_users=USERS, seed=0)
    rows = {
        "user_idx": list(range(USERS)),
        "gender": ["female", "male"] * (USERS // 2),
        "platform": ["iOS"] * USERS,
        "age": ["unknown"] * USERS,
        "location": [None] * USERS,
    }
    (path / "user_feat").mkdir()
    pq.write_table(pa.table(rows), path / "user_feat" / "0.parquet")
    return str(path)


def opened(folder, cache, **changes):
    config = crs_sample.get_config()
    config.data_dir, config.cache_dir = folder, str(cache)
    config.update_from_flattened_dict(
        {
            "data.history": 4,
            "semantic_ids.codes": (4, 4, 4),
            "vocabulary.size": 600,
            "model.size": "tiny",
            "eval.search_protocols": ("catalogue", "impressions"),
            **changes,
        }
    )
    config = resolve(config)
    return open_experiment(config, Dataset(config))


def asked(experiment, row):
    """(the JSON of a test search's prompt, its search)."""
    examples, held_out = experiment.examples, experiment.held_out("test")
    tokens = examples.prompts(held_out, reason=True)[row]
    text = examples.vocabulary.decode(tokens).split("\n")[2].removesuffix("<|im_end|>")
    return json.loads(text), int(held_out.target_row[row])


def test_contexts_have_profiles_and_what_was_not_clicked(folder, tmp_path):
    experiment = opened(folder, tmp_path)
    log, held_out = experiment.data.log, experiment.held_out("test")
    told = 0
    for row in range(len(held_out)):
        context, search = asked(experiment, row)
        user = int(held_out.user[row])
        number = int(log.user_ids[user])
        gender = ("female", "male")[number % 2]
        assert context["user"] == {"gender": gender, "platform": "iOS"}
        earlier = range(int(log.search_offsets[user]), search)
        shown = {tuple(map(experiment.examples.name, log.unclicked(s))) for s in earlier}
        for event in context["history"]:
            told += "unclicked" in event
            assert "unclicked" not in event or tuple(event["unclicked"]) in shown
    assert told
    # What the asked search has shown can be ranked.
    lists = search_protocol.impressions(log, held_out)
    assert (lists[:, 0] == held_out.item).all() and (lists[:, 1:] > 0).any()


def test_a_query_has_the_hour_at_which_it_was_asked(folder, tmp_path):
    experiment = opened(folder, tmp_path)
    examples, log, held_out = experiment.examples, experiment.data.log, experiment.held_out("test")
    for row in range(len(held_out)):
        context, search = asked(experiment, row)
        # As long after 1970 as it was, or less than an hour before; never after.
        told = np.datetime64(context["time"].removesuffix("h").replace(" ", "T"), "ms")
        assert 0 <= log.asked_at(search) - told.astype(np.int64) < 3_600_000
    user = str(log.user_ids[held_out.user[0]])
    assert examples.asked(user)[1].time and examples.asked(f"{user}\ttent")[1].time is None
    # As an order alone they are no hours.
    for changes in ({"data.times": "none"}, {"data.query_time": False}):
        other = opened(folder, tmp_path, **changes).examples
        assert other.context_of(held_out, 0).time is None


def test_times_that_are_positions_are_no_hours():
    assert user_contexts.hour(1_730_645_999_999) == "2024-11-03 14h"
    settings = crs_sample.get_config().data
    for first, told in ((1_730_000_000_000, "2024-10-27 03h"), (0, None)):
        events = RawEvents(
            click_user=["u"],
            click_item=["a"],
            click_time=[first],
            search_user=["u"],
            search_time=[first + 60_000],
            search_words=[["x"]],
            search_clicks=[["a"]],
            time_unit="milliseconds",
        )
        data = types.SimpleNamespace(log=build_log("toy", events), dataset="csv_log")
        assert user_contexts.UserContexts(settings, data, str).time(first) == told


@pytest.mark.parametrize(
    ("unit", "step", "ages"),
    [
        ("seconds", 3600, ["3h", "2h"]),
        ("milliseconds", 3_600_000, ["3h", "2h"]),
        ("microseconds", 3_600_000_000, ["3h", "2h"]),
        ("positions", 1, [None, None]),
    ],
)
def test_ages_and_hours_are_counted_in_the_unit_of_the_log(unit, step, ages):
    start = 0 if unit == "positions" else step // 3600 * 1_730_000_000
    events = RawEvents(
        click_user=["u", "u"],
        click_item=["a", "b"],
        click_time=[start, start + step],
        search_user=["u"],
        search_time=[start + 3 * step],
        search_words=[["x"]],
        search_clicks=[["a"]],
        time_unit=unit,
    )
    settings = crs_sample.get_config().data
    data = types.SimpleNamespace(log=build_log("toy", events), dataset="csv_log")
    contexts = user_contexts.UserContexts(settings, data, str)
    context = contexts.context(1, 2, 0, "x", start + 3 * step, None)
    assert [event.time for event in context.events] == ages
    assert context.time == (None if unit == "positions" else "2024-10-27 06h")


def test_queries_from_outside_are_written_as_the_logs_own(folder, tmp_path):
    experiment = opened(folder, tmp_path)
    examples, log = experiment.examples, experiment.data.log
    user = str(log.user_ids[1])
    assert examples.asked(f"{user}\tＴent  KIT, 签 证!")[1].query == "tent kit 签证"
    with pytest.raises(UserError, match=r"a query of user .*, found no word in '!\?'; write"):
        examples.asked(f"{user}\t!?")
    train = examples.train
    rows = {
        "user": str(log.user_ids[train.user[0]]),
        "query": examples.query(int(train.target_row[0])).upper() + "!",
        "item": str(log.item_ids[train.item[0]]),
        "reasoning": "something to use",
    }
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(rows) + "\n")
    told = opened(folder, tmp_path, **{"distill.traces": str(path)}).examples.distillation()
    assert len(told) == 1


def test_both_can_be_left_out(folder, tmp_path):
    experiment = opened(folder, tmp_path, **{"data.profiles": False, "data.unclicked": 0})
    context, _ = asked(experiment, 0)
    assert context["history"] and "user" not in context
    assert not [event for event in context["history"] if "unclicked" in event]
