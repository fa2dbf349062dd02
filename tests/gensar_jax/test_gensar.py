"""GenSAR from configs on a made-up catalogue: what trains, what is refused, and whole runs."""

import dataclasses
import functools
import gc
import glob
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from configs import gensar_amazon_beauty
from core import checksums
from core.checkpoints import Checkpoints
from core.errors import UserError
from core.mirrors import mirrored
from core.object_store import FOLDER_VARIABLE
from core.workdir import open_workdir
from experiments.evaluate import evaluate
from experiments.methods import open_experiment
from experiments.predict import predict
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.train import train
from gensar_jax.examples import GenSARExamples
from gensar_jax.identifiers import IdentifierTable, save_table
from gensar_jax.joint_task import token_losses
from gensar_jax.own_identifiers import own_identifiers, train_table
from gensar_jax.prompts import to_batch
from input_pipelines import prepare, segmenters
from input_pipelines.dataset import Dataset
from input_pipelines.splits import Examples
from serving.recommender import Recommender

USERS, SHARED = 12, 130
SMALL = {
    "vocabulary.pieces": 420,
    "prompts.max_inputs": 160,
    "prompts.max_targets": 16,
    "mixture.nsip": 20,
    "mixture.nsqp": 4,
    "mixture.pseudo_query": 4,
    "mixture.desc2id": 8,
    "mixture.id2desc": 8,
    "model.size": "tiny",
    "train.batch_size": 16,
    "train.row_inputs": 160,
    "train.row_targets": 24,
    "train.epochs": 1.0,
    "train.evals": 2,
    "eval.beam": 10,
    "eval.validation_users": 8,
    "eval.test_users": 10,
    "eval.batch_size": 8,
    "eval.full_batch_size": 8,
    "eval.protocols": ("neg99",),
    "eval.search_protocols": ("full",),
    "loop.checkpoint_every": 2,
}


def write_beauty(folder):
    """Items 0..129 are bought in training; each user's last two are bought, and searched, once.

    Their queries and titles say 'heldout' and appear nowhere else.
    """
    rng = np.random.default_rng(0)
    folder.mkdir()
    with open(folder / "items.jsonl", "w") as file:
        for item in range(SHARED):
            # A zero-width space is no text either.
            title = {3: "", 5: "\u200b"}.get(item, f"pot model{item}")
            record = {"item": item, "query_ids": [item % 5], "title": title}
            file.write(json.dumps(record) + "\n")
        for item in range(SHARED, SHARED + 2 * USERS):
            record = {"item": item, "query_ids": [item], "title": f"heldout{item}"}
            file.write(json.dumps(record) + "\n")
    queries = [f"{q}\tred tea kind{q}" for q in range(5)]
    queries += [f"{q}\theldoutquery {q}" for q in range(SHARED, SHARED + 2 * USERS)]
    (folder / "queries.tsv").write_text("\n".join(queries) + "\n")
    with open(folder / "sequences.tsv", "w") as file:
        for user in range(USERS):
            bought = [*rng.permutation(SHARED)[:6], SHARED + 2 * user, SHARED + 2 * user + 1]
            file.write(f"{user}\t{' '.join(map(str, bought))}\n")
    return str(folder)


def table_of(data):
    """Distinct random identifiers, one shared and two own levels of 8."""
    log = data.log
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 8, (log.num_items, 1))
    codes = {}
    for source in ("semantic", "collaborative"):
        pairs = np.stack(np.divmod(rng.permutation(64), 8), 1)
        own = np.empty((log.num_items, 2), np.int64)
        for code in range(8):
            rows = np.flatnonzero(shared[:, 0] == code)
            own[rows] = pairs[: len(rows)]
        codes[source] = np.concatenate([shared, own], 1).astype(np.int32)
    return IdentifierTable(codes, 1, 8, log.hash, data.training_split)


