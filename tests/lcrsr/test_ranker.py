"""Parameters are drawn without the pass that `init` computes, and to the same bits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcrsr.ranker import drawn_parameters


class Network(nn.Module):
    @nn.compact
    def __call__(self, rows, ids, *, deterministic):
        hidden = nn.Dense(5)(jnp.where(ids[..., None] != 0, rows, 0.0))
        hidden = nn.Dropout(0.5)(hidden, deterministic=deterministic)
        jax.debug.callback(lambda hidden: passes.append(1), hidden)
        return nn.Dense(3, kernel_init=nn.initializers.normal(0.1))(hidden)


passes: list[int] = []


def test_parameters_are_those_of_init_without_its_pass():
    inputs, key = (jnp.ones((2, 4, 7)), np.ones((2, 4), np.int32)), jax.random.key(3)
    params = drawn_parameters(Network(), key, *inputs)
    jax.effects_barrier()
    assert not passes
    expected = Network().init({"params": key}, *inputs, deterministic=True)["params"]
    jax.effects_barrier()
    assert passes
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    # Also where `init` is traced, as by a mesh or by `jax.eval_shape`.
    shapes = jax.eval_shape(lambda key: drawn_parameters(Network(), key, *inputs), key)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, expected)
