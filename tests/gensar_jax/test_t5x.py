"""T5X on GenSAR's examples: the export, then, where T5X is installed, training and decoding."""

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs import gensar_qilin
from core.errors import UserError
from experiments.export_t5x import export
from experiments.methods import open_experiment
from experiments.resolve import resolve
from gensar_jax.generation import generate
from gensar_jax.identifiers import IdentifierTable, save_table
from gensar_jax.joint_task import token_losses
from gensar_jax.prompts import Example, to_batch
from gensar_jax.t5 import checkpoints
from gensar_jax.t5.config import of_size
from gensar_jax.t5.network import Transformer
from gensar_jax.t5x_bridge import exported, installation
from input_pipelines.dataset import Dataset
from launch import t5x as t5x_program

ROOT = pathlib.Path(__file__).parent.parent.parent
GIN = ROOT / "gensar_jax" / "t5x_bridge" / "gin"
HAS_T5X = all(importlib.util.find_spec(name) for name in ("t5x", "seqio", "gin"))
with_t5x = pytest.mark.skipif(
    not HAS_T5X, reason="T5X is not installed: gensar_jax/t5x_bridge/install.sh"
)
STEPS = 20
INPUTS, TARGETS = 160, 24


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """60 users of the embedded sample, with made-up identifiers."""
    found = gensar_qilin.get_config()
    found.cache_dir = str(tmp_path_factory.mktemp("cache"))
    found.on_sample.users = 60
    overrides = found.on_sample.overrides
    overrides.vocabulary.pieces = 500
    overrides.model.size = "tiny"
    with found.unlocked():
        overrides.prompts = {"max_inputs": INPUTS, "max_targets": 16}
        overrides.train.update({"row_inputs": INPUTS, "row_targets": TARGETS})
        overrides.eval.update({"validation_users": 8, "test_users": 10})
    data = Dataset(resolve(found))
    log = data.log
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 16, (log.num_items, 1))
    codes = {}
    for kind in ("semantic", "collaborative"):
        own = np.stack(np.divmod(rng.permutation(1024)[: log.num_items], 32), 1)
        codes[kind] = np.concatenate([shared, own], 1).astype(np.int32)
    found.identifiers = str(tmp_path_factory.mktemp("table"))
    table = IdentifierTable(codes, 1, 32, log.hash, data.training_split)
    save_table(found.identifiers, table, {})
    return found


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "e"
    export(config, str(path), 1)
    return str(path)


def records(folder, task, split):
    """What was written, in that order: inputs, targets, user, item, seen."""
    import tensorflow as tf

    def parsed(row):
        fields = tf.train.Example.FromString(row.numpy()).features.feature
        found = {name: list(fields[name].int64_list.value) for name in fields}
        return found | {"user": fields["user"].bytes_list.value[0].decode()}

    paths = sorted(pathlib.Path(folder).glob(f"{task}-{split}.tfrecord-*"))
    files = [[parsed(row) for row in tf.data.TFRecordDataset(str(path))] for path in paths]
    return [file[i] for i in range(len(files[0])) for file in files if i < len(file)]


@pytest.mark.slow
def test_an_export_holds_the_stream_and_the_users_that_are_evaluated(config, folder, tmp_path):
    experiment = open_experiment(resolve(config), Dataset(resolve(config)))
    examples, log = experiment.examples, experiment.data.log
    found = exported.read(folder)
    assert found.rates == examples.mixture.counts and "sample data" in found.data
    assert exported.items(folder) == [str(name) for name in log.item_ids[1:]]
    assert exported.vocabulary(folder).digest == examples.vocabulary.digest
    stream = examples.stream(0, examples.mixture.examples_per_epoch)
    placed = examples.mixture.at(np.arange(len(stream))).task
    for number, task in enumerate(examples.mixture.tasks):
        own = [stream[i] for i in np.flatnonzero(placed == number)]
        written = records(folder, task, "train")
        assert [(r["inputs"], r["targets"]) for r in written] == own
        assert len(own) == found.sizes[task]["train"] == found.rates[task]
    for name, task in (("recommendation", "nrip"), ("search", "nsip")):
        held_out, _ = experiment.evaluated(name, "test")
        prompts = examples.evaluation_inputs(held_out)
        written = records(folder, task, "test")
        assert len(written) == found.sizes[task]["test"] == len(held_out) > 0
        codes = exported.identifiers(folder, "semantic" if task == "nsip" else "collaborative")
        for row, record in enumerate(written):
            assert record["user"] == str(log.user_ids[held_out.user[row]])
            assert record["inputs"] == prompts[row][prompts[row] > 0].tolist()
            forced = found.forced[name]
            assert record["targets"] == [*forced, *codes[record["item"][0]], 1]
            assert record["item"][0] not in record["seen"] and record["seen"]
    with pytest.raises(UserError, match="that is new"):
        export(config, folder, 1)
    with pytest.raises(UserError, match=r"of launch\.export_t5x"):
        exported.read(str(tmp_path))


