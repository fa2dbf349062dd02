"""Parameters from files of others, and what a wrong file ends in."""

import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from flax import serialization, traverse_util
from safetensors.numpy import load_file, save_file

from core.errors import UserError
from gensar_jax.t5 import checkpoints
from gensar_jax.t5.config import T5Config

REFERENCE = pathlib.Path(__file__).parent.parent / "reference" / "t5"
CONFIG = T5Config(
    vocab_size=40,
    emb_dim=12,
    num_heads=3,
    head_dim=5,
    mlp_dim=20,
    num_encoder_layers=2,
    num_decoder_layers=2,
    mlp_activations=("gelu", "linear"),
    logits_via_embedding=False,
    num_buckets=8,
    max_distance=16,
)
KEY = jax.random.key(0)
V1_1 = REFERENCE / "t5_v1_1.safetensors"


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


def with_vocabulary(rows):
    return T5Config(**{**CONFIG.__dict__, "vocab_size": rows})


def write_t5x(folder, params):
    """As T5X does: big leaves as zarr beside the file, small ones inside it."""
    folder.mkdir()
    tree = {}
    for name, leaf in flat(params).items():
        leaf = np.asarray(leaf)
        if leaf.ndim < 2:
            tree[name] = leaf
            continue
        place = "target." + name.replace("/", ".")
        metadata = {"shape": list(leaf.shape), "chunks": [8, 8], "compressor": {"id": "gzip"}}
        tree[name] = {
            "driver": "zarr",
            "dtype": "float32",
            "kvstore": {"driver": "file", "path": place},
            "metadata": metadata,
        }
        store = tensorstore.open(
            {
                "driver": "zarr",
                "kvstore": {"driver": "file", "path": str(folder / place)},
                "metadata": {**metadata, "dtype": "<f4"},
            },
            create=True,
        ).result()
        store.write(leaf).result()
    nested = traverse_util.unflatten_dict({tuple(n.split("/")): v for n, v in tree.items()})
    content = {"version": 3, "optimizer": {"target": nested, "state": {"step": 1}}}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(content))


def test_a_t5x_checkpoint_gives_the_same_parameters(tmp_path):
    params = checkpoints.from_hugging_face(V1_1, CONFIG, 40, KEY)
    write_t5x(tmp_path / "checkpoint_1", params)
    again = flat(checkpoints.from_t5x(tmp_path / "checkpoint_1", CONFIG, 40, KEY))
    assert again.keys() == flat(params).keys()
    for name, leaf in flat(params).items():
        np.testing.assert_array_equal(again[name], leaf, name)


def test_the_orbax_form_and_our_own_file_give_the_same_parameters(tmp_path):
    params = checkpoints.from_hugging_face(V1_1, CONFIG, 40, KEY)
    # As T5X saves by default: the parameters beside the optimizer's state.
    state = {"step": np.int32(1), "param_states": jax.tree.map(np.zeros_like, params)}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "orbax" / "state", {"target": params, "state": state})
    written = checkpoints.to_t5x(tmp_path / "ours", params, step=7)
    assert written == tmp_path / "ours" / "checkpoint_7"
    for folder in (tmp_path / "orbax", written):
        again = flat(checkpoints.from_t5x(folder, CONFIG, 40, KEY))
        assert again.keys() == flat(params).keys()
        for name, leaf in flat(params).items():
            assert again[name].dtype == np.float32
            np.testing.assert_array_equal(again[name], leaf, name)
    with pytest.raises(UserError, match="expected a new checkpoint"):
        checkpoints.to_t5x(tmp_path / "ours", params, step=7)