def small_config(tmp_path_factory):
    """A config of the made-up catalogue with its table of identifiers."""
    small = gensar_amazon_beauty.get_config()
    small.data_dir = write_beauty(tmp_path_factory.mktemp("raw") / "beauty")
    small.cache_dir = str(tmp_path_factory.getbasetemp() / "cache")
    small.update_from_flattened_dict(SMALL)
    folder = tmp_path_factory.mktemp("identifiers")
    save_table(str(folder), table_of(Dataset(resolve(small))), {})
    small.identifiers = str(folder)
    return small


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_config(tmp_path_factory)


@pytest.fixture(scope="module")
def data(config):
    return Dataset(resolve(config))


def changed(config, **flat):
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({k.replace("__", "."): v for k, v in flat.items()})
    return other


def refused(config, tmp_path):
    workdir = tmp_path / "refused"
    with pytest.raises(UserError) as error:
        train(config, str(workdir))
    assert "\n" not in str(error.value) and not workdir.exists()
    return str(error.value)


def test_identifiers_may_lie_in_a_store(config, data, tmp_path, monkeypatch):
    address = f"memory://identifiers/{tmp_path.name}"
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "first"))
    elsewhere = changed(config, identifiers=address)
    none = f"expected the workdir of a run at {address} (config.identifiers), found none"
    assert none in refused(elsewhere, tmp_path)
    with mirrored(address) as place:
        shutil.copytree(config.identifiers, place, dirs_exist_ok=True)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "second"))
    experiment = open_experiment(resolve(elsewhere), data)
    assert experiment.table.hash == table_of(data).hash
    assert experiment.config.identifiers == address  # as every machine's config.json has it


def test_mistakes_end_in_one_line_before_anything_is_written(config, data, tmp_path):
    other = changed(config)
    with other.unlocked():
        other.mixture.next_item = 5
    assert "settings of nrip, nsqp, nsip" in refused(other, tmp_path)
    folder = tmp_path / "table"
    folder.mkdir()
    log, table = data.log, table_of(data)
    elsewhere = changed(config, identifiers=str(folder))
    assert "found no such file" in refused(elsewhere, tmp_path)
    save_table(str(folder), IdentifierTable(table.codes, 1, 8, "another", "by_user-0"), {})
    assert f"identifiers of the log {log.hash}" in refused(elsewhere, tmp_path)
    save_table(str(folder), table, {})
    twice = {source: codes.copy() for source, codes in table.codes.items()}
    twice["semantic"][1] = twice["semantic"][0]
    np.savez(folder / "identifiers.npz", **twice)
    meta = json.loads((folder / "identifiers.json").read_text())
    del meta["checksum"]
    files = checksums.describe(str(folder), ["identifiers.npz"])
    checksums.write_sealed(str(folder / "identifiers.json"), meta | {"files": files})
    assert "unique semantic identifiers" in refused(elsewhere, tmp_path)
    message = refused(changed(config, prompts__identifiers="visual"), tmp_path)
    assert "both, semantic, collaborative" in message
    assert "row_inputs" in refused(changed(config, train__row_inputs=100), tmp_path)
    assert "config.train" in refused(changed(config, train__epochs=0.0), tmp_path)
    assert "config.train.evals above 0" in refused(changed(config, train__evals=0), tmp_path)
    assert "config.eval.beam above 0" in refused(changed(config, eval__beam=0), tmp_path)
    assert "T5 size" in refused(changed(config, model__size="huge"), tmp_path)
    assert "config.eval.selection" in refused(
        changed(config, eval__selection="ndcg@5/neg99"), tmp_path
    )
    assert (
        "config.eval.protocols of neg99, neg99pop, published99, full, found 'bm25_99'"
        in refused(changed(config, eval__protocols=("bm25_99",)), tmp_path)
    )
    metrics = ("ndcg@5", "map@5")
    assert "found 'map@5'" in refused(changed(config, eval__metrics=metrics), tmp_path)
    message = refused(changed(config, prompts__search_without="items"), tmp_path)
    assert "nothing, query, history, found 'items'" in message
    assert "config.eval.batch_size" in refused(changed(config, mesh__data=3), tmp_path)


