"""Eq. 9, 11, 12: hand-worked, and each reading's value against the rejected one."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.tables import gather_touched, touched
from lcrsr import losses


def side(start, states):
    return jnp.asarray(start, jnp.float32), jnp.asarray(states, jnp.float32)


def contrastive(target, cross, plain, **changes):
    values = {"margin": 0.1, "distance_kind": "cosine", "stop_gradient": "none"} | changes
    arrays = [jnp.asarray(x, jnp.float32) for x in (target, cross, plain)]
    return losses.contrastive(*arrays, jnp.full(len(target), 1 / len(target)), **values)


def test_distances_by_hand():
    a, b = jnp.array([[3.0, 4.0]]), jnp.array([[3.0, 0.0]])
    assert float(losses.distance(a, b, "cosine")[0]) == pytest.approx(1 - 0.6, abs=1e-6)
    assert float(losses.distance(a, b, "euclidean")[0]) == pytest.approx(4.0, abs=1e-6)


@pytest.mark.parametrize("kind", losses.DISTANCES)
def test_distances_have_finite_gradients_at_zero_and_at_equality(kind):
    for a, b in (([0.0, 0.0], [1.0, 0.0]), ([1.0, 1.0], [1.0, 1.0]), ([0.0, 0.0], [0.0, 0.0])):
        gradient = jax.grad(lambda a, b=b: losses.distance(a, jnp.array(b), kind))(jnp.array(a))
        assert np.isfinite(gradient).all()


def test_the_hinge_of_two_users_by_hand():
    # User 1: d(e, h) = 0, d(e, h~) = 1: max(0 - 1 + .1, 0) = 0.
    # User 2: d(e, h) = 1, d(e, h~) = 0: 1.1. The mean over users is .55, not the sum 1.1.
    target = [[1.0, 0.0], [1.0, 0.0]]
    cross, plain = [[2.0, 0.0], [0.0, 3.0]], [[0.0, 1.0], [1.0, 0.0]]
    loss, near, far = contrastive(target, cross, plain)
    assert float(loss) == pytest.approx(0.55, abs=1e-5)
    assert float(near) == pytest.approx(0.5, abs=1e-5)
    assert float(far) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    ("stop", "moves"),
    [
        ("none", (True, True, True)),
        ("h_plain", (True, True, False)),
        ("both", (False, True, False)),
    ],
)
def test_who_moves_under_each_stop_gradient(stop, moves):
    arrays = [jnp.array([[1.0, 0.2]]), jnp.array([[0.1, 1.0]]), jnp.array([[1.0, 0.5]])]

    def loss(*arrays):
        return losses.contrastive(
            *arrays, jnp.ones(1), margin=0.1, distance_kind="cosine", stop_gradient=stop
        )[0]

    gradients = jax.grad(loss, argnums=(0, 1, 2))(*arrays)
    assert tuple(bool(np.any(g)) for g in gradients) == moves


@flax.struct.dataclass
class Side:
    start: jax.Array
    mask: jax.Array


@flax.struct.dataclass
class Both:
    rec: object
    search: object


@flax.struct.dataclass
class FakeOutputs:
    histories: Both
    cross: Both
    plain: Both


def outputs(rec_real, search_real):
    start, states = jnp.ones((2, 2)), jnp.array([[[0.0, 1.0]], [[0.0, 1.0]]])
    histories = Both(
        Side(start, jnp.array(rec_real)[:, None]), Side(start, jnp.array(search_real)[:, None])
    )
    plain = jnp.array([[[1.0, 0.0]], [[1.0, 0.0]]])
    return FakeOutputs(histories, Both(states, states), Both(plain, plain))


def total(rec_real, search_real, active=1, mask=(1.0, 1.0)):
    # Each side and user: d(e, h) = 1, d(e, h~) = 0, hinge 1.1.
    value, _ = losses.contrastive_from_outputs(
        outputs(rec_real, search_real),
        jnp.array([[1.0, 0.0], [1.0, 0.0]]),
        jnp.int32(active),
        jnp.array(mask),
        margin=0.1,
        distance="cosine",
        stop_gradient="none",
    )
    return float(value)


def test_both_sides_add_and_an_empty_history_of_either_kind_gives_zero():
    assert total([True, True], [True, True]) == pytest.approx(2.2, abs=1e-4)
    # The user without searches counts in the mean, with zero on both sides.
    assert total([True, True], [True, False]) == pytest.approx(1.1, abs=1e-4)
    assert total([False, False], [True, True]) == 0.0


def test_no_steps_no_contrast_and_padding_is_no_user():
    assert total([True, True], [True, True], active=0) == 0.0
    assert total([True, True], [True, True], mask=(1.0, 0.0)) == pytest.approx(2.2, abs=1e-4)


def test_bce_is_the_mean_over_pairs():
    # Logits 0 cost log 2 each, whatever the label; 2 users x 5 pairs.
    logits, labels = jnp.zeros((2, 5)), jnp.eye(1, 5).repeat(2, 0)
    assert float(losses.bce(logits, labels, jnp.ones(2))) == pytest.approx(np.log(2), abs=1e-6)
    # A padded user is out of the mean: its wrong, confident logits change nothing.
    logits = logits.at[1].set(50.0)
    masked = losses.bce(logits, labels, jnp.array([1.0, 0.0]))
    assert float(masked) == pytest.approx(np.log(2), abs=1e-6)


def test_bce_is_stable_at_extreme_logits():
    value = losses.bce(jnp.array([[1e4, -1e4]]), jnp.array([[0.0, 1.0]]), jnp.ones(1))
    assert float(value) == pytest.approx(1e4)


def test_l2_counts_a_touched_row_once_and_no_bias():
    rows = touched(jnp.array([2, 2, 1, 0], jnp.int32), 3)
    table = jnp.array([[0.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    params = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(7, 100.0)}
    # 4 * 2^2 + 3^2 + 2^2 = 29; counting row 2 twice would give 38.
    value = losses.l2(params, [gather_touched(table, rows)])
    assert float(value) == pytest.approx(29.0)


def test_distillation_by_hand_and_zero_where_scores_agree_up_to_a_shift():
    teacher = jnp.log(jnp.array([[3.0, 1.0], [1.0, 1.0]]))
    # KL of (.75, .25) from (.5, .5); the second row is no user.
    by_hand = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    loss = losses.distillation(jnp.zeros((2, 2)), teacher, jnp.array([1.0, 0.0]))
    assert float(loss) == pytest.approx(by_hand, rel=1e-5)
    same = losses.distillation(teacher + 5.0, teacher, jnp.ones(2))
    assert float(same) == pytest.approx(0.0, abs=1e-6)
