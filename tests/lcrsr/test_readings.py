"""Readings of the architecture: examples whose value differs under the rejected reading."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small_batches import config, forward, ragged_batch, setup

from lcrsr import aggregation, attention
from lcrsr.attention import AttentionWeights, FeedForwardWeights, NormWeights
from lcrsr.history_encoder import Dropout, LayerWeights, SideHistory, encode
from lcrsr.latent_reasoning import SideWeights, reason

EYE, ZERO2 = jnp.eye(2), jnp.zeros(2)
NO_DROPOUT = Dropout(None, 0.0)
# Queries of zero: attention is the plain mean of its values, which are the rows themselves.
MEAN = AttentionWeights(jnp.zeros((2, 2)), EYE, EYE, EYE, ZERO2, ZERO2, ZERO2, ZERO2)
NOTHING = MEAN._replace(value=jnp.zeros((2, 2)))
# FFN(x) = relu(x), the identity on the positive numbers used here.
IDENTITY = FeedForwardWeights(EYE, ZERO2, EYE, ZERO2)
NORM = NormWeights(jnp.ones(2), ZERO2)


def layer(msa, mca):
    return LayerWeights(msa, NORM, IDENTITY, NORM, mca, NORM)


def history(inputs, hidden, start):
    rows = jnp.asarray(inputs, jnp.float32).reshape(1, -1, 2)
    mask = jnp.ones(rows.shape[:2], bool)
    if not len(inputs):
        rows, mask = jnp.zeros((1, 1, 2)), jnp.zeros((1, 1), bool)
    hidden = jnp.asarray(hidden, jnp.float32).reshape(1, -1, 2)
    return SideHistory((rows,), hidden, mask, mask, jnp.asarray([start], jnp.float32))


def run(rec, search, *, msa, mca, steps=1, cross=True, self_context="symmetric"):
    """The printed block (no norms, no residual round the FFN) keeps the sums readable."""
    weights = SideWeights((layer(msa, mca),), jnp.zeros((steps, 2)))
    states = reason(
        weights,
        weights,
        rec,
        search,
        rec.start,
        search.start,
        cross=cross,
        heads=1,
        block="printed",
        self_context=self_context,
        dropout=NO_DROPOUT,
    )
    return np.asarray(states.rec[0]), np.asarray(states.search[0])


REC = history([[2.0, 0.0]], [[9.0, 9.0]], [4.0, 0.0])
SEARCH = history([[0.0, 6.0]], [[7.0, 7.0]], [0.0, 2.0])


def test_contexts_hold_inputs_and_step_k_itself():
    # f = mean([2,0], [4,0]) + [4,0] = [7,0]. Encoder outputs ([9,9]) would give [10.5,4.5]; leaving
    # step k's own row out, [2,0] + [4,0] = [6,0].
    rec, _ = run(REC, SEARCH, msa=MEAN, mca=NOTHING)
    np.testing.assert_allclose(rec[0], [7.0, 0.0])


def test_cross_attention_sees_the_other_sides_inputs_and_its_step_row():
    # h = mean([0,6], [0,2]) + [4,0] = [4,4]; without the step's row [4,6].
    rec, search = run(REC, SEARCH, msa=NOTHING, mca=MEAN)
    np.testing.assert_allclose(rec[0], [4.0, 4.0])
    # Symmetric: mean([2,0], [4,0]) + [0,2].
    np.testing.assert_allclose(search[0], [3.0, 2.0])


def test_both_sides_update_from_step_k_minus_1():
    # Step 2 reads h^(1) of the other side: contexts are [0,6], [0,2], [3,2] (search's e^(2)).
    rec, _ = run(REC, SEARCH, msa=NOTHING, mca=MEAN, steps=2)
    np.testing.assert_allclose(rec[1], np.array([4.0, 4.0]) + np.array([1.0, 10 / 3]), rtol=1e-6)


def test_eq_5_symmetric_and_printed():
    # Printed: recommendation's self-attention reads the search context, mean([0,6],[0,2]) + [4,0].
    symmetric, _ = run(REC, SEARCH, msa=MEAN, mca=NOTHING)
    printed, search = run(REC, SEARCH, msa=MEAN, mca=NOTHING, self_context="printed")
    np.testing.assert_allclose(symmetric[0], [7.0, 0.0])
    np.testing.assert_allclose(printed[0], [4.0, 4.0])
    np.testing.assert_allclose(search[0], [0.0, 6.0])  # Eq. 3 is printed as meant


def test_an_empty_side_offers_no_context():
    # Cross-attention over nothing adds zero; counting the empty side's own row would add [0,2].
    empty = history([], [[0.0, 2.0]], [0.0, 2.0])
    rec, search = run(REC, empty, msa=NOTHING, mca=MEAN)
    np.testing.assert_allclose(rec[0], [4.0, 0.0])
    # The empty side itself reasons: mean([2,0], [4,0]) + [0,2].
    np.testing.assert_allclose(search[0], [3.0, 2.0])
    # Its self-attention has its own reasoning rows: mean([0,2]) + [0,2].
    _, alone = run(REC, empty, msa=MEAN, mca=NOTHING)
    np.testing.assert_allclose(alone[0], [0.0, 4.0])


def test_h0_is_the_last_valid_row_and_empty_histories_start_from_the_learned_one():
    rows = jnp.array([[[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0]] * 3])
    mask = jnp.array([[True, True, False], [False, False, False]])
    encoded = encode(
        (layer(NOTHING, NOTHING),),
        rows,
        mask,
        jnp.array([5.0, 6.0]),
        heads=1,
        block="printed",
        dropout=NO_DROPOUT,
    )
    # Attention adds nothing, the FFN is the identity: the rows themselves. H[-1] would be [0,0].
    np.testing.assert_allclose(encoded.start, [[3.0, 4.0], [5.0, 6.0]])
    assert encoded.row_mask.tolist() == [[True, True, False], [True, False, False]]
    np.testing.assert_allclose(encoded.hidden[1, 0], [5.0, 6.0])


@pytest.mark.parametrize(
    ("valid", "expected"),
    [
        ([True, True, True, True], 4.0),
        ([True, True, False, False], 2.0),
        ([True, False, True, True], 4.0),  # three events: row 2 by counting
        ([False, True, False, False], 2.0),  # one event: row 0, which is none, by counting
    ],
)
def test_h0_is_the_last_event_also_behind_a_hole(valid, expected):
    rows = jnp.array([[[1.0] * 2, [2.0] * 2, [3.0] * 2, [4.0] * 2]]) * jnp.array(valid)[:, None]
    encoded = encode(
        (layer(NOTHING, NOTHING),),
        rows,
        jnp.array([valid]),
        jnp.array([9.0, 9.0]),
        heads=1,
        block="printed",
        dropout=NO_DROPOUT,
    )
    assert encoded.start.tolist() == [[expected, expected]]


def test_without_holes_the_last_event_is_the_one_that_counting_finds():
    states = jax.random.normal(jax.random.key(0), (5, 4, 3))
    valid = jnp.arange(4) < jnp.arange(5)[:, None]

    def counted(states):
        last = jnp.maximum(valid.sum(-1) - 1, 0)
        return jnp.take_along_axis(states, last[:, None, None], 1)[:, 0]

    def gradient(last):
        return jax.grad(lambda x: (last(x) ** 3).sum())(states)

    def by_place(states):
        return attention.last_valid(states, valid)

    np.testing.assert_array_equal(by_place(states), counted(states))
    np.testing.assert_array_equal(gradient(by_place), gradient(counted))


def test_eq_8_is_e_v_w_h_and_not_its_transpose():
    # e^T W h = 2 e_1 h_2. Rows h = [0,1], [0,0] and e = [log(3)/2, 0]: logits log 3, 0.
    rows = aggregation.Side((jnp.array([[[0.0, 1.0], [0.0, 0.0]]]),), jnp.ones((1, 2), bool))
    w = jnp.array([[0.0, 2.0], [0.0, 0.0]])
    e = jnp.array([[[np.log(3) / 2, 0.0]]], jnp.float32)
    weights = aggregation.weights_of_rows(rows, w, e, "bilinear")[0, 0]
    np.testing.assert_allclose(weights, [0.75, 0.25], rtol=1e-6)
    transposed = aggregation.weights_of_rows(rows, w.T, e, "bilinear")[0, 0]
    np.testing.assert_allclose(transposed, [0.5, 0.5], rtol=1e-6)


def test_mean_aggregation_counts_valid_rows_and_active_steps_only():
    side = aggregation.Side((jnp.ones((1, 4, 2)),), jnp.array([[True, False, True, False]]))
    weights = aggregation.weights_of_rows(side, EYE, jnp.ones((1, 1, 2)), "mean")[0, 0]
    np.testing.assert_allclose(weights, [0.5, 0.0, 0.5, 0.0])


def test_masked_softmax_of_nothing_is_zero():
    weights = attention.masked_softmax(jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2), bool))
    np.testing.assert_array_equal(weights, [[0.0, 0.0]])


def test_the_pass_without_cross_attention_shares_the_encoder_rows():
    cfg, batch = config(), ragged_batch()
    model, params, tables = setup(cfg, batch)
    outputs = forward(model, params, tables, batch, 3)
    assert np.abs(outputs.cross.rec[0] - outputs.plain.rec[0]).max() > 1e-3
    # A user whose other history is empty has nothing to cross: with the norm of MCA in between,
    # the states differ by that norm alone, so the printed block has none at all.
    printed = config(block="printed")
    model, params, tables = setup(printed, batch)
    outputs = forward(model, params, tables, batch, 3)
    np.testing.assert_allclose(outputs.cross.rec[3], outputs.plain.rec[3], atol=1e-6)


@pytest.mark.parametrize("name", ["rec", "search"])
def test_positions_count_from_the_oldest_kept_event(name):
    cfg, batch = config(), ragged_batch()
    model, params, tables = setup(cfg, batch)
    moved = {**params, name: {**params[name]}}
    moved[name]["positions"] = params[name]["positions"].at[0].add(1.0)
    before = forward(model, params, tables, batch, 0).logits
    after = forward(model, moved, tables, batch, 0).logits
    changed = np.abs(np.asarray(before - after)).max(-1) > 1e-6
    # The first position moves everyone with at least one event, however short the history.
    lengths = {"rec": [5, 2, 0, 3, 0, 1], "search": [4, 1, 3, 0, 0, 2]}[name]
    assert changed.tolist() == [n > 0 for n in lengths]