def test_mistakes_are_found_before_identifiers_are_trained(config, data, tmp_path):
    before = glob.glob(data.beside("identifiers-*"))
    none = {f"mixture__{name}": 0 for name in config.mixture}
    for changes, words in (
        ({"model__size": "huge"}, "a T5 size of tiny"),
        ({"model__dtype": "float8"}, "config.model.dtype of float32, bfloat16, found 'float8'"),
        ({"prompts__identifiers": "visual"}, "config.prompts.identifiers of both"),
        ({"prompts__search_without": "items"}, "config.prompts.search_without of nothing"),
        ({"prompts__behaviour_tokens": "both"}, "config.prompts.behaviour_tokens of decoder"),
        ({"prompts__phrasings": 0}, "config.prompts.phrasings from 1 to 10, found 0"),
        ({"mixture__nsip": -2}, "config.mixture.nsip of examples an epoch"),
        (none, "a mixture of at least one task"),
    ):
        assert words in refused(changed(config, identifiers="", **changes), tmp_path)
    (tmp_path / "queries.tsv").write_text("0\tred pot\n999\tblue pot\n")
    few = changed(config, identifiers="", identifier_model__codes=16)
    for changes, words in (
        ({"identifier_model__codes": 256}, "set --config.identifier_model.codes to fewer"),
        ({"prompts__pseudo_queries": str(tmp_path / "queries.tsv")}, "in line 2 of"),
        ({"vocabulary__pieces_model": str(tmp_path / "no.model")}, "found no"),
        ({"vocabulary__pieces": 100}, "expected more pieces"),
    ):
        assert words in refused(changed(few, **changes), tmp_path)
    assert glob.glob(data.beside("identifiers-*")) == before


def test_identifiers_in_the_cache_that_are_refused_are_to_be_removed(config, data):
    own = changed(config, identifiers="", identifier_model__codes=8, seed=77)
    folder, of_identifiers = own_identifiers(own, data)
    open_workdir(folder, of_identifiers.to_dict(), data.log.hash)
    written = json.loads((pathlib.Path(folder) / "config.json").read_text())
    (pathlib.Path(folder) / "config.json").write_text(json.dumps(written["model"]))
    for damage in (lambda: None, lambda: pathlib.Path(folder, "results.json").write_text("{}")):
        damage()
        with pytest.raises(UserError, match=f"remove {folder}, and its identifiers") as error:
            train_table(own, data)
        assert "workdir" not in str(error.value).partition(";")[2]


def test_validation_without_searches_is_found_before_training(config, tmp_path):
    config = changed(config, data_dir=str(tmp_path / "raw"), identifiers=str(tmp_path / "table"))
    write_beauty(tmp_path / "raw")
    path = tmp_path / "raw" / "items.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records[SHARED::2]:  # the targets of validation
        record["query_ids"] = []
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = Dataset(resolve(config))
    os.mkdir(config.identifiers)
    save_table(config.identifiers, table_of(data), {})
    experiment = open_experiment(resolve(config), data)
    with pytest.raises(UserError, match="expected validation searches"):
        experiment.check_data()
    open_experiment(resolve(changed(config, eval__search_protocols=())), data).check_data()


