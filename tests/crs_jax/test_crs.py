"""CRS from configs on a made-up catalogue: whole cycles, what is refused, predictions."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jobs
import made_results
import numpy as np
import pytest

from configs import crs_amazon_beauty
from core import checksums
from core.checkpoints import Checkpoints
from core.errors import Preempted, UserError
from core.termination import watched
from core.workdir import Workdir
from crs_jax import recorded_inputs
from crs_jax.contexts import UserContext
from crs_jax.examples import fitted_prompts
from crs_jax.subsets import Case, Subsets, collected
from experiments.evaluate import evaluate
from experiments.methods import open_experiment
from experiments.predict import predict
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.train import train
from input_pipelines.dataset import Dataset
from serving.recommender import Recommender

ROOT = pathlib.Path(__file__).parent.parent.parent
USERS, ITEMS, QUERIES = 40, 60, 6
COLOURS = ["red", "blue", "green", "black", "white"]
SMALL = {
    "data.split": "by_user",
    "semantic_ids.codes": (4, 4, 4),
    "vocabulary.size": 330,
    "prompts.max_prompt": 200,
    "prompts.max_reasoning": 24,
    "prompts.max_answer": 40,
    "model.size": "tiny",
    "model.dtype": "float32",
    "model.remat": False,
    "sft.batch_size": 32,
    "sft.row_length": 240,
    "align.epochs": 2.0,
    "align.learning_rate": 5e-3,
    "distill.epochs": 4.0,
    "distill.learning_rate": 5e-3,
    "rl.steps": 2,
    "rl.batch_size": 4,
    "rl.trajectories": 3,
    "rl.answers": 4,
    "rl.length_limit": 24,
    "evolve.iterations": 1,
    "evolve.corpus": 60,
    "evolve.rl_sample": 8,
    "eval.batch_size": 32,
    "evolve.sft_only": False,
    "loop.checkpoint_every": 1,
}


def write_beauty(folder):
    """Items of one query each; a query names the kind, the titles kind and colour."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    with open(folder / "items.jsonl", "w") as file:
        for item in range(ITEMS):
            title = f"kind{item % QUERIES} {COLOURS[item // QUERIES % 5]} no{item}"
            record = {"item": item, "query_ids": [item % QUERIES], "title": title}
            file.write(json.dumps(record) + "\n")
    queries = [f"{q}\tkind{q} things" for q in range(QUERIES)]
    (folder / "queries.tsv").write_text("\n".join(queries) + "\n")
    with open(folder / "sequences.tsv", "w") as file:
        for user in range(USERS):
            bought = rng.permutation(ITEMS)[:6]
            file.write(f"{user}\t{' '.join(map(str, bought))}\n")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_beauty(tmp_path_factory.mktemp("crs") / "beauty")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def config_of(folder, cache, **changes):
    config = crs_amazon_beauty.get_config()
    config.data_dir, config.cache_dir = folder, str(cache)
    for key, value in {**SMALL, **changes}.items():
        *sections, name = key.split(".")
        section = config
        for part in sections:
            section = section[part]
        section[name] = value
    return resolve(config)


def opened(folder, cache, **changes):
    config = config_of(folder, cache, **changes)
    return open_experiment(config, Dataset(config))


def test_prompts_hold_no_target_and_nothing_after_it(folder, cache):
    experiment = opened(folder, cache, **{"prompts.max_prompt": 600, "sft.row_length": 700})
    examples, words = experiment.examples, experiment.examples.vocabulary
    log = experiment.data.log
    held_out = experiment.held_out("test")
    assert len(held_out) == 4
    for row, tokens in enumerate(examples.prompts(held_out, reason=True)):
        context = json.loads(words.decode(tokens).split("\n")[2].removesuffix("<|im_end|>"))
        # Positions 0..4 are history, the two faces of each as one event; 5 is the target's.
        shown = [name for event in context["history"] for name in event["clicked"]]
        start = int(log.rec_offsets[held_out.user[row]])
        bought = [examples.name(int(i)) for i in log.rec_items[start : start + 6]]
        assert shown == bought[:5] and all("query" in event for event in context["history"])
        assert held_out.item[row] == log.rec_items[start + 5]
        assert tokens[-1] == words.think
    # A bound counts purchases; without their searches all of them stay, as clicks.
    short = opened(folder, cache, **{"data.history": 3}).examples
    blind = opened(folder, cache, **{"data.history": 3, "data.use_search": False}).examples
    for found in (short, blind):
        events = found.context_of(held_out, len(held_out) - 1).events
        assert [list(event.clicked) for event in events] == [[name] for name in bought[2:5]]
    # Sales are those of the 32 training users alone, a purchase and its search one.
    assert examples.sales.sum() == 32 * 6
    assert set(examples.train.user.tolist()).isdisjoint(held_out.user.tolist())


