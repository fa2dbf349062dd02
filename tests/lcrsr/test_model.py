"""LCR-SER's network against the NumPy reference, and the invariances it must have."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import numpy_reference
from small_batches import ITEMS, config, forward, ragged_batch, setup

from lcrsr.embedding import fields_of, look_up, touched_rows
from lcrsr.latent_reasoning import final_state
from lcrsr.model import LCRSER, ModelConfig


def to_numpy(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"block": "printed"},
        {"self_context": "printed"},
        {"attention": "scaled_dot"},
        {"attention": "mean"},
        {"layers": 2},
    ],
    ids=str,
)
def test_agrees_with_the_numpy_reference(steps, changes):
    cfg = config(max_steps=steps, **changes)
    batch = ragged_batch()
    model, params, tables = setup(cfg, batch)
    outputs = forward(model, params, tables, batch, steps)
    logits, cross, plain = numpy_reference.forward(
        cfg, to_numpy(params), to_numpy(tables), batch, steps
    )
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-5, atol=2e-5)
    for side in ("rec", "search"):
        for ours, theirs in ((outputs.cross, cross), (outputs.plain, plain)):
            expected = np.array([user[side] for user in theirs]).reshape(6, steps, cfg.width)
            np.testing.assert_allclose(getattr(ours, side), expected, rtol=1e-5, atol=2e-5)


def test_every_k_from_one_pass_equals_separate_runs():
    cfg, batch = config(max_steps=3), ragged_batch()
    model, params, tables = setup(cfg, batch)
    outputs = forward(model, params, tables, batch, 3)
    rows = look_up(tables, batch)
    every = model.apply(
        {"params": params},
        outputs.histories,
        outputs.cross,
        rows["user"],
        rows["candidates"],
        method=LCRSER.score_every_k,
    )
    assert every.shape == (4, 6, 4)
    for k in range(4):
        active = forward(model, params, tables, batch, k).logits
        np.testing.assert_allclose(every[k], active, rtol=1e-5, atol=1e-5)
        cut = {**params}
        for side in ("rec", "search"):
            steps = params[side]["step_positions"][:k]
            cut[side] = {**params[side], "step_positions": steps}
        alone = forward(LCRSER(config(max_steps=k)), cut, tables, batch, k).logits
        np.testing.assert_allclose(every[k], alone, rtol=1e-5, atol=1e-5)
    assert np.abs(every[1:] - every[:-1]).max() > 1e-3, "the steps change the scores"


def test_one_compilation_serves_every_k():
    cfg, batch = config(), ragged_batch()
    model, params, tables = setup(cfg, batch)
    count = 0

    @jax.jit
    def scores(active):
        nonlocal count
        count += 1
        return model.apply(
            {"params": params}, batch, look_up(tables, batch), active, deterministic=True
        ).logits

    results = [scores(jnp.int32(k)) for k in range(4)]
    assert count == 1
    assert not np.allclose(results[0], results[3])


def test_the_catalogue_scores_are_those_of_each_item():
    cfg, batch = config(), ragged_batch()
    model, params, tables = setup(cfg, batch)
    batch["candidates"] = np.tile(np.arange(1, ITEMS + 1, dtype=np.int32), (6, 1))
    outputs = forward(model, params, tables, batch, 2)
    catalogue = model.apply(
        {"params": params},
        outputs.histories,
        outputs.cross,
        jnp.int32(2),
        look_up(tables, batch)["user"],
        tables["item"][1:],
        method=LCRSER.score,
    )
    np.testing.assert_allclose(catalogue, outputs.logits, rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing():
    cfg, batch = config(), ragged_batch()
    model, params, tables = setup(cfg, batch)
    wide = {**batch}
    wide["query_words"] = np.pad(batch["query_words"], ((0, 0), (0, 0), (0, 3)))
    wide["clicked_items"] = np.pad(batch["clicked_items"], ((0, 0), (0, 0), (0, 2)))
    long_cfg = config(rec_length=9, search_length=7)
    wide["rec_items"] = np.pad(batch["rec_items"], ((0, 0), (0, 4)))
    wide["query_words"] = np.pad(wide["query_words"], ((0, 0), (0, 3), (0, 0)))
    wide["clicked_items"] = np.pad(wide["clicked_items"], ((0, 0), (0, 3), (0, 0)))
    longer = {**params}
    for side, extra in (("rec", 4), ("search", 3)):
        positions = jnp.pad(params[side]["positions"], ((0, extra), (0, 0)), constant_values=9.0)
        longer[side] = {**params[side], "positions": positions}
    short = forward(model, params, tables, batch, 3).logits
    padded = forward(LCRSER(long_cfg), longer, tables, wide, 3).logits
    np.testing.assert_allclose(short, padded, rtol=1e-5, atol=1e-5)


def test_the_order_of_the_batch_changes_nothing():
    cfg, batch = config(), ragged_batch()
    model, params, tables = setup(cfg, batch)
    order = np.array([3, 1, 5, 0, 2, 4])
    moved = forward(model, params, tables, {k: v[order] for k, v in batch.items()}, 3).logits
    still = forward(model, params, tables, batch, 3).logits
    np.testing.assert_allclose(moved, still[order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("side", ["rec", "search"])
def test_the_encoders_are_causal(side):
    cfg, batch = config(), ragged_batch()
    model, params, tables = setup(cfg, batch)
    changed = {k: v.copy() for k, v in batch.items()}
    if side == "rec":
        changed["rec_items"][0, 3] = changed["rec_items"][0, 3] % ITEMS + 1
    else:
        changed["query_words"][0, 3, 0] = changed["query_words"][0, 3, 0] % 15 + 1
    before = getattr(forward(model, params, tables, batch, 0).histories, side).hidden[0]
    after = getattr(forward(model, params, tables, changed, 0).histories, side).hidden[0]
    np.testing.assert_array_equal(before[:3], after[:3])
    assert np.abs(before[3] - after[3]).max() > 1e-3


def test_gradients_are_finite_where_everything_is_empty():
    cfg, batch = config(), ragged_batch()
    for name in ("rec_items", "query_words", "clicked_items"):
        batch[name][:] = 0
    model, params, tables = setup(cfg, batch)
    touched, values = touched_rows(tables, batch)

    def total(params, values):
        rows = fields_of(values, touched, batch)
        outputs = model.apply({"params": params}, batch, rows, jnp.int32(3), deterministic=True)
        return outputs.logits.sum()

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(params, values)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert np.abs(gradients[0]["rec"]["empty_start"]).max() > 0


def test_final_state_is_the_active_steps():
    states = jnp.arange(12.0).reshape(2, 3, 2)
    start = jnp.array([[-1.0, -2.0], [-3.0, -4.0]])
    np.testing.assert_array_equal(final_state(states, start, jnp.int32(0)), start)
    np.testing.assert_array_equal(final_state(states, start, jnp.int32(2)), states[:, 1])


def test_bfloat16_computes_close_to_float32():
    batch = ragged_batch()
    model, params, tables = setup(config(), batch)
    exact = forward(model, params, tables, batch, 3).logits
    half = forward(LCRSER(config(dtype="bfloat16")), params, tables, batch, 3).logits
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, exact, rtol=0.1, atol=0.15)
    assert np.abs(half - exact).max() > 0


def test_dropout_is_random_in_training_only():
    cfg = config(dropout=0.5)
    batch = ragged_batch()
    model, params, tables = setup(cfg, batch)
    rows = look_up(tables, batch)

    @jax.jit
    def train(seed):
        return model.apply(
            {"params": params},
            batch,
            rows,
            jnp.int32(3),
            deterministic=False,
            rngs={"dropout": jax.random.key(seed)},
        ).logits

    assert not np.allclose(train(0), train(1))
    np.testing.assert_array_equal(train(0), train(0))
    still = forward(LCRSER(config()), params, tables, batch, 3).logits
    np.testing.assert_array_equal(forward(model, params, tables, batch, 3).logits, still)


@pytest.mark.parametrize(
    "changes", [{"block": "pre_ln"}, {"heads": 3}, {"max_steps": -1}, {"dtype": "float8"}], ids=str
)
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ValueError, match="expected"):
        ModelConfig(width=8, **({"heads": 2} | changes))