def test_tiger_and_the_ablations_are_arguments(config, data):
    tiger = gensar_amazon_beauty.get_config("tiger")
    tiger.data_dir, tiger.cache_dir = config.data_dir, config.cache_dir
    tiger.identifiers = config.identifiers
    tiger.vocabulary.pieces = SMALL["vocabulary.pieces"]
    experiment = open_experiment(resolve(tiger), data)
    examples = experiment.examples
    assert examples.mixture.tasks == ("nrip",)
    example = examples.training_example("nrip", 3, 0)
    names = {examples.vocabulary.name(token)[:3] for token in example.inputs + example.targets}
    assert not names & {"<R_", "<S_", "<R1", "<S1"}, "no behaviours, one kind of identifier"
    semantic = examples.prompts.catalogue.identifier(
        int(data.log.rec_items[data.splits.train.target_row[3]]), "semantic"
    )
    assert example.targets == [*semantic, 1] and examples.forced("recommendation") == []
    ablated = GenSARExamples(resolve(changed(config, mixture__nsqp=0)), data, table_of(data))
    assert "nsqp" not in ablated.mixture.tasks and "nsip" in ablated.mixture.tasks
    bare = changed(config, prompts__behaviour_tokens="none")
    examples = GenSARExamples(resolve(bare), data, table_of(data))
    assert examples.forced("search") == []
    with pytest.raises(
        ValueError, match=r"a variant of gensar, tiger, dsi, .*ltrgr, found 'amazon_beauty,lion'"
    ):
        gensar_amazon_beauty.get_config("lion")


def test_a_typed_query_is_written_as_the_log_s_queries(config, data, monkeypatch):
    # The file's words are taken as they are, the others in the segmenter's form.
    assert data.query_text(" Red  Tea?") == "red tea"
    assert data.query_text("ＴＥＡ kind2") == "tea kind2"
    split = segmenters.segmenter(resolve(config).data.segmenter)
    known = {*data.log.words.tolist(), "Tea?"}
    assert segmenters.typed("Red Tea?", split, known) == "red Tea?"
    experiment = open_experiment(resolve(config), data)
    with pytest.raises(UserError, match=r"a query with words, found '\?!'"):
        next(experiment.predict(None, None, None, 3, "?!"))
    # This reader has the segmenter split its queries.
    reader = dataclasses.replace(prepare.READERS["amazon_beauty"], settings=("segmenter",))
    monkeypatch.setitem(prepare.READERS, "amazon_beauty", reader)
    assert data.query_text("Red Tea?") == "red tea" and data.query_text("Visa 申请!") == "visa 申请"


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "w"
    return workdir, train(config, str(workdir))


@pytest.mark.slow
def test_a_run_gives_every_row_and_evaluate_the_same(trained):
    workdir, results = trained
    rows = {row["protocol"]: row for row in results["rows"]}
    assert set(rows) == {"neg99/exact", "neg99/beam10", "search/full"}
    for protocol, row in rows.items():
        assert row["examples"] == 10 and row["initial"] == "from scratch"
        assert row["task"] == ("search" if protocol.startswith("search") else "recommendation")
        assert all(name.endswith("/" + protocol) for name in row["metrics"])
        with np.load(workdir / row["per_user"]) as values:
            assert len(values["user"]) == 10
            means = {f"{n}/{protocol}": values[n].mean() for n in values if n != "user"}
        assert means == pytest.approx(row["metrics"])
    restored = Restored(str(workdir))
    experiment = restored.experiment
    assert experiment.columns("search", "bm25_99") == (
        "search/bm25_99/exact",
        "search/bm25_99/beam10",
    )
    again = evaluate(restored, "test", "neg99/beam10")
    assert again["metrics"] == rows["neg99/beam10"]["metrics"]
    # Every beam is an item; exact and beam agree where the beam holds all candidates.
    experiment.config.eval.beam = 100
    same = experiment.evaluate(restored.params, restored.tables, "test", "neg99/beam100")
    assert (
        same.means()
        == experiment.evaluate(restored.params, restored.tables, "test", "neg99/exact").means()
    )
    evaluate(restored, "test", "search/bm25_99/exact")
    with pytest.raises(UserError, match="found 'search/published99'"):
        experiment.evaluate(restored.params, restored.tables, "test", "search/published99")
    strange = {"identifiers": np.zeros(8, np.uint8)}
    with pytest.raises(UserError, match="that this run was trained with"):
        experiment.evaluate(restored.params, strange, "test", "neg99/exact")