def test_an_items_context_has_title_brand_and_price_each_once(tmp_path):
    folder = pathlib.Path(write_beauty(tmp_path / "beauty"))
    records = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    records[3] |= {"brand": "Acme", "price": 3.5}
    (folder / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    experiment = opened(str(folder), tmp_path / "cache")
    examples, names = experiment.examples, experiment.data.log.item_ids.tolist()
    context = json.loads(examples.item_context(names.index("3")).to_json())
    sales = context.pop("sales")
    assert context == {"title": records[3]["title"], "price": "3.50", "brand": "Acme"} and sales > 0
    # What is embedded and searched is the text, as of every method.
    assert examples.texts[names.index("3")] == f"{records[3]['title']} Acme"


def test_alignment_cuts_the_item_and_neither_its_frame_nor_its_json(folder, cache):
    experiment = opened(folder, cache)
    examples, words = experiment.examples, experiment.examples.vocabulary
    examples.texts[1] = "kind1 red " * 80
    asked, answer = next(
        pair
        for pair in zip(*[iter(examples.alignment())] * 2, strict=False)
        if pair[0].answer[:4] == examples.item_tokens[1].tolist()
    )
    assert len(asked.prompt) <= 200 and len(answer.answer) <= 40
    text = words.decode(asked.prompt)
    assert text.startswith("<|im_start|>user\nWhich id has this item?\n{")
    assert json.loads(words.decode(answer.answer).removesuffix("<|im_end|>"))["sales"] > 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"eval.selection": "ndcg@5/neg99"}, "expected config.eval.selection of hr@1/search"),
        (
            {"data.times": "hours"},
            "config.data.times of log, none, found 'hours'",
        ),
        ({"data.unclicked": -1}, "config.data.unclicked of 0 or more, found -1"),
        ({"rl.accuracy_weights": (1.0, 1.0)}, "accuracy_weights for 3 levels, found 2"),
        ({"rl.algorithm": "ppo"}, "found 'ppo'"),
        ({"sft.row_length": 100}, "row_length of at least 240"),
        ({"model.size": "9b"}, "found '9b'"),
        ({"model.dtype": "int8"}, "config.model: expected dtype"),
        ({"mesh.data": 8}, r"config\.rl\.batch_size that is a multiple of .* 8 devices, found 4"),
        ({"mesh.data": 2, "eval.batch_size": 9}, r"expected config\.eval\.batch_size that is"),
        ({"semantic_ids.codes": (0, 4, 4)}, r"1 to 25 levels, found \(0, 4, 4\); pass"),
        ({"semantic_ids.codes": (-2, 4)}, r"1 to 25 levels, found \(-2, 4\)"),
        ({"semantic_ids.codes": ()}, r"1 to 25 levels, found \(\)"),
        ({"semantic_ids.codes": (2,) * 26}, "1 to 25 levels, found"),
        ({"semantic_ids.last_codes": -1}, r"semantic_ids\.last_codes of 0 or more, found -1"),
        ({"semantic_ids.codes": (400, 4, 4)}, "at least 400 different vectors"),
        ({"vocabulary.tokenizer": "/nowhere.json"}, "expected a tokenizer.json, found no"),
        ({"rl.temperature": -1.0}, "config.rl: expected max_tokens .* temperature of 0 or more"),
        ({"rl.steps": 0}, r"expected config\.rl\.steps above 0, found 0"),
        ({"align.epochs": 0.0}, r"expected config\.align\.epochs above 0, found 0"),
        ({"prompts.max_reasoning": 0}, r"config\.prompts\.max_reasoning above 0"),
    ],
)
def test_settings_that_do_not_fit(folder, cache, changes, message):
    with pytest.raises(UserError, match=message):
        opened(folder, cache, **changes)