@pytest.mark.slow
def test_an_export_that_fails_leaves_nothing(folder, tmp_path):
    def broken():
        yield exported.Record("nrip", "train", Example([5, 1], [6, 1]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exported.write(
            str(tmp_path / "e"),
            broken(),
            vocabulary=exported.vocabulary(folder),
            identifiers={},
            items=[],
            splits={"nrip": ["train"]},
            description={},
        )
    assert not list(tmp_path.iterdir())


def test_without_t5x_it_says_what_to_install(monkeypatch):
    with pytest.raises(UserError, match="train or infer"):
        t5x_program.run(["serve"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no package t5x; run .*install\.sh"):
        t5x_program.run(["train"])


def run(program, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "launch.t5x", program, *arguments],
        cwd=ROOT,
        # One device: T5X's mesh of CPUs cuts the network over all there are.
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )


def files_of(program, experiment="gensar_amazon_beauty"):
    return [f"--gin_file={GIN / name}.gin" for name in (program, experiment)]


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The folder of a run of T5X's own training program."""
    workdir = tmp_path_factory.mktemp("t5x") / "w"
    done = run(
        "train",
        *files_of("train"),
        f"--gin.EXPORT='{folder}'",
        f"--gin.MODEL_DIR='{workdir}'",
        "--gin.SIZE='tiny'",
        "--gin.BATCH_SIZE=8",
        f"--gin.TRAIN_STEPS={STEPS}",
        "--gin.LEARNING_RATE=0.03",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


@pytest.fixture(scope="module")
def network(folder):
    return Transformer(of_size("tiny", exported.read(folder).vocab_size))


def parameters(network, workdir, step):
    size = network.config.vocab_size
    path = pathlib.Path(workdir) / f"checkpoint_{step}"
    return checkpoints.from_t5x(path, network.config, size, jax.random.key(0))


def prompts_of(folder, task, rows):
    written = records(folder, task, "test")[:rows]
    inputs = np.zeros((rows, INPUTS), np.int32)
    for row, record in enumerate(written):
        inputs[row, : len(record["inputs"])] = record["inputs"]
    return jnp.asarray(inputs)


def bridge():
    """T5X's modules and ours over them."""
    installation.prepare()
    import seqio
    from t5x import models

    from gensar_jax.t5x_bridge import decoding, inference, model, packing, tasks, vocabulary

    found = (seqio, models, decoding, inference, model, packing, tasks, vocabulary)
    return {each.__name__.split(".")[-1]: each for each in found}


@with_t5x
@pytest.mark.slow
def test_t5x_trains_and_its_checkpoint_gives_the_same_logits_here(folder, trained, network):
    own = bridge()
    theirs = own["model"].network.Transformer(own["model"].as_t5x(network.config))
    batch = to_batch(
        [
            Example(record["inputs"], record["targets"])
            for task in ("nrip", "nsip")
            for record in records(folder, task, "train")[:8]
        ],
        INPUTS,
        TARGETS,
    )
    losses = []
    for step in (0, STEPS):
        params = parameters(network, trained, step)
        ours = jax.jit(functools.partial(network.apply, enable_dropout=False))(
            {"params": params}, **batch
        )
        found = theirs.apply({"params": params}, *batch.values(), enable_dropout=False)
        real = batch["decoder_target_tokens"] > 0
        np.testing.assert_allclose(ours[real], found[real], atol=1e-5)
        losses.append(token_losses(ours, batch["decoder_target_tokens"]).sum() / real.sum())
    assert losses[1] < losses[0] - 0.5, losses


@with_t5x
@pytest.mark.slow
def test_its_network_has_our_logical_axes(network):
    own = bridge()
    theirs = own["model"].network.Transformer(own["model"].as_t5x(network.config))
    token = jnp.ones((1, 1), jnp.int32)
    axes = [
        traverse_util.flatten_dict(
            jax.eval_shape(
                lambda n=n: n.init(jax.random.key(0), token, token, token, enable_dropout=False)
            )["params_axes"]
        )
        for n in (network, theirs)
    ]
    assert axes[0] == axes[1] and len(axes[0]) > 20


@with_t5x
@pytest.mark.slow
def test_a_packed_batch_has_the_loss_of_its_examples(folder, trained, network):
    own = bridge()
    seqio, tasks = own["seqio"], own["tasks"]
    converter = own["packing"].PackingConverter
    batches = seqio.get_dataset(
        tasks.task(folder, "pseudo_query"),
        tasks.feature_lengths(folder),
        dataset_split="train",
        shuffle=False,
        num_epochs=1,
        feature_converter=converter(pack=True),
        batch_size=None,
    )
    rows = list(batches.as_numpy_iterator())
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    examples = [
        Example(r["inputs"], r["targets"]) for r in records(folder, "pseudo_query", "train")
    ]
    assert batch["encoder_segment_ids"].max(1).sum() == len(examples) > len(rows)
    for row, places in zip(batch["encoder_segment_ids"], batch["encoder_positions"], strict=True):
        for segment in range(1, row.max() + 1):
            assert places[row == segment].tolist() == list(range((row == segment).sum()))
    vocabulary = own["vocabulary"].GenSARVocabulary(folder)
    schedule = own["model"].learning_rate(1e-3, STEPS, 0.01)
    model = own["models"].EncoderDecoderModel(
        own["model"].network.Transformer(own["model"].as_t5x(network.config)),
        vocabulary,
        vocabulary,
        own["model"].optimizer(schedule, 1e-7, 1.0, True, 1),
        loss_normalizing_factor="NUM_REAL_TARGET_TOKENS",
    )
    params = parameters(network, trained, STEPS)
    found, _ = jax.jit(lambda p, b: model.loss_fn(p, b, None))(params, batch)
    apart = to_batch(examples, INPUTS, TARGETS)
    logits = jax.jit(functools.partial(network.apply, enable_dropout=False))(
        {"params": params}, **apart
    )
    losses = token_losses(logits, apart["decoder_target_tokens"])
    expected = losses.sum() / (apart["decoder_target_tokens"] > 0).sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@with_t5x
@pytest.mark.slow
@pytest.mark.parametrize("task", ["recommendation", "search"])
def test_its_decoding_finds_our_beams(folder, trained, network, task):
    own = bridge()
    decoding, models = own["decoding"], own["models"]
    params = parameters(network, trained, STEPS)
    inputs = prompts_of(folder, "nsip" if task == "search" else "nrip", 3)
    trie, forced = decoding.catalogue(folder, task)
    prefix = jnp.broadcast_to(jnp.array(forced, jnp.int32), (3, len(forced)))
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": jnp.zeros((3, TARGETS), jnp.int32),
    }
    vocabulary = own["vocabulary"].GenSARVocabulary(folder)
    theirs = own["model"].network.Transformer(own["model"].as_t5x(network.config))
    orders = []
    for renormalise in (False, True):
        ours = jax.jit(functools.partial(generate, network, width=20, renormalise=renormalise))(
            params, inputs, prefix, trie
        )
        model = models.EncoderDecoderModel(
            theirs,
            vocabulary,
            vocabulary,
            None,
            decode_fn=decoding.constrained(folder, task, renormalise),
        )
        sequences, aux = jax.jit(
            functools.partial(model.predict_batch_with_aux, num_decodes=20, return_all_decodes=True)
        )(params, batch)
        found = decoding.items_of(sequences, trie, len(forced))
        np.testing.assert_array_equal(found[:, ::-1], ours.items)
        np.testing.assert_allclose(aux["scores"][:, ::-1], ours.scores, atol=1e-4)
        whole = np.asarray(sequences)
        assert (whole[..., : len(forced)] == forced).all()
        assert (whole[..., len(forced) + trie.length] == 1).all()
        assert not whole[..., len(forced) + trie.length + 1 :].any()
        orders.append(np.asarray(ours.items))
    assert (orders[0] != orders[1]).any(), "else one of the two forms is not tested"
    assert len(np.unique(orders[0][:, 0])) > 1 or (orders[0][0] != orders[0][1]).any()


@with_t5x
@pytest.mark.slow
def test_our_parameters_infer_there(folder, trained, network, tmp_path):
    """From the plain path to T5X: its inference program, on a checkpoint that we wrote."""
    params = parameters(network, trained, STEPS)
    other = jax.tree.map(lambda leaf: leaf * 1.5, params)
    place = checkpoints.to_t5x(tmp_path, other, step=3)
    done = run(
        "infer",
        *files_of("infer"),
        f"--gin.EXPORT='{folder}'",
        f"--gin.CHECKPOINT_PATH='{place}'",
        f"--gin.INFER_OUTPUT_DIR='{tmp_path / 'out'}'",
        "--gin.SIZE='tiny'",
        "--gin.TASK='search'",
        "--gin.SEQIO_TASK='nsip'",
        "--gin.BEAMS=20",
        "--gin.TOP_K=5",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "out").glob("gensar_nsip-predict_with_aux.jsonl-*-00001")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    own = bridge()["decoding"]
    trie, forced = own.catalogue(folder, "search")
    written, names = records(folder, "nsip", "test"), exported.items(folder)
    prefix = jnp.broadcast_to(jnp.array(forced, jnp.int32), (len(written), len(forced)))
    ours = jax.jit(functools.partial(generate, network, width=20))(
        other, prompts_of(folder, "nsip", len(written)), prefix, trie
    )
    expected = []
    for row, record in enumerate(written):
        ranked = [
            (names[item - 1], score)
            for item, score in zip(ours.items[row].tolist(), ours.scores[row].tolist())
            if item not in set(record["seen"]) - set(record["item"])
        ]
        for rank, (item, score) in enumerate(ranked[:5], 1):
            expected.append((record["user"], rank, item, names[record["item"][0] - 1], score))
    keys = ("user", "rank", "item", "target")
    assert [tuple(line[k] for k in keys) for line in lines] == [line[:4] for line in expected]
    assert [line["score"] for line in lines] == pytest.approx([e[4] for e in expected], abs=1e-3)


@with_t5x
@pytest.mark.slow
def test_a_wrong_export_ends_in_one_line(tmp_path):
    places = [f"--gin.{name}='{tmp_path}'" for name in ("EXPORT", "MODEL_DIR")]
    done = run("train", *files_of("train"), *places)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("error: ")]
    assert "expected a folder of launch.export_t5x" in line


@with_t5x
@pytest.mark.slow
def test_gin_files_bind_to_the_real_modules(folder, monkeypatch, tmp_path):
    bridge()
    import gin
    from t5x import gin_utils, infer, train

    import __main__

    bound = {}
    for program in (train.train, infer.infer):

        @functools.wraps(program)
        def record(**arguments):
            bound.update(arguments)

        named = gin.configurable(program.__name__, module="__main__")(record)
        monkeypatch.setattr(__main__, program.__name__, named, raising=False)
    places = ("MODEL_DIR", "CHECKPOINT_PATH", "INFER_OUTPUT_DIR", "INITIAL_CHECKPOINT_PATH")
    for name, *more in (("train",), ("train", "initial"), ("infer",)):
        for experiment in ("gensar_amazon_beauty", "gensar_amazon_electronics"):
            bound.clear()
            gin_utils.parse_gin_flags(
                [str(ROOT), str(pathlib.Path(train.__file__).parent.parent)],
                [str(GIN / f"{file}.gin") for file in (name, *more, experiment)],
                [f"EXPORT='{folder}'", *(f"{place}='{tmp_path}'" for place in places)],
            )
            getattr(__main__, name)()
            gin.clear_config()
            network = bound["model"].module.config
            assert network.vocab_size == exported.read(folder).vocab_size
            small = experiment.endswith("beauty")
            assert (network.emb_dim, network.dtype) == (
                (128, jnp.float32) if small else (512, jnp.bfloat16)
            )
            if name == "infer":
                assert bound["mode"] == "predict_with_aux"
                continue
            restored = bound["checkpoint_cfg"].restore
            assert restored.fallback_to_scratch == bool(more)
            assert restored.path == (str(tmp_path) if more else [])
            epoch = sum(exported.read(folder).rates.values())
            expected = round(10 * epoch / 251) if small else round(200 * epoch / 8000)
            assert bound["total_steps"] == expected
            # Of norm 8: clipped to 1, or as a sum of 16 parts .5; Adam's mean keeps a tenth.
            update, gradient = bound["model"].optimizer_def.optax_optimizer, {"w": jnp.full(4, 4.0)}
            step, state = update.update(gradient, update.init(gradient), gradient)
            moment = jnp.linalg.norm(optax.tree_utils.tree_get(state, "mu")["w"])
            assert float(moment) == pytest.approx(0.1 if small else 0.05, rel=1e-5)
            # Adam's first step is 1, here times the array's own 4 where rates are relative; the
            # rate at step 0 is of the first of the steps of its rise.
            rise = max(1.0, (0.05 if small else 0.01) * expected)
            rate = (3e-2 * 4.0 if small else 1e-3) / rise
            np.testing.assert_allclose(step["w"], -rate, rtol=1e-3)
            assert bound["train_dataset_cfg"].task_feature_lengths == {
                "inputs": INPUTS,
                "targets": TARGETS,
            }