def test_new_rows_start_near_the_mean_of_the_text_s_rows():
    old = load_file(V1_1)
    leaves = flat(checkpoints.from_hugging_face(V1_1, with_vocabulary(1035), 35, KEY))
    for name, table in (
        ("token_embedder/embedding", old["shared.weight"]),
        ("decoder/logits_dense/kernel", old["lm_head.weight"]),
    ):
        rows = np.asarray(leaves[name] if "embedding" in name else leaves[name].T)
        assert rows.shape == (1035, 12)
        # 35 rows are text; the file's other five are not used.
        np.testing.assert_array_equal(rows[:35], table[:35])
        mean, spread = table[:35].mean(0), table[:35].std(0)
        np.testing.assert_allclose(rows[35:].mean(0), mean, atol=0.02 * spread.max())
        np.testing.assert_allclose(rows[35:].std(0), 0.1 * spread, rtol=0.15)
        assert len(np.unique(rows, axis=0)) == 1035


def test_a_folder_and_half_precision_and_copies_of_the_embedding(tmp_path):
    tensors = load_file(V1_1)
    half = {name: array.astype("float16") for name, array in tensors.items()}
    half["encoder.embed_tokens.weight"] = half["shared.weight"]
    save_file(half, tmp_path / "model.safetensors")
    found = flat(checkpoints.from_hugging_face(tmp_path, CONFIG, 40, KEY))
    expected = flat(checkpoints.from_hugging_face(V1_1, CONFIG, 40, KEY))
    for name, leaf in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], leaf, atol=2e-3)


def test_shards_with_an_index_give_the_same_parameters(tmp_path):
    tensors = load_file(V1_1)
    names = sorted(tensors)
    shards = {f"model-{n:05}-of-00003.safetensors": names[n - 1 :: 3] for n in (1, 2, 3)}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    told = {name: file for file, held in shards.items() for name in held}
    size = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": told}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    about = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    about["relative_attention_max_distance"] = 16
    (tmp_path / "config.json").write_text(json.dumps(about))
    found = flat(checkpoints.load(tmp_path, CONFIG, 40, KEY))
    expected = flat(checkpoints.from_hugging_face(V1_1, CONFIG, 40, KEY))
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, name)
    (tmp_path / "config.json").write_text(json.dumps(about | {"layer_norm_epsilon": 1e-5}))
    with pytest.raises(UserError, match=r"layer_norm_epsilon of 1e-06 in .*, found 1e-05"):
        checkpoints.load(tmp_path, CONFIG, 40, KEY)
    (tmp_path / "config.json").write_text(json.dumps(about))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"found no .*model-00002-of-00003\.safetensors"):
        checkpoints.load(tmp_path, CONFIG, 40, KEY)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    tensors = load_file(V1_1)
    name = "decoder.final_layer_norm.weight"
    broken = tensors[name].copy()
    broken[5] = -np.inf
    save_file(tensors | {name: broken}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"finite weights, found -inf in {name}"):
        checkpoints.from_hugging_face(tmp_path, CONFIG, 40, KEY)
    params = checkpoints.from_hugging_face(V1_1, CONFIG, 40, KEY)
    params["decoder"]["decoder_norm"]["scale"] = broken
    write_t5x(tmp_path / "checkpoint_1", params)
    with pytest.raises(UserError, match="finite weights, found -inf in decoder/decoder_norm/scale"):
        checkpoints.from_t5x(tmp_path / "checkpoint_1", CONFIG, 40, KEY)