def test_impressions_that_a_log_does_not_have_are_missed_before_training(folder, cache, tmp_path):
    config = config_of(folder, cache, **{"eval.search_protocols": ("catalogue", "impressions")})
    with pytest.raises(UserError, match="items shown and not clicked in the searches"):
        train(config, str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_long_queries_are_cut_and_counted(folder, cache, caplog):
    words = opened(folder, cache).examples.vocabulary
    users = [UserContext(query=query) for query in ("kind1", "kind1 things " * 900)]
    for reason in (False, True):
        prompts = fitted_prompts(users, words, limit=60, reason=reason)
        assert len(prompts[0]) < 60 and 50 < len(prompts[1]) <= 60
        assert "1 of 2 queries and profiles are longer" in caplog.text
        caplog.clear()
    assert fitted_prompts(users[:1], words, limit=60, reason=True) and not caplog.text


def test_a_limit_without_room_for_any_query_is_refused_before_training(folder, cache, tmp_path):
    config = config_of(folder, cache, **{"prompts.max_prompt": 12})
    with pytest.raises(UserError, match=r"history and texts; raise config\.prompts\.max_prompt"):
        train(config, str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


@pytest.fixture(scope="module")
def whole(folder, cache, tmp_path_factory):
    """A run that nothing has stopped."""
    workdir = tmp_path_factory.mktemp("whole") / "w"
    train(config_of(folder, cache), str(workdir))
    return workdir


@pytest.mark.slow
@pytest.mark.trains
def test_a_whole_cycle_its_results_and_predictions(whole):
    workdir = str(whole)
    results = json.loads((whole / "results.json").read_text())
    stages = [row["stage"] for row in results["rows"]]
    assert stages[:3] == ["align", "sft_0", "rl_0"]
    row = next(row for row in results["rows"] if row["stage"] == "rl_0")
    assert row["algorithm"] == "r_grpo" and row["examples"] == 4
    assert set(row["metrics"]) >= {"hr@10/search/catalogue", "ndcg@10/search/catalogue"}
    assert sum(group["examples"] for group in row["user_groups"]) == 4
    subsets = checksums.read_sealed(str(whole / "subsets" / "rl_0.json"), "a subset", "")
    assert subsets == row["subset"] and 0 < subsets["rows"] <= 8
    assert (whole / "curves.png").exists()
    # Opened again the stage gives what the run saved.
    restored = Restored(workdir, "rl_0")
    again = evaluate(restored, "test", restored.experiment.columns("search", "catalogue")[0])
    assert again["metrics"] == row["metrics"]
    rows = list(predict(restored, ["3", "7\tkind2 things"], 3))
    ranked = [(user, rank) for user in ("3", "7") for rank in (1, 2, 3)]
    assert [(row["user"], row["rank"]) for row in rows] == ranked
    assert rows[3]["query"] == "kind2 things" and isinstance(rows[0]["reasoning"], str)
    # The aligned model has not learnt to reason.
    (row,) = predict(Restored(workdir, "align"), ["3"], 1)
    assert row["reasoning"] == "" and any(r["reasoning"] for r in rows)
    names = set(restored.data.log.item_ids.tolist())
    assert all(r["item"] in names and r["id"].startswith("<a_") for r in rows)
    with pytest.raises(UserError, match="--task=search --protocol=catalogue or impressions"):
        restored.experiment.columns("recommendation", "neg99")
    with pytest.raises(UserError, match="found 'nobody'"):
        list(predict(restored, ["nobody"], 3))
    # A recommender answers users of the log as predict, and anyone else.
    model = Recommender(restored)
    assert model.tasks == ("search",)
    (expected,) = [[(r["item"], r["score"]) for r in predict(restored, ["7\tkind2 things"], 3)]]
    known = model.search("kind2 things", user="7", k=3, keep_seen=True)
    assert [(item.item, item.score) for item in known.items] == expected
    clicked = known.items[0].item
    stranger = model.search("kind2 things", clicks=[clicked], k=2)
    assert stranger.items and clicked not in {item.item for item in stranger.items}
    with pytest.raises(UserError, match="one to recommend"):
        model.recommend(user="7")


@pytest.mark.slow
@pytest.mark.trains
def test_a_mesh_trains_every_stage_and_one_device_reads_it(folder, cache, whole, tmp_path):
    workdir = str(tmp_path / "w")
    results = train(config_of(folder, cache, **{"mesh.data": 2, "mesh.model": 2}), workdir)
    rows = {row["stage"]: row for row in results["rows"]}
    assert set(rows) >= {"align", "sft_0", "rl_0"}
    alone = json.loads((whole / "results.json").read_text())["rows"]
    expected = next(row for row in alone if row["stage"] == "align")
    assert rows["align"]["metrics"] == pytest.approx(expected["metrics"], abs=1e-6)
    restored = Restored(workdir, "rl_0")
    kernel = restored.params["trained"]["layers/mlp/gate/kernel"]
    # [2, 64, 192] over 2 x 2.
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 32, 96)
    assert [row["rank"] for row in predict(restored, ["3"], 2)] == [1, 2]
    # The same workdir on one device: every stage is restored and none trains again.
    again = train(config_of(folder, cache), workdir)
    assert [row["step"] for row in again["rows"]] == [row["step"] for row in results["rows"]]
    experiment = opened(folder, cache)
    one = Restored(workdir, "rl_0")
    column = experiment.columns("search", "catalogue")[0]
    params, tables = jax.device_get((one.params, one.tables))
    means = experiment.evaluate(params, tables, "test", column).means()
    for name, value in means.items():
        assert rows["rl_0"]["metrics"][f"{name}/{column}"] == pytest.approx(value, abs=1e-6)


def start(folder, cache, workdir):
    flags = [f"--config.{k}={v}" for k, v in SMALL.items()]
    command = [sys.executable, "-m", "launch.train", "--config=configs/crs_amazon_beauty.py"]
    command += [f"--config.data_dir={folder}", f"--config.cache_dir={cache}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env=jobs.one_device(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_in(process, workdir, stage):
    """SIGKILL once a stage has a checkpoint."""
    folder = workdir / "checkpoints" / stage
    limit = time.monotonic() + 300
    while time.monotonic() < limit and process.poll() is None:
        if folder.is_dir() and any(name.name.isdigit() for name in folder.iterdir()):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.05)
    process.wait()
    return process.returncode


def contents(run):
    """The last state of each stage, the subsets' hashes, and the metrics of the rows."""
    restored = Restored(str(run))
    states = []
    for stage in ("align", "sft_0", "rl_0", "sft_1"):
        checkpoints = Checkpoints(str(run / "checkpoints" / stage))
        state, _, step = checkpoints.restore(restored.experiment.abstract_state(stage))
        checkpoints.close()
        states.append((step, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]))
    rows = json.loads((run / "results.json").read_text())["rows"]
    metrics = {row["stage"]: (row["step"], row["metrics"]) for row in rows}
    subsets = {path.name: path.read_text() for path in (run / "subsets").glob("*.json")}
    return states, metrics, subsets


