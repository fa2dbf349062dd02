"""T5 against Hugging Face's, whose outputs tests/reference/make_t5.py wrote."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.core import unfreeze
from flax.linen import partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core.errors import UserError
from gensar_jax.t5 import checkpoints, layers
from gensar_jax.t5.config import T5Config, of_size
from gensar_jax.t5.network import Transformer

REFERENCE = pathlib.Path(__file__).parent.parent / "reference" / "t5"
SHAPES = {
    "vocab_size": 40,
    "emb_dim": 12,
    "num_heads": 3,
    "head_dim": 5,
    "mlp_dim": 20,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_buckets": 8,
    "max_distance": 16,
}
CONFIGS = {
    "t5_v1_0": T5Config(**SHAPES),
    "t5_v1_1": T5Config(**SHAPES, mlp_activations=("gelu", "linear"), logits_via_embedding=False),
}


@functools.cache
def reference(version):
    params = checkpoints.from_hugging_face(
        REFERENCE / f"{version}.safetensors", CONFIGS[version], 40, jax.random.key(0)
    )
    with np.load(REFERENCE / f"{version}.npz") as arrays:
        return params, dict(arrays)


def cached_logits(network, params, inputs, shifted):
    @jax.jit
    def run(params, inputs, shifted):
        variables = {"params": params}
        encoded = network.apply(variables, inputs, enable_dropout=False, method="encode")
        contexts = network.apply(variables, encoded, method="contexts")
        cache = network.empty_cache(len(inputs))
        out = []
        for place in range(shifted.shape[1]):
            token = shifted[:, place : place + 1]
            logits, cache = network.apply(variables, token, cache, contexts, inputs, method="step")
            out.append(logits[:, 0])
        return jnp.stack(out, 1)

    return run(params, inputs, shifted)


@pytest.mark.parametrize("version", CONFIGS)
def test_logits_equal_hugging_face_s_with_and_without_the_cache(version):
    params, arrays = reference(version)
    network = Transformer(CONFIGS[version])
    logits = jax.jit(functools.partial(network.apply, enable_dropout=False))(
        {"params": params}, arrays["inputs"], arrays["shifted"], arrays["targets"]
    )
    np.testing.assert_allclose(logits, arrays["logits"], atol=1e-4)
    cached = cached_logits(network, params, arrays["inputs"], arrays["shifted"])
    np.testing.assert_allclose(cached, arrays["cached_logits"], atol=1e-4)


@pytest.mark.parametrize("both", [True, False])
def test_buckets_equal_hugging_face_s(both):
    with np.load(REFERENCE / "buckets.npz") as arrays:
        buckets = layers.relative_position_bucket(arrays["relative"], both, 32, 128)
        np.testing.assert_array_equal(buckets, arrays[str(both)])


def test_parameters_have_t5x_s_names_shapes_and_axes():
    config = of_size("t5-v1_1-small", 100)
    variables = jax.eval_shape(
        lambda: Transformer(config).init(
            jax.random.key(0), *[jnp.ones((1, 1), jnp.int32)] * 3, enable_dropout=False
        )
    )
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    axes = traverse_util.flatten_dict(variables["params_axes"], sep="/")
    expected = {
        "token_embedder/embedding": ((100, 512), ("vocab", "embed")),
        "encoder/relpos_bias/rel_embedding": ((6, 32), ("heads", "relpos_buckets")),
        "encoder/layers_7/attention/query/kernel": ((512, 384), ("embed", "joined_kv")),
        "encoder/layers_7/pre_attention_layer_norm/scale": ((512,), ("embed",)),
        "encoder/layers_0/mlp/wi_1/kernel": ((512, 1024), ("embed", "mlp")),
        "encoder/encoder_norm/scale": ((512,), ("embed",)),
        "decoder/layers_3/self_attention/out/kernel": ((384, 512), ("joined_kv", "embed")),
        "decoder/layers_3/encoder_decoder_attention/key/kernel": (
            (512, 384),
            ("embed", "joined_kv"),
        ),
        "decoder/layers_3/pre_cross_attention_layer_norm/scale": ((512,), ("embed",)),
        "decoder/layers_3/mlp/wo/kernel": ((1024, 512), ("mlp", "embed")),
        "decoder/logits_dense/kernel": ((512, 100), ("embed", "vocab")),
    }
    for name, (shape, names) in expected.items():
        assert flat[name].shape == shape, name
        assert axes[f"{name}_axes"].names == names, name
    assert flat.keys() == {name.removesuffix("_axes") for name in axes}


def test_initialisers_are_t5x_s():
    config = of_size("cpu", 4000)
    variables = jax.jit(functools.partial(Transformer(config).init, enable_dropout=False))(
        jax.random.key(0), *[jnp.ones((1, 1), jnp.int32)] * 3
    )
    layer = variables["params"]["encoder"]["layers_0"]
    deviation = {
        "embedding": (variables["params"]["token_embedder"]["embedding"], 1.0),
        # fan-in 128; the query's is divided by the root of the head's width.
        "key": (layer["attention"]["key"]["kernel"], 128**-0.5),
        "query": (layer["attention"]["query"]["kernel"], (128 * 32) ** -0.5),
        "wo": (layer["mlp"]["wo"]["kernel"], 512**-0.5),
    }
    for name, (weights, expected) in deviation.items():
        assert float(weights.std()) == pytest.approx(expected, rel=0.05), name
    # Only the feed-forward kernels are truncated, at two deviations of the normal before scaling.
    assert float(jnp.abs(layer["mlp"]["wo"]["kernel"]).max()) < 2.4 * 512**-0.5
    assert float(jnp.abs(layer["attention"]["key"]["kernel"]).max()) > 3 * 128**-0.5


def test_packed_examples_are_as_if_alone():
    params, arrays = reference("t5_v1_0")
    network = Transformer(CONFIGS["t5_v1_0"])
    inputs, shifted, targets = (arrays[n][0] for n in ("inputs", "shifted", "targets"))
    ids = np.array([[1] * 10 + [2] * 14]), np.array([[1] * 4 + [2] * 5])
    again = shifted.copy()
    again[4] = 0
    apply = jax.jit(functools.partial(network.apply, enable_dropout=False))
    variables = {"params": params}
    packed = apply(variables, inputs[None], again[None], targets[None], *ids)[0]
    one = apply(variables, inputs[None, :10], again[None, :4], targets[None, :4])[0]
    two = apply(variables, inputs[None, 10:], again[None, 4:], targets[None, 4:])[0]
    np.testing.assert_allclose(packed, np.concatenate([one, two]), atol=1e-5)


def test_dropout_changes_logits_and_bfloat16_hardly_does():
    network = Transformer(of_size("tiny-v1_1", 30))
    batch = jnp.asarray(np.random.default_rng(0).integers(1, 30, (3, 2, 5)), jnp.int32)
    params = network.init(jax.random.key(0), *batch, enable_dropout=False)["params"]
    logits = network.apply({"params": params}, *batch, enable_dropout=False)
    apply = jax.jit(lambda key: network.apply({"params": params}, *batch, rngs={"dropout": key}))
    dropped = [np.asarray(apply(jax.random.key(seed))) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.abs(dropped[0] - dropped[2]).max() > 0.1
    half = Transformer(of_size("tiny-v1_1", 30, dtype="bfloat16"))
    rounded = half.apply({"params": params}, *batch, enable_dropout=False)
    cached = cached_logits(half, params, batch[0], batch[1])
    for found in (rounded, cached):
        assert found.dtype == jnp.float32
        assert 1e-4 < np.std(found - logits) < 0.05 * np.std(logits)


def test_data_and_model_parallel_through_logical_axes():
    """2 x 4 devices: heads, feed-forward and vocabulary are split, the logits stay the same."""
    config = of_size("tiny", 48, num_heads=4)
    network = Transformer(config)
    batch = jnp.asarray(np.random.default_rng(0).integers(1, 48, (3, 4, 6)), jnp.int32)
    variables = network.init(jax.random.key(0), *batch, enable_dropout=False)
    plain = network.apply({"params": variables["params"]}, *batch, enable_dropout=False)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    rules = (
        ("batch", "data"),
        ("vocab", "model"),
        ("heads", "model"),
        ("joined_kv", "model"),
        ("mlp", "model"),
        *((name, None) for name in ("embed", "kv", "length", "relpos_buckets")),
    )
    names = unfreeze(partitioning.get_axis_names(variables["params_axes"]))
    specs = jax.tree.map(
        lambda spec: NamedSharding(mesh, nn.logical_to_mesh_axes(spec, rules)),
        names,
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )
    params = jax.device_put(variables["params"], specs)
    kernel = params["encoder"]["layers_0"]["mlp"]["wi"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (16, 8)
    split = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(None, "data")))
    with mesh, partitioning.axis_rules(rules):
        sharded = jax.jit(functools.partial(network.apply, enable_dropout=False))(
            {"params": params}, *split
        )
    np.testing.assert_allclose(sharded, plain, atol=1e-5)


def test_an_unknown_size_is_refused():
    with pytest.raises(UserError, match=r"expected a T5 size of tiny, .*found 't5-huge'"):
        of_size("t5-huge", 10)