def test_a_tied_output_of_version_1_0_is_left_out(tmp_path):
    tensors = load_file(REFERENCE / "t5_v1_0.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["shared.weight"]}, tmp_path / "m.safetensors")
    config = T5Config(
        **{**CONFIG.__dict__, "mlp_activations": ("relu",), "logits_via_embedding": True}
    )
    leaves = flat(checkpoints.from_hugging_face(tmp_path / "m.safetensors", config, 40, KEY))
    assert "decoder/logits_dense/kernel" not in leaves


def test_wrong_files_end_in_one_line(tmp_path):
    def refused(message, config=CONFIG, rows=40, path=V1_1):
        with pytest.raises(UserError, match=message) as caught:
            checkpoints.from_hugging_face(path, config, rows, KEY)
        assert "\n" not in str(caught.value)

    refused("expected a file of safetensors, found no", path=tmp_path / "none")
    (tmp_path / "text").write_text("not tensors at all")
    refused("found .*, which is none", path=tmp_path / "text")
    refused("size and version", path=REFERENCE / "t5_v1_0.safetensors")
    refused("size and version", config=T5Config(**{**CONFIG.__dict__, "num_encoder_layers": 3}))
    refused("of shape", config=T5Config(**{**CONFIG.__dict__, "emb_dim": 13}))
    refused("up to 40 rows of text, found 41", config=with_vocabulary(50), rows=41)
    refused("up to 30 rows of text, found 40", config=with_vocabulary(30))
    save_file({"bert.pooler.weight": np.zeros((2, 2), np.float32)}, tmp_path / "bert")
    refused("expected parameters of a T5, found 'bert.pooler.weight'", path=tmp_path / "bert")
    name = "decoder.block.0.layer.0.SelfAttention.q.weight"
    other = name.replace("SelfAttention", "CrossAttention")
    tensors = load_file(V1_1)
    save_file(tensors | {other: np.zeros_like(tensors[name])}, tmp_path / "twice")
    refused(f"each parameter of a T5 once, found '{other}' and '{name}'", path=tmp_path / "twice")


def test_wrong_t5x_folders_end_in_one_line(tmp_path):
    def refused(message):
        with pytest.raises(UserError, match=message):
            checkpoints.from_t5x(tmp_path / "c", CONFIG, 40, KEY)

    refused("expected a T5X checkpoint")
    params = checkpoints.from_hugging_face(V1_1, CONFIG, 40, KEY)
    write_t5x(tmp_path / "c", params)
    (tmp_path / "c" / "target.token_embedder.embedding" / ".zarray").unlink()
    refused("expected an array token_embedder/embedding")
    (tmp_path / "c" / "checkpoint").write_bytes(serialization.msgpack_serialize({"step": 1}))
    refused("expected optimizer/target")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "c" / "state", {"params": np.zeros(3)})
    refused("expected the tree target")


def test_t5x_arrays_that_claim_more_than_their_files_have(tmp_path):
    params = checkpoints.from_hugging_face(V1_1, CONFIG, 40, KEY)
    write_t5x(tmp_path / "c", params)
    about = tmp_path / "c" / "target.token_embedder.embedding" / ".zarray"
    before = about.read_text()
    # Chunks that are missing read as zeros: this one would take 400 GB.
    about.write_text(json.dumps({**json.loads(before), "shape": [10**11, 1]}))
    with pytest.raises(UserError, match=r"expected an array token_embedder/embedding"):
        checkpoints.from_t5x(tmp_path / "c", CONFIG, 40, KEY)
    about.write_text(before)
    content = serialization.msgpack_restore((tmp_path / "c" / "checkpoint").read_bytes())
    target = content["optimizer"]["target"]
    outside = dict(target["token_embedder"]["embedding"])
    for wrong in ({**outside, "kvstore": {"path": "../other"}}, {"driver": 1}, "text", [1, "x"]):
        target["token_embedder"]["embedding"] = wrong
        (tmp_path / "c" / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
        with pytest.raises(UserError, match=r"expected (an array )?token_embedder/embedding"):
            checkpoints.from_t5x(tmp_path / "c", CONFIG, 40, KEY)
    deep = b"\x81\xa9optimizer\x81\xa6target" + b"\x81\xa1a" * 900 + b"\xc0"
    long = b"\x81\xa9optimizer\xdd\xff\xff\xff\xff"
    for wrong in (deep, long, b"", b"\x81\xa9optimizer\x81\xa6target\xc0"):
        (tmp_path / "c" / "checkpoint").write_bytes(wrong)
        with pytest.raises(UserError, match=r"expected (optimizer/target|no such)") as error:
            checkpoints.from_t5x(tmp_path / "c", CONFIG, 40, KEY)
        assert len(str(error.value)) < 500
