"""CL4SRec: its views and its contrast by hand; without contrast it is SASRec."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcrsr.baselines import cl4srec, sasrec

LENGTH, WIDTH = 5, 8
ENCODER = {
    "width": WIDTH,
    "layers": 1,
    "heads": 2,
    "dropout": 0.3,
    "init_scale": 0.5,
    "rec_length": LENGTH,
    "loss": "full_cross_entropy",
}


def settings(**changes):
    contrast = {"temperature": 1.0, "crop": 0.6, "hide": 0.4, "reorder": 0.6}
    return cl4srec.Settings(**(ENCODER | contrast | {"contrastive_weight": 0.1} | changes))


def test_the_contrast_by_hand():
    users, counts = jnp.array([1, 2]), jnp.array([True, True])
    apart = jnp.eye(2)
    value = cl4srec.nt_xent(apart, apart, users, counts, 1.0)
    assert float(value) == pytest.approx(np.log(1 + 2 / np.e), abs=1e-6)
    equal = jnp.ones((2, 2))
    value = cl4srec.nt_xent(equal, equal, users, counts, 1.0)
    assert float(value) == pytest.approx(np.log(3), abs=1e-6)
    # A higher temperature brings the first nearer to the second: products 1/2 and 0.
    value = cl4srec.nt_xent(apart, apart, users, counts, 2.0)
    assert float(value) == pytest.approx(np.log(1 + 2 * np.exp(-0.5)), abs=1e-6)


def test_who_is_no_negative():
    vectors = jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0], [2.0, 1.0]])
    users = jnp.array([1, 2, 9, 1])
    # The third is padding, the fourth of the first one's user.
    counts = jnp.array([True, True, False, True])
    value = cl4srec.nt_xent(vectors, vectors, users, counts, 1.0)
    # The first and the fourth meet the second's two views, the second the views of both.
    first = np.log(np.e + 2) - 1
    second = np.log(np.e + 2 + 2 * np.e) - 1
    fourth = np.log(np.exp(5) + 2 * np.e) - 5
    assert float(value) == pytest.approx((first + second + fourth) / 3, abs=1e-5)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def drawn(function, counts, length, share):
    """Returns what `function` draws for each count of events, with each of 200 keys."""
    keys = jax.random.split(jax.random.key(0), 200)
    each = jax.vmap(lambda key, count: function(key, count, length, share), (0, None))
    return jax.vmap(each, (None, 0))(keys, counts)


def test_a_crop_of_a_share_is_in_one_piece_and_can_lie_anywhere():
    # .6 of 5 is 3, and of 2 is 1; .7 of 10 is 7 and not 6.99.
    five, two = np.asarray(drawn(cl4srec.cropped, jnp.array([5, 2]), LENGTH, 0.6))
    assert {tuple(row) for row in five.tolist()} == {
        (0, 1, 2, -1, -1), (1, 2, 3, -1, -1), (2, 3, 4, -1, -1)
    }  # fmt: skip
    assert {tuple(row) for row in two.tolist()} == {(0, -1, -1, -1, -1), (1, -1, -1, -1, -1)}
    ten = np.asarray(drawn(cl4srec.cropped, jnp.array([10]), 10, 0.7))
    assert ((ten >= 0).sum(-1) == 7).all()


def test_events_are_hidden_at_random_places():
    four, one = np.asarray(drawn(cl4srec.hidden_places, jnp.array([4, 1]), LENGTH, 0.5))
    assert (four.sum(1) == 2).all() and not four[:, 4].any() and not one.any()
    assert len({tuple(row) for row in four.tolist()}) == 6


def test_a_piece_is_shuffled_and_nothing_is_lost():
    four = np.asarray(drawn(cl4srec.reordered, jnp.array([4]), LENGTH, 0.5))[0]
    assert {tuple(row) for row in four.tolist()} == {
        (0, 1, 2, 3, -1), (1, 0, 2, 3, -1), (0, 2, 1, 3, -1), (0, 1, 3, 2, -1)
    }  # fmt: skip


@functools.partial(jax.jit, static_argnums=1)
def pairs(counts, length):
    keys = jax.random.split(jax.random.key(1), 100)
    draw = functools.partial(cl4srec.two_views, length=length, crop=0.6, hide=0.6, reorder=0.8)
    return jax.vmap(lambda key: jax.vmap(lambda count: draw(key, count))(counts))(keys)


def test_two_views_are_made_in_different_ways():
    places, hidden = (np.asarray(part) for part in pairs(jnp.array([5, 1, 0]), LENGTH))
    ways = set()
    for views, masks in zip(places[:, 0], hidden[:, 0], strict=True):
        kinds = [
            "crop" if -1 in view else "hide" if mask.any() else "reorder"
            for view, mask in zip(views, masks, strict=True)
        ]
        assert kinds[0] != kinds[1]
        ways.add(tuple(kinds))
    assert len(ways) == 6
    # A history of one event, and an empty one, are left alone.
    assert (places[:, 1] == [0, -1, -1, -1, -1]).all() and (places[:, 2] == -1).all()
    assert not hidden[:, 1:].any()


def batch_and_rows():
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.standard_normal((9, WIDTH)), jnp.float32).at[0].set(0.0)
    batch = {
        "user": np.arange(1, 5, dtype=np.int32),
        "rec_items": np.array(
            [[1, 2, 3, 4, 5], [2, 4, 6, 0, 0], [8, 0, 0, 0, 0], [0, 0, 0, 0, 0]], np.int32
        ),
        "candidates": np.array([[6, 1], [5, 1], [7, 1], [3, 1]], np.int32),
        "mask": np.ones(4, np.float32),
    }
    return batch, {"rec_items": table[batch["rec_items"]]}, {"item": table}


def test_without_contrast_it_is_sasrec_bit_for_bit():
    batch, rows, tables = batch_and_rows()
    plain = sasrec.ranker(sasrec.Settings(**ENCODER))
    ours = cl4srec.ranker(settings(contrastive_weight=0.0))
    results = []
    for ranker in (plain, ours):
        params = ranker.init(jax.random.key(0), batch, rows)
        rest = {"batch": batch, "rows": rows, "tables": tables, "key": jax.random.key(3)}
        of_params = functools.partial(ranker.loss, **rest)
        (value, _), gradients = jax.jit(jax.value_and_grad(of_params, has_aux=True))(params)
        results.append((params, value, gradients))
    (params, value, gradients), (our_params, our_value, our_gradients) = results
    assert value == our_value
    assert not our_gradients.pop("mask_row").any()
    our_params.pop("mask_row")
    jax.tree.map(np.testing.assert_array_equal, (params, gradients), (our_params, our_gradients))


def test_contrast_is_added_and_leaves_the_next_item_loss_alone():
    batch, rows, tables = batch_and_rows()
    values = {}
    for weight in (0.0, 2.0):
        ranker = cl4srec.ranker(settings(contrastive_weight=weight))
        params = ranker.init(jax.random.key(0), batch, rows)
        values[weight] = ranker.loss(params, batch, rows, tables, jax.random.key(3))
    (plain, _), (total, stats) = values[0.0], values[2.0]
    assert float(stats["full_cross_entropy"]) == pytest.approx(float(plain), rel=1e-6)
    assert float(total) == pytest.approx(float(plain + 2 * stats["contrast"]), rel=1e-6)
    assert 0 < float(stats["contrast"]) < 50


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="crop from 0 to 1"):
        settings(crop=1.5)
    with pytest.raises(ValueError, match="contrastive_weight of 0 or more"):
        settings(contrastive_weight=-0.1)
