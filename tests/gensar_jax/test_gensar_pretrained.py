"""GenSAR that starts from a pre-trained T5 in Hugging Face's form and in T5X's."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import sentencepiece
from flax import traverse_util
from safetensors.numpy import load_file, save_file
from test_gensar import changed, refused, small_config

from experiments.evaluate import evaluate
from experiments.methods import open_experiment
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.train import train
from gensar_jax import phrasings, vocabulary
from gensar_jax.t5 import checkpoints
from gensar_jax.t5.config import of_size
from gensar_jax.t5.network import Transformer
from input_pipelines.dataset import Dataset

REFERENCE = pathlib.Path(__file__).parent.parent / "reference" / "t5" / "t5_v1_0.safetensors"
# The file's rows beyond its pieces, as T5's own has.
SPARE = 28


def small_t5(pieces):
    """Random parameters of the tiny size, by T5X's names."""
    rows = sentencepiece.SentencePieceProcessor(model_proto=pieces).GetPieceSize() + SPARE
    network, token = Transformer(of_size("tiny", rows)), np.ones((1, 1), np.int32)
    init = functools.partial(network.init, enable_dropout=False)
    return jax.device_get(init(jax.random.key(7), token, token, token)["params"])


def write_hugging_face(folder, params, pieces, **settings):
    """A folder as T5's on Hugging Face: transposed kernels, settings that are no default."""
    folder.mkdir(exist_ok=True)
    flat = traverse_util.flatten_dict(params, sep="/")
    tensors = {}
    for name in load_file(REFERENCE):
        ours = checkpoints.our_name(name)
        if ours in flat:
            array = flat[ours] if name == "shared.weight" else flat[ours].T
            tensors[name] = np.ascontiguousarray(array)
    assert len(tensors) == len(flat)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 16} | settings))
    (folder / "spiece.model").write_bytes(pieces)


@pytest.fixture(scope="module")
def data(pretrained):
    config, _ = pretrained
    return Dataset(resolve(config))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """(config, parameters) of a run from a small checkpoint of Hugging Face's form."""
    texts = ["red tea kind pot model heldout query", *phrasings.texts()]
    pieces = vocabulary.train_pieces(texts, 400)
    folder, params = tmp_path_factory.mktemp("small") / "t5-tiny", small_t5(pieces)
    write_hugging_face(folder, params, pieces)
    config = small_config(tmp_path_factory)
    return changed(config, model__checkpoint=str(folder)), params


def starts_from(experiment, params):
    """Whether training starts from these parameters, with new rows near the mean of the old."""
    state = experiment.task.init()
    like = experiment.abstract_state("joint")
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, like)
    assert jax.tree.structure(state) == jax.tree.structure(like)
    found = traverse_util.flatten_dict(jax.device_get(state["params"]), sep="/")
    words = experiment.examples.vocabulary
    for name, leaf in traverse_util.flatten_dict(params, sep="/").items():
        if name != "token_embedder/embedding":
            np.testing.assert_array_equal(found[name], leaf, name)
            continue
        old, new = np.split(found[name], [words.text_rows])
        np.testing.assert_array_equal(old, leaf[: words.text_rows])
        assert len(new) == words.size - words.text_rows
        assert np.abs(new - old.mean(0)).max() < 0.5 * old.std()


def test_training_starts_from_a_checkpoint_of_either_form(pretrained, data, tmp_path):
    config, params = pretrained
    resolved = resolve(config)
    experiment = open_experiment(resolved, data)
    experiment.check_data()
    pieces = pathlib.Path(config.model.checkpoint) / "spiece.model"
    assert resolved.vocabulary.pieces_model == str(pieces)
    rows = len(params["token_embedder"]["embedding"])
    assert experiment.examples.vocabulary.text_rows == rows - SPARE
    starts_from(experiment, params)
    more = experiment.details("test", "neg99/exact")["more"]
    assert more["initial"] == "t5-tiny"
    on_mesh = changed(config, mesh__data=2, mesh__model=2)
    starts_from(open_experiment(resolve(on_mesh), data), params)
    folder = checkpoints.to_t5x(tmp_path, params, step=5)
    from_t5x = changed(config, model__checkpoint=str(folder), vocabulary__pieces_model=str(pieces))
    starts_from(open_experiment(resolve(from_t5x), data), params)
    scratch = resolve(changed(config, model__checkpoint=""))
    more = open_experiment(scratch, data).details("test", "neg99/exact")["more"]
    assert more["initial"] == "from scratch"


def test_a_checkpoint_that_does_not_fit_ends_in_one_line(pretrained, tmp_path):
    config, params = pretrained
    folder = tmp_path / "t5"
    wrong = changed(config, model__checkpoint=str(folder))
    assert "SentencePiece model, found no" in refused(wrong, tmp_path)
    whole = pathlib.Path(config.model.checkpoint)
    pieces = (whole / "spiece.model").read_bytes()
    elsewhere = changed(wrong, vocabulary__pieces_model=str(whole / "spiece.model"))
    assert "expected a T5 checkpoint" in refused(elsewhere, tmp_path)
    write_hugging_face(folder, params, pieces, relative_attention_max_distance=64)
    assert "relative_attention_max_distance of 128" in refused(wrong, tmp_path)
    write_hugging_face(folder, params, pieces, feed_forward_proj="gated-gelu")
    assert "feed_forward_proj of 'relu'" in refused(wrong, tmp_path)
    write_hugging_face(folder, params, pieces)
    message = refused(changed(wrong, model__size="sample"), tmp_path)
    assert "pass the size and version of the file" in message
    assert "expected feed_forward_proj" in refused(
        changed(wrong, model__size="tiny-v1_1"), tmp_path
    )
    more = vocabulary.train_pieces(["".join(map(chr, range(0x4E00, 0x4EF0))) + " pot"], 520)
    (folder / "spiece.model").write_bytes(more)
    message = refused(wrong, tmp_path)
    assert "rows of text" in message and "pass the SentencePiece model of the file" in message
    wider = np.ones(17, np.float32)
    broken = params | {"encoder": params["encoder"] | {"encoder_norm": {"scale": wider}}}
    write_hugging_face(folder, broken, pieces)
    assert "encoder/encoder_norm/scale of shape (16,), found (17,)" in refused(wrong, tmp_path)
    (folder / "config.json").unlink()
    assert "settings of a T5" in refused(wrong, tmp_path)


def metrics_of(results):
    return {row["protocol"]: row["metrics"] for row in results["rows"]}


@pytest.mark.slow
def test_a_run_from_a_checkpoint_is_trained_restored_and_continued(pretrained, tmp_path):
    config, params = pretrained
    found = train(config, str(tmp_path / "w"))
    assert {row["initial"] for row in found["rows"]} == {"t5-tiny"}
    restored = Restored(str(tmp_path / "w"))
    again = evaluate(restored, "test", "neg99/exact")
    (row,) = (row for row in found["rows"] if row["protocol"] == "neg99/exact")
    assert again["metrics"] == row["metrics"] and again["initial"] == "t5-tiny"
    # An epoch of so little data moves nothing far.
    old = params["decoder"]["decoder_norm"]["scale"]
    new = np.asarray(restored.params["decoder"]["decoder_norm"]["scale"])
    assert 0 < np.abs(new - old).max() < 0.5
    # The same command continues it: here nothing is left to do.
    finished = train(config, str(tmp_path / "w"))
    assert metrics_of(finished) == metrics_of(found)
