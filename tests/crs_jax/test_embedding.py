"""Qwen3-Embedding on the decoder of CRS, against PyTorch's vectors."""

import json
import math
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from core.errors import UserError
from crs_jax import decoder_checkpoints
from crs_jax.decoder_config import DecoderConfig
from crs_jax.embedding import open_encoder
from text_encoders import named
from text_encoders.sentence_settings import EncoderSettings

FOLDER = pathlib.Path(__file__).parents[1] / "reference" / "text_encoders"
QWEN3 = FOLDER / "qwen3"
TEXTS = [t for t in json.loads((FOLDER / "texts.json").read_text("utf-8"))["made"] if t]


def opened(folder, **settings):
    return open_encoder(str(folder), EncoderSettings(**settings), key="model.vectors")


def reference(name):
    with np.load(QWEN3 / "vectors.npz") as values:
        return values[name]


def whole():
    """All tensors of the shards."""
    files = sorted(QWEN3.glob("*.safetensors"))
    assert len(files) == 3
    return {n: a for file in files for n, a in safetensors.numpy.load_file(file).items()}


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(QWEN3, tmp_path / "q")
    for file in (tmp_path / "q").glob("model*"):
        file.unlink()
    return tmp_path / "q"


def test_vectors_are_those_of_sentence_transformers():
    # PyTorch padded on the left.
    encoder = opened(QWEN3)
    np.testing.assert_allclose(encoder.documents(TEXTS), reference("documents"), atol=1e-5)
    np.testing.assert_allclose(encoder.queries(TEXTS), reference("queries"), atol=1e-5)
    assert encoder.cut > 0


def test_items_of_crs_have_its_vectors():
    vectors = named.item_vectors(
        [*TEXTS, ""], str(QWEN3), key="vectors.semantic", open_one=open_encoder
    )
    np.testing.assert_allclose(vectors[:-1], reference("documents"), atol=1e-5)
    assert not vectors[-1].any()


def test_a_single_file_with_longer_names_and_without_the_added_end(copied):
    tensors = {f"model.{name}": array for name, array in whole().items()}
    safetensors.numpy.save_file(tensors, copied / "model.safetensors")
    content = json.loads((copied / "tokenizer.json").read_text())
    content["post_processor"] = None
    (copied / "tokenizer.json").write_text(json.dumps(content))
    encoder = opened(copied)
    np.testing.assert_allclose(encoder.documents(TEXTS), reference("documents"), atol=1e-5)


def test_the_first_dimensions_are_cut_before_the_norm():
    vectors = opened(QWEN3, dimensions=5).documents(TEXTS)
    cut = reference("documents")[:, :5]
    expected = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_another_instruction_may_be_given_and_nothing_else():
    other = opened(QWEN3, query_prefix="Instruct: Find a drum\nQuery:").queries(TEXTS[:1])
    assert np.abs(other - reference("queries")[:1]).max() > 1e-3
    with pytest.raises(UserError, match=r"expected model\.query_prefix of 'Instruct: "):
        opened(QWEN3, query_prefix="query: ")
    with pytest.raises(UserError, match=r"model\.pooling of 'last', as .* found 'mean'"):
        opened(QWEN3, pooling="mean")


def test_another_network_names_its_first_tensor(copied):
    tensors = whole()
    del tensors["layers.1.mlp.up_proj.weight"]
    safetensors.numpy.save_file(tensors, copied / "model.safetensors")
    with pytest.raises(UserError, match=r"the tensor layers\.1\.mlp\.up_proj\.weight"):
        opened(copied)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_key_value_heads": None}, "num_key_value_heads of a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers of a whole number from 1 to 10,000"),
        ({"vocab_size": 10**12}, "vocab_size of a whole number from 1 to 2,147,483,647"),
        ({"hidden_act": "gelu"}, "expected hidden_act of 'silu' in .*, found 'gelu'"),
        ({"use_sliding_window": True}, "expected use_sliding_window of False"),
        ({"rope_theta": 10**400}, "rope_theta of 64 bits"),
    ],
)
def test_settings_of_another_network_are_refused(copied, values, message):
    safetensors.numpy.save_file(whole(), copied / "model.safetensors")
    config = json.loads((copied / "config.json").read_text())
    del config["rope_parameters"]
    # Older files say that nothing is scaled.
    config |= {"rope_scaling": "default", "rope_theta": 1e6}
    (copied / "config.json").write_text(json.dumps(config))
    opened(copied)
    (copied / "config.json").write_text(json.dumps(config | values))
    with pytest.raises(UserError, match=message) as error:
        opened(copied)
    assert "\n" not in str(error.value)


def test_the_published_encoder_has_its_number_of_parameters():
    tensors = decoder_checkpoints.tensors_of(DecoderConfig(text_rows=151_669, new_rows=1))
    assert len(tensors) == 310
    assert sum(math.prod(shape) for _, _, shape in tensors.values()) == 595_776_512


def test_the_decoder_counts_the_rows_of_a_file_without_a_head():
    assert decoder_checkpoints.checkpoint_rows(QWEN3) == 300


def test_other_folders_go_to_the_encoders_of_every_system():
    assert opened(FOLDER / "bert").documents(["red tea"]).shape == (1, 12)
