"""ReaRec: its losses by hand, and reasoning as one pass over the longer sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcrsr.baselines import rearec
from lcrsr.history_encoder import Dropout

LENGTH, WIDTH = 4, 8


def settings(**changes):
    return rearec.Settings(
        **{
            "width": WIDTH,
            "layers": 2,
            "heads": 2,
            "dropout": 0.0,
            "init_scale": 0.5,
            "rec_length": LENGTH,
            "variant": "prl",
            "reasoning_steps": 2,
            "temperature": 0.5,
            "temperature_decay": 3.0,
            "progressive_weight": 0.5,
            "contrastive_weight": 0.25,
            "noise": 0.0,
        }
        | changes
    )


def logits_of(*distributions):
    return jnp.log(jnp.array([[[0.0, *p] for p in distributions]]))


def test_the_regulariser_by_hand():
    logits = logits_of((0.5, 0.5), (0.25, 0.75))
    first = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    second = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    penalty = rearec.pushed_apart(logits)
    np.testing.assert_allclose(penalty, [(first + second) / 2], rtol=1e-5)
    # Three steps have six ordered pairs; two equal ones add nothing.
    three = rearec.pushed_apart(logits_of((0.5, 0.5), (0.5, 0.5), (0.25, 0.75)))
    np.testing.assert_allclose(three, [2 * (first + second) / 6], rtol=1e-5)
    # What a step is pushed away from is fixed.
    gradient = jax.grad(lambda x: rearec.pushed_apart(x).sum())(logits)
    p, log_ratio = np.array([0.5, 0.5]), np.log([2.0, 2 / 3])
    expected = p * (log_ratio - (p * log_ratio).sum()) / 2
    np.testing.assert_allclose(gradient[0, 0], [0.0, *expected], atol=1e-6)


def test_the_contrastive_loss_by_hand():
    states = jnp.array([[[1.0]], [[2.0]], [[50.0]]])
    noised = jnp.array([[[3.0]], [[1.0]], [[1.0]]])
    losses = rearec.contrasted(states, noised, jnp.array([1.0, 1.0, 0.0]))
    # Products 3 and 6 for the first user, 1 and 2 for the second; the third is padding.
    expected = [np.log(np.exp(3) + np.exp(6)) - 3, np.log(np.exp(1) + np.exp(2)) - 2]
    np.testing.assert_allclose(losses[:2], expected, rtol=1e-6)


@pytest.fixture(scope="module")
def run():
    network = rearec.Network(settings())
    rows = jax.random.normal(jax.random.key(0), (3, LENGTH, WIDTH))
    valid = jnp.arange(LENGTH) < jnp.array([[4], [2], [0]])
    params = network.init(jax.random.key(1), rows, valid, deterministic=True)["params"]
    # Biases and step embeddings of a size that is seen.
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(2), p.shape), params)
    states = network.apply({"params": params}, rows, valid, deterministic=True)
    return network, params, rows, valid, states


def test_reasoning_is_one_pass_over_the_sequence_with_its_states_appended(run):
    network, params, rows, _, states = run
    assert states.shape == (3, 3, WIDTH)

    def whole(module):
        """The full first user's sequence and both appended inputs, causally masked, at once."""
        steps = states[:1, :2] + module.steps
        x = rows[:1] * WIDTH**0.5 + module.positions
        x = jnp.concatenate([x, steps], 1)
        mask = jnp.tril(jnp.ones((1, LENGTH + 2, LENGTH + 2), bool))
        out, _ = module.through(x, [None, None], mask, Dropout(None, 0.0))
        return module.last_norm(out)

    hidden = network.apply({"params": params}, method=whole)
    np.testing.assert_allclose(hidden[0, LENGTH - 1 :], states[0], atol=2e-5)
    # The steps are not all the same state.
    assert np.abs(np.diff(states[0], axis=0)).max() > 1e-2


def test_padding_is_not_read_and_noise_of_zero_changes_nothing(run):
    network, params, rows, valid, states = run
    other = rows.at[1, 2:].set(9.0).at[2, 1:].set(9.0)
    found, noised = network.apply(
        {"params": params},
        other,
        valid,
        deterministic=True,
        noised=True,
        rngs={"noise": jax.random.key(0)},
    )
    np.testing.assert_allclose(found, states, atol=1e-5)
    np.testing.assert_allclose(noised, states[:, 1:], atol=1e-5)


def test_prl_teaches_early_steps_at_higher_temperatures(run):
    _, params, rows, valid, states = run
    ranker = rearec.ranker(settings())
    table = jax.random.normal(jax.random.key(5), (6, WIDTH)).at[0].set(0.0)
    batch = {
        "rec_items": np.asarray(valid, np.int32),
        "candidates": np.array([[1, 2], [3, 1], [5, 1]], np.int32),
        "mask": np.array([1.0, 1.0, 0.0], np.float32),
    }
    total, stats = ranker.loss(
        params, batch, {"rec_items": rows}, {"item": table}, jax.random.key(0)
    )
    logits = np.asarray(states @ table.T, np.float64)[:, :, 1:]

    def cross_entropy(step, temperature):
        scaled = logits[:2, step] / temperature
        own = scaled[[0, 1], [0, 2]]
        return (np.log(np.exp(scaled).sum(-1)) - own).mean()

    assert float(stats["cross_entropy"]) == pytest.approx(cross_entropy(2, 0.5), rel=1e-4)
    progressive = (cross_entropy(0, 0.5 * 9) + cross_entropy(1, 0.5 * 3)) / 2
    assert float(stats["progressive"]) == pytest.approx(progressive, rel=1e-4)
    expected = stats["cross_entropy"] + 0.5 * progressive + 0.25 * stats["contrastive"]
    assert float(total) == pytest.approx(float(expected), rel=1e-4)


def test_each_variant_ranks_with_its_own_state():
    states = jnp.arange(12.0).reshape(1, 3, 4)
    erl = rearec.ranker(settings(variant="erl")).user(states)
    prl = rearec.ranker(settings(variant="prl")).user(states)
    assert erl.tolist() == [[4.0, 5.0, 6.0, 7.0]] and prl.tolist() == [[8.0, 9.0, 10.0, 11.0]]


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="variant"):
        settings(variant="base")
    with pytest.raises(ValueError, match="reasoning_steps above 0"):
        settings(reasoning_steps=0)
