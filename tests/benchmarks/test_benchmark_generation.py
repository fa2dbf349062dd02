"""The operations that the benchmark divides by are those that XLA counts."""

import functools

import jax
import jax.numpy as jnp
import pytest

from benchmarks import generation
from core import trie as tries
from gensar_jax.generation import generate
from gensar_jax.t5.config import T5Config
from gensar_jax.t5.network import Transformer


def test_operations_worked_by_hand():
    config = T5Config(
        vocab_size=7, emb_dim=2, num_heads=1, head_dim=3, mlp_dim=5, num_encoder_layers=1,
        num_decoder_layers=1,
    )  # fmt: skip
    flops = generation.flops_of_a_user(config, 4, (1, 2), forced=1)
    # Encoder: 4 rows of 4*2*3 + 2*2*5 + 2*4*3; contexts: 4 rows of 2*2*3; decoder: 1 + 1 + 2 rows
    # of 6*2*3 + 2*2*5 + 2*4*3. Logits: 3 rows of 2*7. Two operations each.
    assert flops.network == 2 * (4 * 68 + 4 * 12 + 4 * 80)
    assert flops.logits == 2 * 3 * 14


@pytest.mark.parametrize("gated", [False, True])
def test_operations_are_about_those_of_the_compiled_program(gated):
    config = T5Config(
        vocab_size=3000,
        emb_dim=128,
        num_heads=2,
        head_dim=64,
        mlp_dim=256,
        num_encoder_layers=1,
        num_decoder_layers=1,
        mlp_activations=("gelu", "linear") if gated else ("relu",),
    )
    network = Transformer(config)
    tokens = jnp.ones((2, 32), jnp.int32)
    params = jax.eval_shape(
        lambda: network.init(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False)
    )["params"]
    codes = [[a, b, c] for a in range(8) for b in range(8) for c in range(8)]
    trie = tries.build(jnp.asarray(codes))
    run = jax.jit(functools.partial(generate, network, width=20))
    compiled = run.lower(params, tokens, tokens[:, :1], trie).compile()
    expected = generation.flops_of_a_user(config, 32, (1, 8, 20), forced=1)
    # XLA counts the softmax and other element-wise work too.
    assert sum(expected) * 2 <= compiled.cost_analysis()["flops"] < 1.25 * 2 * sum(expected)


def test_a_random_trie_has_the_codes_of_recommendation():
    trie = generation.random_trie(1000, seed=0)
    assert trie.items.shape == (1000,) and trie.length == 4
    for level, start in enumerate((32003, 32259, 33027, 33283)):
        assert start <= int(trie.tokens[level].min()) <= int(trie.tokens[level].max()) < start + 256