@pytest.mark.slow
def test_a_mesh_gives_the_same_results(trained, config, tmp_path):
    results = train(changed(config, mesh__data=2, mesh__model=2), str(tmp_path / "w"))
    for ours, theirs in zip(results["rows"], trained[1]["rows"], strict=True):
        assert ours["protocol"] == theirs["protocol"]
        assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=1e-6)
    # Its checkpoint on one device, too.
    restored = Restored(str(tmp_path / "w"))
    restored.experiment.config.mesh.data = restored.experiment.config.mesh.model = 1
    one = open_experiment(restored.experiment.config, restored.data)
    sums = one.evaluate(
        jax.device_get(restored.params), jax.device_get(restored.tables), "test", "neg99/exact"
    )
    assert sums.means() == pytest.approx(
        {name.split("/")[0]: v for name, v in results["rows"][0]["metrics"].items()}
    )


@pytest.mark.slow
def test_predictions_are_items_unseen_best_first(trained):
    restored = Restored(str(trained[0]))
    experiment, log = restored.experiment, restored.data.log
    experiment.config.eval.beam = 200  # more than there are items, so that nothing is pruned
    texts = log.item_texts()
    names = log.user_ids.tolist()
    users = [names[3], names[1], names[7]]
    for query in (None, "red tea kind2"):
        rows = list(predict(restored, users, 6, query))
        assert [(r["user"], r["rank"]) for r in rows] == [
            (user, rank) for user in users for rank in range(1, 7)
        ]
        task = "recommendation" if query is None else "search"
        for user in users:
            number = names.index(user)
            mine = [row for row in rows if row["user"] == user]
            scores = [row["score"] for row in mine]
            items = [log.item_ids.tolist().index(row["item"]) for row in mine]
            assert scores == sorted(scores, reverse=True) and len(set(items)) == 6
            start, end = log.rec_offsets[number : number + 2]
            seen = set(np.asarray(log.rec_items)[start:end].tolist())
            assert not seen & set(items) and len(seen) == 8
            assert [row["text"] for row in mine] == [texts[item - 1] for item in items]
            # No item that is left out is likelier: all of them scored, teacher-forced.
            expected = teacher_forced(restored, number, task, query)
            best = [i for i in np.argsort(-expected) + 1 if i not in seen][:6]
            assert items == best
            np.testing.assert_allclose(scores, expected[np.array(best) - 1], atol=1e-3)
    (row,) = predict(restored, None, 1, "red tea kind2")
    assert row["user"] is None and row["item"] in set(log.item_ids.tolist())
    for arguments, message in (
        ((["nobody"], 3), "found 'nobody', which"),
        ((users, log.num_items + 1), "at most"),
        ((None, 3), "users or a query"),
    ):
        with pytest.raises(UserError, match=message):
            list(predict(restored, *arguments))
    experiment.examples.mixture.tasks = ("nrip",)
    with pytest.raises(UserError, match="whose mixture holds nsip with --query"):
        list(predict(restored, users, 3, "red"))
    experiment.examples.mixture.tasks = ("nsip",)
    with pytest.raises(UserError, match="whose mixture holds nrip without --query"):
        list(predict(restored, users, 3))


