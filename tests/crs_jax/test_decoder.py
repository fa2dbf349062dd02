"""The decoder against Hugging Face's Qwen3, its cache, its packed rows and its sharding."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from core.errors import UserError
from crs_jax import decoder_checkpoints
from crs_jax.decoder import Decoder, Segment, init_params, logical_axes
from crs_jax.decoder_config import DecoderConfig, of_size

REFERENCE = pathlib.Path(__file__).parent.parent / "reference" / "qwen3"
FILE = REFERENCE / "qwen3.safetensors"
SIZES = {"width": 12, "layers": 2, "heads": 6, "kv_heads": 2, "head_dim": 4, "mlp_dim": 20}
CONFIG = DecoderConfig(text_rows=40, new_rows=5, **SIZES)
KEY = jax.random.key(0)


def changed(**values):
    return DecoderConfig(**{**CONFIG.__dict__, **values})


def reference():
    params = decoder_checkpoints.from_hugging_face(FILE, CONFIG, KEY)
    with np.load(REFERENCE / "qwen3.npz") as arrays:
        return params, dict(arrays)


def rows(tokens):
    """Tokens, positions and segment ids of whole rows [B, 1, Q]."""
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return tokens[:, None], positions[:, None], np.ones_like(tokens)[:, None]


@functools.partial(jax.jit, static_argnums=0)
def read(config, params, *given):
    return Decoder(config).apply({"params": params}, *given, method="read")


@functools.partial(jax.jit, static_argnums=0)
def states_of(config, params, *given):
    return Decoder(config).apply({"params": params}, *given)


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


def test_logits_equal_hugging_face_s():
    params, arrays = reference()
    tokens, positions, segments = rows(arrays["tokens"])
    logits = read(CONFIG, params, tokens, positions, segments * arrays["valid"][:, None])[:, 0]
    assert logits.shape == (3, 13, 45)
    valid = arrays["valid"]
    np.testing.assert_allclose(logits[..., :40][valid], arrays["logits"][valid], atol=1e-4)


def test_step_by_step_logits_equal_hugging_face_s_cache():
    params, arrays = reference()
    network = Decoder(CONFIG)

    @jax.jit
    def step(token, position, past):
        ones = jnp.ones_like(token)
        states, own = network.apply(
            {"params": params}, token, jnp.full_like(token, position), ones, past
        )
        return network.apply({"params": params}, states, method="logits"), own

    past: tuple[Segment, ...] = ()
    for place in range(3):
        token = arrays["tokens"][:, place][:, None, None]
        logits, own = step(token, place, past)
        np.testing.assert_allclose(
            logits[:, 0, 0, :40], arrays["cached_logits"][:, place], atol=1e-4
        )
        past = (*past, Segment(*own, jnp.ones((3, 1, 1), bool)))


def test_rows_that_share_segments_are_as_if_alone():
    """A prompt for all rows of a user, and a part of the rest for every two of them."""
    params, _ = reference()
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, 45, (2, 6))
    middle = rng.integers(0, 45, (2, 3, 4))
    last = rng.integers(0, 45, (2, 6, 2))
    apply = functools.partial(states_of, CONFIG, params)
    _, shared = apply(*rows(prompt))
    prompts = Segment(*shared, jnp.asarray(np.arange(6) < [[[6]], [[4]]]))
    start = np.array([6, 4])[:, None, None]

    def positions(tokens, before):
        return np.broadcast_to(start + before + np.arange(tokens.shape[-1]), tokens.shape)

    _, own = apply(middle, positions(middle, 0), np.ones_like(middle), (prompts,))
    middles = Segment(*own, jnp.ones((2, 3, 4), bool))
    states, _ = apply(last, positions(last, 4), np.ones_like(last), (prompts, middles))
    for user, length, chosen in ((0, 6, (0, 3, 5)), (1, 4, (2,))):
        for row in chosen:
            whole = np.concatenate([prompt[user, :length], middle[user, row // 2], last[user, row]])
            padded = np.pad(whole, (0, 12 - len(whole)))[None]
            alone = apply(*rows(padded))[0][:, :, : len(whole)]
            np.testing.assert_allclose(states[user, row], alone[0, 0, -2:], atol=1e-5)


def test_packed_examples_are_as_if_alone():
    params, arrays = reference()
    tokens = arrays["tokens"][:1]
    segments = np.array([[1] * 5 + [2] * 6 + [0] * 2])
    packed, _ = states_of(CONFIG, params, *rows(tokens)[:2], segments[:, None])
    alone, _ = states_of(CONFIG, params, *rows(np.pad(tokens[:, 5:11], ((0, 0), (0, 7)))))
    # Rotary positions are relative: where a packed example starts does not matter.
    np.testing.assert_allclose(packed[0, 0, 5:11], alone[0, 0, :6], atol=1e-5)


@pytest.mark.slow
def test_remat_and_bfloat16_and_new_rows():
    params, arrays = reference()
    given = rows(arrays["tokens"] + 5)  # up to 44: new rows among them

    def logits(config):
        return read(config, params, *given)

    plain = logits(CONFIG)
    np.testing.assert_allclose(logits(changed(remat=True)), plain, atol=1e-6)
    half = logits(changed(dtype="bfloat16"))
    assert half.dtype == jnp.float32
    assert 1e-4 < np.std(half - plain) < 0.05 * np.std(plain)
    moved = {**params, "embedder": {**params["embedder"]}}
    moved["embedder"]["new_embedding"] = params["embedder"]["new_embedding"] + 1.0
    other = read(CONFIG, moved, *given)
    assert np.abs(other[..., 40:] - plain[..., 40:]).max() > 0.1


def test_lora_starts_at_nothing_and_then_adds():
    config = changed(lora_rank=2, lora_alpha=4.0)
    params, arrays = reference()
    own = decoder_checkpoints.from_hugging_face(FILE, config, KEY)
    given = rows(arrays["tokens"])
    plain = read(CONFIG, params, *given)
    # The new rows are drawn alike, so that all logits agree.
    np.testing.assert_allclose(read(config, own, *given), plain, atol=1e-6)
    query = own["layers"]["attention"]["query"]
    query["lora_b"] = jnp.ones_like(query["lora_b"])
    added = params["layers"]["attention"]["query"]["kernel"] + 2.0 * query["lora_a"].sum(
        -1, keepdims=True
    )
    params["layers"]["attention"]["query"]["kernel"] = added
    expected = read(CONFIG, params, *given)
    np.testing.assert_allclose(read(config, own, *given), expected, atol=1e-5)


def test_sizes_are_qwen3_s():
    for size, millions in (("0.6b", 596.0), ("1.7b", 1720.6), ("4b", 4022.5)):
        shapes = jax.eval_shape(lambda s=size: init_params(of_size(s, 151_936, 1), KEY))
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        # The published checkpoints' own counts.
        assert count / 1e6 == pytest.approx(millions, abs=0.06), size
    with pytest.raises(UserError, match=r"expected a decoder size of tiny, .*found '8b'"):
        of_size("8b", 10, 10)


@pytest.mark.slow
def test_sharded_by_logical_axes_the_logits_stay_the_same():
    """2 x 4 devices: FSDP over `data`, tensor parallel over `model`."""
    config = of_size("tiny", 32, 8, kv_heads=4)
    params = init_params(config, KEY)
    given = rows(np.random.default_rng(0).integers(0, 40, (4, 6)))
    plain = read(config, params, *given)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    rules = {"embed": "data", "vocab": "model", "heads": "model", "mlp": "model"}
    axes = logical_axes(params)
    specs = jax.tree.map(
        lambda names: NamedSharding(mesh, PartitionSpec(*[rules.get(n) for n in names])),
        axes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    placed = jax.device_put(params, specs)
    kernel = placed["layers"]["mlp"]["gate"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 32, 48)
    split = jax.device_put(given, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(read(config, placed, *split), plain, atol=1e-5)


def test_a_checkpoint_in_several_files_and_the_new_rows(tmp_path):
    tensors = load_file(FILE)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    index = {name: file for file, held in parts.items() for name in held}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert decoder_checkpoints.checkpoint_rows(tmp_path) == 40
    leaves = flat(decoder_checkpoints.from_hugging_face(tmp_path, changed(new_rows=1000), KEY))
    expected = flat(decoder_checkpoints.from_hugging_face(FILE, CONFIG, KEY))
    new = np.asarray(leaves.pop("embedder/new_embedding"))
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, expected[name], name)
    table = tensors["model.embed_tokens.weight"]
    np.testing.assert_allclose(new.mean(0), table.mean(0), atol=0.02 * table.std(0).max())
    np.testing.assert_allclose(new.std(0), 0.1 * table.std(0), rtol=0.15)


def test_other_architectures_are_refused_by_their_first_tensor(tmp_path):
    def refused(message, tensors=None, config=CONFIG):
        path = FILE
        if tensors is not None:
            path = tmp_path / "other.safetensors"
            save_file(tensors, path)
        with pytest.raises(UserError, match=message) as caught:
            decoder_checkpoints.from_hugging_face(path, config, KEY)
        assert "\n" not in str(caught.value)

    tensors = load_file(FILE)
    norm = "model.layers.0.self_attn.q_norm.weight"
    # Qwen2 and Llama have no norms of queries and keys.
    refused(
        f"expected the tensor {norm} of Qwen3, found none",
        {name: array for name, array in tensors.items() if "_norm" not in name},
    )
    bias = {"model.layers.0.self_attn.q_proj.bias": np.zeros(24, np.float32)}
    refused("only tensors of Qwen3, found model.layers.0.self_attn.q_proj.bias", tensors | bias)
    refused(
        r"expected model.layers.0.mlp.gate_proj.weight of shape \[21, 12\], found \[20, 12\]",
        config=changed(mlp_dim=21),
    )
    refused("expected the tensor model.layers.2.input_layernorm.weight", config=changed(layers=3))
    table = tensors["model.embed_tokens.weight"]
    own = {"lm_head.weight": table + np.eye(*table.shape, dtype=np.float32)}
    refused(r"output layer is its embedding.* found one of its own \(lm_head", tensors | own)
    refused("found one of its own", tensors | {"lm_head.weight": table[:-1]})
    path = tmp_path / "other.safetensors"
    for repeated, tied in ((True, False), (False, True)):
        more = {"lm_head.weight": table.copy()} if repeated else {}
        save_file(tensors | more, path)
        (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
        decoder_checkpoints.check(path, CONFIG)
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": false}')
    refused("found one of its own", tensors)
    # Qwen3-4B of July 2025 has the shapes of the first one and other rotary positions.
    for about in ({"rope_theta": 5000000}, {"rope_parameters": {"rope_theta": 5e6}}):
        (tmp_path / "config.json").write_text(json.dumps(about))
        refused(r"rope_theta of 1e\+06 .*pass --config.model.rope_theta=5000000", tensors)
        decoder_checkpoints.check(path, changed(rope_theta=5e6))
    (tmp_path / "config.json").write_text('{"rms_norm_eps": 1e-5}')
    refused("rms_norm_eps of 1e-06 as config.model.norm_epsilon, found 1e-05", tensors)
    for about in (
        {"rope_scaling": {"type": "yarn"}},
        {"rope_scaling": "yarn"},
        {"rope_scaling": {"rope_type": "yarn", "type": "default"}},
        {"rope_parameters": {"rope_type": "yarn"}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(about))
        refused("rotary positions that are not scaled, found rope_.* of 'yarn'", tensors)
    for about in (
        {"rope_scaling": None},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_type": "default"}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(about))
        decoder_checkpoints.check(path, CONFIG)
    (tmp_path / "config.json").write_text("{")
    refused("expected the settings of a checkpoint at .*config.json", tensors)
    (tmp_path / "config.json").unlink()
    broken = tensors["model.norm.weight"].copy()
    broken[3] = np.nan
    refused(
        "finite weights, found nan in model.norm.weight", tensors | {"model.norm.weight": broken}
    )
    (tmp_path / "text").write_text("not tensors at all")
    with pytest.raises(UserError, match="which is none"):
        decoder_checkpoints.from_hugging_face(tmp_path / "text", CONFIG, KEY)
    with pytest.raises(UserError, match=r"found no .*model\.safetensors"):
        decoder_checkpoints.checkpoint_rows(tmp_path)
