"""What CRS distils from templates and from a file of traces: matched, kept, refused."""

import json

import pytest
from test_crs import config_of, opened, write_beauty

from core.errors import UserError
from core.partitioning import make_mesh
from crs_jax import distillation
from crs_jax.subsets import Subsets
from experiments.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_beauty(tmp_path_factory.mktemp("crs") / "beauty")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_distilled_traces_come_from_a_file_by_name(folder, cache, tmp_path):
    experiment = opened(folder, cache)
    log, train_examples = experiment.data.log, experiment.examples.train
    rows = []
    for row in (3, 5):
        item = int(train_examples.item[row])
        rows.append(
            {
                "user": str(log.user_ids[train_examples.user[row]]),
                "query": experiment.examples.query(int(train_examples.target_row[row])),
                "item": str(log.item_ids[item]),
                "reasoning": "the user wants things",
            }
        )
    rows.append(
        rows[0] | {"reasoning": f"surely {experiment.examples.texts[int(train_examples.item[3])]}"}
    )
    # Ids, those of no item too, are no words of a student.
    rows += [rows[0] | {"reasoning": f"it is <{level}_{9**9}>"} for level in "az"]
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = opened(folder, cache, **{"distill.traces": str(path)}).examples.distillation()
    # The third tells its target's title.
    assert [row for row, _ in told] == [3, 5]
    assert experiment.examples.vocabulary.decode(told[0][1]) == "the user wants things"
    path.write_text(json.dumps(rows[2]) + "\n")
    with pytest.raises(UserError, match="expected traces that do not tell the target"):
        opened(folder, cache, **{"distill.traces": str(path)}).examples.distillation()
    path.write_text(json.dumps(rows[0] | {"item": "999"}) + "\n")
    with pytest.raises(UserError, match="item '999', which is none"):
        opened(folder, cache, **{"distill.traces": str(path)}).examples.distillation()


def test_traces_that_come_with_data_may_tell_of_held_out_users(cache, tmp_path):
    folder = write_beauty(tmp_path / "beauty")
    larger = {"vocabulary.size": 1000}
    given = {"distill.from_data": True, **larger}
    with pytest.raises(UserError, match=r"traces\.jsonl.*config\.distill\.from_data=False"):
        opened(folder, cache, **given).examples.distillation()
    experiment = opened(folder, cache, **larger)
    log, rows = experiment.data.log, []
    for examples in (experiment.held_out("test"), experiment.examples.train):
        rows.append(
            {
                "user": str(log.user_ids[examples.user[0]]),
                "query": experiment.examples.query(int(examples.target_row[0])),
                "item": str(log.item_ids[int(examples.item[0])]),
                "reasoning": "zyzzyva zyzzyva",
            }
        )
    path = tmp_path / "beauty" / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = opened(folder, cache, **given).examples
    assert [row for row, _ in examples.distillation()] == [0]
    # A tokenizer of the run's own is trained on the teacher's words too.
    assert len(examples.vocabulary.encode(" zyzzyva")) < len(
        experiment.examples.vocabulary.encode(" zyzzyva")
    )
    with pytest.raises(UserError, match="found both; leave the latter empty"):
        opened(folder, cache, **given, **{"distill.traces": str(path)})
    path.write_text("")
    with pytest.raises(UserError, match="expected traces that do not tell the target"):
        opened(folder, cache, **given).examples.distillation()


@pytest.mark.parametrize("source", ["templates", "traces"])
def test_what_is_distilled_is_kept_with_its_hash(folder, cache, tmp_path, source):
    path = tmp_path / "traces.jsonl"
    experiment = opened(folder, cache)
    examples, log = experiment.examples, experiment.data.log
    if source == "traces":
        names = log.user_ids[examples.train.user[3]], log.item_ids[examples.train.item[3]]
        query = examples.query(int(examples.train.target_row[3]))
        trace = {"user": str(names[0]), "query": query, "item": str(names[1])}
        path.write_text(json.dumps(trace | {"reasoning": "the user wants things"}))
        experiment.config.distill.traces = str(path)
    subsets = Subsets(str(tmp_path / "subsets"), examples.vocabulary.decode)

    def distilled(examples):
        return distillation.distilled(
            experiment.config, examples, subsets, "sft_0", make_mesh(1, 1), load=None
        )

    first = distilled(examples)
    assert [(case.example, case.reasoning) for case in first] == examples.distillation()
    about = json.loads((tmp_path / "subsets" / "sft_0.json").read_text())
    assert about["rows"] == len(first) and len(about["sha256"]) == 64
    # A run that goes on trains on what it began with, whatever its source says now.
    path.write_text("")
    assert distilled(None) == first


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"user": "1"}\n', r"reasoning as text in line 1 of .*, found"),
        ("\n\n{", "in line 3 of"),
        ("", "found none among 0"),
        (json.dumps(dict.fromkeys(("user", "query", "item", "reasoning"), "x")), "which is none"),
    ],
)
def test_traces_that_cannot_be_distilled_are_refused_before_the_workdir(
    folder, cache, tmp_path, text, message
):
    path = tmp_path / "traces.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        train(config_of(folder, cache, **{"distill.traces": str(path)}), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_traces_of_examples_that_are_left_out_are_counted(folder, cache, tmp_path, caplog):
    every = opened(folder, cache).examples
    log, lines = opened(folder, cache).data.log, []
    for row in range(len(every.train)):
        key = {
            "user": str(log.user_ids[every.train.user[row]]),
            "query": every.query(int(every.train.target_row[row])),
            "item": str(log.item_ids[every.train.item[row]]),
        }
        lines.append(json.dumps(key | {"reasoning": "the user wants things"}) + "\n")
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(lines))
    changes = {"distill.traces": str(path), "data.train_examples": 20}
    caplog.set_level("INFO")
    told = opened(folder, cache, **changes).examples.distillation()
    assert sorted(row for row, _ in told) == list(range(20))
    left_out = len(every.train) - 20
    assert f"traces: {left_out} of {len(every.train)} are of examples that config" in caplog.text
    path.write_text(lines[0].replace('"user": "', '"user": "x'))
    with pytest.raises(UserError, match="which is none; drop that trace"):
        opened(folder, cache, **changes).examples.distillation()
