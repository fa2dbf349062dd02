"""An export equals its run, opens without what trains, and is refused where it is another."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from damage import flipped_bits
from moved_runs import ITEMS, SHARED, Untrained, run_of
from servers import Server

from configs import fmlp_rec, item_knn, lares, lrurec, popularity, sasrec
from core.errors import UserError
from input_pipelines.batches import assemble
from serving import exported
from serving.export import by_chunks, check_place, export, export_run
from serving.exported import ExportedModel, history_arrays
from serving.fitted_functions import functions_of
from serving.histories import log_of
from serving.index import EXACT, ExactIndex, IndexedModel, VectorIndex
from serving.recommender import Recommender
from serving.requests import Answer, Click, Request, Search

ROOT = pathlib.Path(__file__).parent.parent.parent
QUERIES = ("red", "tea", "pot", "map")
BCE = {"model.loss": "bce"}


@pytest.fixture(scope="session")
def folder(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "E"
    run.stage, run.step = "train", 0
    export_run(run, str(out))
    return out


@pytest.fixture(scope="session")
def retriever(tmp_path_factory):
    """An export in the place of a broken one."""
    parent = tmp_path_factory.mktemp("sasrec")
    run = Untrained(sasrec.method(), parent, SHARED | {"model.width": 8, **BCE})
    run.stage, run.step = "train", 0
    out = parent / "exports" / "E"
    out.mkdir(parents=True)
    (out / exported.MANIFEST).write_text("broken")
    (out / "old").write_text("old")
    export_run(run, str(out))
    return out


@pytest.fixture(scope="module")
def requests():
    """Users whom the log does not know, and what they did."""
    rng = np.random.default_rng(1)
    every = []
    for number in range(4):
        events = rng.permutation(24).tolist()
        clicks = [
            Click(f"i{rng.integers(ITEMS + 9)}", time) for time in events[: rng.integers(0, 12)]
        ]
        searches = [
            Search(f"{rng.choice(QUERIES)} unknown", (f"i{rng.integers(ITEMS)}",) * 3, time)
            for time in events[12 : 12 + rng.integers(0, 8)]
        ]
        every.append(
            Request(
                clicks=tuple(clicks),
                searches=tuple(searches),
                k=20,
                because=number % 4 == 0,
                reasoning_steps=(None, 0, 2)[number % 3],
            )
        )
    return every


def close(answer, other, tolerance=1e-5):
    """Fails where two answers differ by more than rounding."""
    assert isinstance(answer, Answer) and isinstance(other, Answer)
    for count in ("known_user", "skipped_items", "skipped_words", "skipped_events"):
        assert getattr(answer, count) == getattr(other, count)
    scores = {item.item: item for item in other.items}
    assert len(scores.keys() & {item.item for item in answer.items}) >= len(scores) - 1
    for item in answer.items:
        if (same := scores.get(item.item)) is None:
            continue
        assert item.title == same.title
        assert abs(item.score - same.score) <= tolerance
        if item.because:
            moved = {(one.kind, one.given): one.score for one in same.because.moved}
            assert {(o.kind, o.given) for o in item.because.moved} == moved.keys()
            for one in item.because.moved:
                assert abs(one.score - moved[one.kind, one.given]) <= 2 * tolerance
            ranks, others = item.because.rank_by_step, same.because.rank_by_step
            assert (ranks is None) == (others is None)
            assert ranks is None or len(ranks) == len(others)


def test_it_equals_its_run(run, folder, requests):
    run, model = Recommender(run), Recommender.load(str(folder))
    assert (model.catalogue_size, model.max_steps) == (run.catalogue_size, run.max_steps)
    assert model.tasks == run.tasks and dict(model.titles) == dict(run.titles)
    for answer, other in zip(
        model.recommend_many(requests), run.recommend_many(requests), strict=True
    ):
        close(answer, other)
    assert any(answer.items[0].probability for answer in model.recommend_many(requests[:1]))


def test_a_dot_product_is_told_by_its_vectors(retriever, requests):
    model = ExportedModel.load(str(retriever))
    plain = [Request(clicks=request.clicks, k=20) for request in requests]
    answers = model.recommend_many(plain)
    vectors = model.user_vectors([model.reader.read(request) for request in plain])
    for answer, vector in zip(answers, vectors, strict=True):
        best = answer.items[0]
        row = model.vectors[model.data.log.item_ids.index(best.item) - 1]
        assert abs(float(row @ vector) - best.score) <= 1e-5


@pytest.mark.parametrize("method", [fmlp_rec, lares, lrurec])
def test_spectra_scans_and_complex_states_are_exported(method, tmp_path, requests):
    run = Untrained(method.method(), tmp_path, SHARED | {"model.width": 8, **BCE})
    run.stage, run.step = "train", 0
    export_run(run, str(tmp_path / "E"))
    run, model = Recommender(run), ExportedModel.load(str(tmp_path / "E"))
    requests = [request for request in requests if request.reasoning_steps is None]
    for answer, other in zip(
        model.recommend_many(requests), run.recommend_many(requests), strict=True
    ):
        close(answer, other)


def test_histories_become_the_arrays_of_training(run, requests):
    run = Recommender(run)
    data, reader = run._answers.data, run._answers.reader
    histories = [reader.read(request) for request in requests]
    log, examples = log_of(data.log, histories)
    shape = data.shape(1)
    rows = np.arange(len(histories))
    wanted = assemble(log, examples, rows, shape, np.zeros((len(rows), 1), np.int32))
    lengths = exported.Lengths(shape.rec_length, shape.search_length, shape.words, shape.clicks)
    for name, array in history_arrays(histories, lengths, len(rows)).items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


def test_it_opens_without_what_trains(folder):
    """With JAX, which brings NumPy and SciPy, and safetensors alone."""
    code = f"""