@pytest.mark.slow
def test_a_recommender_answers_anyone_as_predict_answers_users_of_the_log(trained):
    model = Recommender.load(str(trained[0]))
    restored = Restored(str(trained[0]))
    log = restored.data.log
    user = log.user_ids[3]
    assert model.tasks == ("recommend", "search") and model.max_steps is None
    for query in (None, "red tea kind2"):
        rows = list(predict(restored, [user], 4, query))
        answer = model.recommend(user=user, k=4, query=query)
        assert [(i.item, i.score) for i in answer.items] == [(r["item"], r["score"]) for r in rows]
        assert answer.known_user and answer.items[0].title
    # Someone unknown who has done the same gets the same; unknown words are spelt in pieces.
    rows = range(*log.rec_offsets[3:5].tolist())
    clicks = [(log.item_ids[log.rec_items[row]], int(log.rec_times[row])) for row in rows]
    searches = []
    for row in range(*log.search_offsets[3:5].tolist()):
        clicked = log.click_items[log.click_offsets[row] : log.click_offsets[row + 1]]
        names = log.item_ids[clicked].tolist()
        searches.append((" ".join(log.query(row)), names, int(log.search_times[row])))
    same = model.recommend(clicks=clicks, searches=searches, k=4)
    known = model.recommend(user=user, k=4)
    assert same.items == known.items and not same.known_user
    odd = model.search("zebra tea", searches=[("lions", [])], k=2)
    assert len(odd.items) == 2 and odd.skipped_words == 0
    few = [item.item for item in known.items[1:3]]
    chosen = model.recommend(user=user, candidates=few, k=5)
    assert [item.item for item in chosen.items] == few
    rest = model.recommend(user=user, exclude=few, k=2)
    assert [item.item for item in rest.items] == [known.items[0].item, known.items[3].item]
    for question, reason in (
        ({"because": True}, "because of a ranker's"),
        ({"query": "?!"}, "words"),
    ):
        with pytest.raises(UserError, match=reason):
            model.recommend(user=user, **question)


def teacher_forced(restored, user, task, query):
    """log p [V] of every item's identifier after the prompt of a user, in one pass."""
    written, log = restored.experiment.examples, restored.data.log
    row = np.array([user])
    whole = Examples(row, row * 0, log.rec_offsets[row + 1], log.search_offsets[row + 1])
    history, prompts = written.history(whole, 0), written.prompts
    examples = [
        prompts.next_item(history, item)
        if query is None
        else prompts.next_searched_item(history, query, item)
        for item in range(1, log.num_items + 1)
    ]
    batch = to_batch(examples, prompts.max_inputs, prompts.max_targets)
    apply = jax.jit(functools.partial(restored.experiment.network.apply, enable_dropout=False))
    logits = apply({"params": restored.params}, **batch)
    losses = np.asarray(token_losses(logits, batch["decoder_target_tokens"]))
    # Neither the behaviour token nor the end counts.
    width = written.tokens_of(task).shape[1]
    return -losses[:, 1 : 1 + width].sum(1)


@pytest.mark.slow
def test_stopped_and_continued_it_ends_in_the_same_bits(trained, config, tmp_path):
    workdir, expected = trained
    experiment = open_experiment(resolve(config), Dataset(resolve(config)))
    assert experiment.task.max_steps >= 5
    other, whole = tmp_path / "w", experiment.task.batches

    def broken(start):
        for place, batch in enumerate(whole(start)):
            if start + place == 3:
                raise KeyboardInterrupt
            yield batch

    experiment.task.batches = broken
    log = experiment.data.log.hash
    with pytest.raises(KeyboardInterrupt):
        experiment.run(open_workdir(str(other), resolve(config).to_dict(), log))
    gc.collect()  # the error may still hold the lock of the workdir
    assert list((other / "checkpoints" / "joint").glob("[0-9]*")), "else nothing is continued"
    results = train(config, str(other))
    left_out = ("written", "commit")  # what the working tree is at is no part of a result
    strip = lambda rows: [{k: v for k, v in r.items() if k not in left_out} for r in rows]  # noqa: E731
    assert strip(results["rows"]) == strip(expected["rows"])
    states = []
    for folder in (workdir, other):
        checkpoints = Checkpoints(str(folder / "checkpoints" / "joint"))
        states.append(checkpoints.restore(experiment.abstract_state("joint"))[0])
        checkpoints.close()
    for one, two in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