@pytest.mark.slow
@pytest.mark.trains
def test_killed_in_its_rl_a_run_ends_in_the_same_bits(folder, cache, whole, tmp_path):
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    # What a run has before its RL: two stages, and no subset yet.
    for path in (killed / "checkpoints" / "rl_0", killed / "checkpoints" / "sft_1"):
        shutil.rmtree(path)
    shutil.rmtree(killed / "subsets")
    results = json.loads((killed / "results.json").read_text())
    results["rows"] = [row for row in results["rows"] if row["stage"] in ("align", "sft_0")]
    (killed / "results.json").write_text(json.dumps(results))
    code = kill_in(start(folder, cache, killed), killed, "rl_0")
    assert code == -signal.SIGKILL
    last = start(folder, cache, killed)
    output = last.communicate(timeout=400)[0]
    assert last.returncode == 0, output
    # Only what came after is trained again.
    assert "rl_0: continues from the checkpoint of step 1" in output, output
    assert contents(killed) == contents(whole)


def test_cases_are_collected_in_parts_that_a_stop_leaves(tmp_path):
    answered, subsets = [], Subsets(str(tmp_path / "s"), str)

    def cases_of(rows):
        answered.append(rows.tolist())
        os.kill(os.getpid(), signal.SIGTERM)
        return [Case(int(row), [], 0) for row in rows]

    cases = None
    for _ in range(3):  # each stop leaves one part more
        with contextlib.suppress(Preempted), watched():
            cases = collected(subsets, "rl_0", 100, cases_of, most=70, size=32)
    assert [len(rows) for rows in answered] == [32, 32, 6]
    assert [case.example for case in cases] == list(range(70))


@pytest.mark.parametrize("most", [0, -1, 100])
def test_all_of_the_corpus_is_answered_where_no_bound_is_set(tmp_path, most):
    def cases_of(rows):
        return [Case(int(row), [], 0) for row in rows]

    subsets = Subsets(str(tmp_path / "s"), str)
    assert len(collected(subsets, "rl_0", 40, cases_of, most=most, size=32)) == 40


def test_each_loop_says_why_it_has_ended(tmp_path):
    workdir = Workdir(str(tmp_path))
    for stage in ("sft_0", "rl_0", "sft_only_1"):
        workdir.write_result_row(made_results.row(stage=stage))
    recorded_inputs.note(workdir, {"rl_0": {"rows": 3}}, {"": "no cases", "sft_only_": None})
    rows = {row["stage"]: row for row in workdir.read_results()["rows"]}
    assert rows["rl_0"]["subset"] == {"rows": 3} and rows["sft_0"]["subset"] is None
    assert rows["rl_0"]["ended_early"] == "no cases" and rows["sft_only_1"]["ended_early"] is None