import sys
names = "flax tensorflow orbax ml_collections optax chex absl pandas pyarrow sklearn xxhash"
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in names.split():
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
from serving import Recommender
model = Recommender.load({str(folder)!r})
answer = model.recommend(clicks=["i1", "i2"], searches=[("red pot", ["i3"])], k=3, because=True,
                         user="u7")
print(type(model).__name__, len(answer.items), len(answer.items[0].because.moved),
      answer.known_user)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("ExportedModel 3 3 True\n", 0), done.stderr


def test_nothing_in_it_is_a_pickle(folder):
    for path in folder.iterdir():
        if path.name == exported.VECTORS:
            np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert path.name == exported.WEIGHTS or path.suffix == exported.FUNCTION


def test_the_manifest_says_what_it_is(folder):
    manifest = exported.read_manifest(str(folder))
    assert (manifest["method"], manifest["stage"]) == ("lcr_ser", "train")
    assert manifest["sizes"]["items"] == ITEMS
    assert manifest["metrics"] == {}  # nothing was tested
    assert manifest["files"].keys() | {exported.MANIFEST} == {p.name for p in folder.iterdir()}


def test_a_changed_bit_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "E")
    for path in sorted(copy.iterdir()):
        for change in flipped_bits(path, places=5):
            with pytest.raises(UserError) as told:
                exported.read_manifest(str(copy))
            assert "\n" not in str(told.value) and str(copy) in str(told.value), change
    exported.read_manifest(str(copy))


def test_a_cut_or_missing_file_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "E")
    for path in sorted(copy.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="found"):
            ExportedModel(str(copy))
        path.unlink()
        with pytest.raises(UserError, match=r"[Nn]o such file"):
            ExportedModel(str(copy))
        path.write_bytes(whole)


def test_a_newer_format_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "E")
    manifest = json.loads((copy / exported.MANIFEST).read_text())
    del manifest["sha256"]
    newer = exported.sealed(manifest | {"format": 3, "library": "9.0"})
    (copy / exported.MANIFEST).write_text(json.dumps(newer))
    with pytest.raises(UserError, match=r"format 2 .* found 3, of a newer library \(9.0\); update"):
        ExportedModel(str(copy))
    older = exported.sealed(manifest | {"format": 1})
    (copy / exported.MANIFEST).write_text(json.dumps(older))
    with pytest.raises(UserError, match=r"found 1, of an older library .*; export the run again"):
        ExportedModel(str(copy))


def test_a_file_of_another_name_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "E")
    manifest = json.loads((copy / exported.MANIFEST).read_text())
    del manifest["sha256"]
    manifest["files"]["../secret"] = manifest["files"][exported.ITEMS]
    (copy / exported.MANIFEST).write_text(json.dumps(exported.sealed(manifest)))
    with pytest.raises(UserError, match="expected the files of an export"):
        ExportedModel(str(copy))


@pytest.mark.parametrize("method", [popularity, item_knn])
def test_a_fitted_method_equals_its_run(method, tmp_path, requests):
    keys = {"eval.protocols": ("full",), "eval.metrics": ("ndcg@5",), "data.kept_events": 0}
    workdir = run_of(method.method(), tmp_path, keys)
    manifest = export(workdir, str(tmp_path / "E"))
    assert exported.VECTORS not in manifest["files"] and not manifest["dot_product"]
    run, model = Recommender.load(workdir), Recommender.load(str(tmp_path / "E"))
    asked = [Request(clicks=request.clicks, k=ITEMS, keep_seen=True) for request in requests]
    for answer, other in zip(model.recommend_many(asked), run.recommend_many(asked), strict=True):
        scores = {item.item: item.score for item in other.items}
        assert {item.item: item.score for item in answer.items} == pytest.approx(scores, abs=1e-5)
        assert len(scores) == ITEMS
    few = Request(clicks=asked[1].clicks, candidates=("i4", "i9"), k=2, keep_seen=True)
    (answer,), (other,) = model.recommend_many([few]), run.recommend_many([few])
    assert [item.item for item in answer.items] == [item.item for item in other.items]


def test_what_generates_cannot_be_exported():
    with pytest.raises(UserError, match="found one of gensar, which cannot be exported yet"):
        functions_of("gensar", {}, None)


def test_an_export_takes_no_other_place(folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="expected a new folder or an export"):
            check_place(str(place))
    check_place(str(folder))
    check_place(str(tmp_path / "new"))


def test_an_export_is_replaced_as_a_whole(retriever):
    exported.read_manifest(str(retriever))
    assert not (retriever / "old").exists()
    assert [path.name for path in retriever.parent.iterdir()] == ["E"]


def test_a_catalogue_is_scored_by_chunks():
    """Whatever the number of items, and the axes before theirs."""
    for count in (1, 7, 8, 20):
        items = jnp.arange(2.0 * count).reshape(count, 2)
        scores = by_chunks(items, lambda chunk: jnp.stack([chunk.sum(1), -chunk.sum(1)]), 8)
        assert scores.shape == (2, count)
        np.testing.assert_array_equal(scores[0], items.sum(1))


def test_a_query_is_refused(folder):
    model = ExportedModel(str(folder))
    with pytest.raises(UserError, match="without a query"):
        model.search("red pot")
    with pytest.raises(UserError, match="reasoning_steps of 0 to 2"):
        model.recommend(reasoning_steps=3)
    with pytest.raises(UserError, match="expected k of at most"):
        model.recommend(k=ITEMS + 1)


def test_a_search_of_unknown_words_alone_changes_nothing(folder):
    model = ExportedModel(str(folder))
    answer, other = model.recommend(), model.recommend(searches=["nothing of it"])
    assert answer.items == other.items
    assert other.skipped_words == 3


def test_an_index_finds_the_largest_products():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, 8)) * rng.exponential(size=(500, 1))
    asked = rng.normal(size=(20, 8))
    found = VectorIndex(vectors).find(asked, 10)
    exact = np.argsort(-(asked @ vectors.T), 1)[:, :10]
    shared = [len(np.intersect1d(*pair)) / 10 for pair in zip(found, exact, strict=True)]
    assert np.mean(shared) >= 0.95
    np.testing.assert_array_equal(VectorIndex(vectors).find(asked, 10), found)
    np.testing.assert_array_equal(ExactIndex(vectors).find(asked, 10), exact)
    for index in (VectorIndex, ExactIndex):
        three = index(vectors[:3]).find(asked[:1], 5)[0].tolist()
        assert sorted(three[:3]) == [0, 1, 2] and three[3:] == [-1, -1]


@pytest.mark.slow
def test_all_items_behind_an_index_rank_as_without(folder, retriever, requests):
    whole = ExportedModel(str(folder))
    indexed = IndexedModel(str(folder), str(retriever), first=whole.catalogue_size)
    for answer, other in zip(
        indexed.recommend_many(requests), whole.recommend_many(requests), strict=True
    ):
        close(answer, other)


@pytest.mark.parametrize("exact", [EXACT, 0], ids=["exact", "graph"])
def test_an_index_gives_the_ranker_fewer_items(folder, retriever, requests, exact):
    model = IndexedModel(str(folder), str(retriever), first=30, exact=exact)
    assert model.catalogue_size == 30
    for request, answer in zip(requests, model.recommend_many(requests), strict=True):
        assert len(answer.items) == request.k
        touched = {click.item for click in request.clicks}
        assert not touched & {item.item for item in answer.items}
    asked = Request(clicks=(Click("i1"),), candidates=("i5", "i6", "none"), k=20)
    (answer,) = model.recommend_many([asked])
    assert {item.item for item in answer.items} == {"i5", "i6"} and answer.skipped_items == 1
    recall = model.recall(count=8)
    assert recall.retrieved >= (1 if exact else 0.95) and 0 < recall.ranked <= 1


def test_a_retriever_must_be_a_dot_product(folder):
    with pytest.raises(UserError, match="dot product"):
        IndexedModel(str(folder), str(folder))


@pytest.mark.slow
def test_two_servers_serve_one_export(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "E")
    command = [sys.executable, "-m", "launch.serve", f"--export={copy}", "--port=0"]
    question = {"clicks": ["i1", "i2"], "k": 3, "because": True}
    with Server([*command, "--max_batch=2"]) as first, Server([*command, "--max_batch=2"]) as other:
        status, _, answer = first.ask("/recommend", question)
        assert status == 200 and len(answer["items"]) == 3
        assert other.ask("/recommend", question)[2] == answer
        whole = (copy / exported.WEIGHTS).read_bytes()
        (copy / exported.WEIGHTS).write_bytes(whole[:-1])
        status, _, refused = first.ask("/reload", b"")
        assert status == 422 and "bytes" in refused["error"]
        assert first.ask("/recommend", question)[2] == answer
        (copy / exported.WEIGHTS).write_bytes(whole)
        assert other.ask("/reload", b"")[0] == 200
        assert other.ask("/recommend", question)[2] == answer
    assert first.process.wait() == other.process.wait() == 0


@pytest.mark.slow
def test_a_program_refuses_a_broken_export_in_one_line(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "E")
    (copy / exported.WORDS).write_text("{}")
    code, out, err = Server(
        [sys.executable, "-m", "launch.serve", f"--export={copy}", "--port=0"]
    ).ended()
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: expected") and "words.json" in line
