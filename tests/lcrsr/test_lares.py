"""LARES: its refinement, steps and contrasts by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lares as lares_config
from core.errors import UserError
from experiments.methods import check_settings
from lcrsr.baselines import lares

LENGTH, WIDTH = 4, 8


def settings(**changes):
    return lares.Settings(
        **{
            "width": WIDTH,
            "ffn_width": 6,
            "layers": 1,
            "core_layers": 1,
            "heads": 2,
            "dropout": 0.0,
            "init_scale": 0.5,
            "loss": "full_cross_entropy",
            "rec_length": LENGTH,
            "mean_steps": 2,
            "start_scale": 3.0,
            "target_weight": 0.1,
            "step_weight": 0.5,
            "temperature": 1.0,
        }
        | changes
    )


def test_every_step_halves_the_way_to_the_encoding_where_the_core_does_nothing():
    start, encoded = jnp.full((1, 1, 1), 8.0), jnp.zeros((1, 1, 1))
    run = jax.jit(
        lambda steps, earlier: lares.refined(
            lambda mean, number: mean, start, encoded, steps, earlier, 6
        )
    )
    last, earlier = run(3, 1)
    assert (last.item(), earlier.item()) == (1.0, 4.0)
    # The last step may be the earlier one; without steps the start is left.
    assert [state.item() for state in run(2, 2)] == [2.0, 2.0]
    assert run(0, 0)[0].item() == 8.0
    away = lares.refined(lambda mean, number: mean, start, encoded + 4, 3, 1, 6)[0]
    assert away.item() == 4 + (8 - 4) / 2**3


def test_trajectories_go_on_to_the_longest_of_them():
    starts, encoded = jnp.array([8.0, -8.0]).reshape(2, 1, 1, 1), jnp.zeros((1, 1, 1))
    states = jax.jit(
        lambda steps: lares.trajectories(
            lambda mean, number: mean, starts, encoded, steps, 4, lambda states: states[0, 0]
        )
    )(jnp.array([1, 3]))
    assert states[..., 0].T.tolist() == [[4, 2, 1, 1], [-4, -2, -1, -1]]


def test_the_second_stage_by_hand():
    # Three steps at most, two trajectories of one and of three, one example and one that is none.
    rng = np.random.default_rng(0)
    log_prob = jnp.asarray(np.log(rng.uniform(0.1, 0.9, (3, 2, 2))), jnp.float32)
    steps, mask = jnp.array([1, 3]), jnp.array([1.0, 0.0])
    rewards = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    advantage = lares.advantages(rewards)
    # The sample deviation of 1 and 0 is the root of a half.
    expected = 0.5 / (np.sqrt(0.5) + 1e-4)
    np.testing.assert_allclose(advantage, [[expected, -expected], [-expected, expected]], rtol=1e-5)
    assert not lares.advantages(jnp.ones((4, 2))).any()

    def loss(log_prob, reference):
        return lares.policy_loss(log_prob, reference, advantage, steps, mask, 0.5)

    (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(log_prob, log_prob)
    assert float(value) == pytest.approx(0.0, abs=1e-6) and float(stats["kl"]) == 0.0
    assert float(stats["unequal_groups"]) == 1.0
    # Each step of a trajectory has 1 / (G T) of -A; steps that were not taken have nothing.
    wanted = np.zeros((3, 2, 2))
    wanted[0, 0, 0] = -expected / 2
    wanted[:, 1, 0] = expected / 6
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5)
    # Away from the reference by log 2, k3 = 2 - log 2 - 1 at each step, of both trajectories alike.
    far = jax.jit(loss)(log_prob, log_prob + np.log(2))
    k3 = 1 - np.log(2)
    assert float(far[1]["kl"]) == pytest.approx(k3, rel=1e-5)
    assert float(far[0]) == pytest.approx(0.5 * k3, rel=1e-5)


def test_the_second_stage_moves_the_network_alone(run):
    batch, _, tables, params = run
    ranker, first = lares.ranker(settings()), {"params": params, "tables": tables}
    values = {"trajectories": 4, "reward": "hr@1", "lambda_kl": 0.5, "within": 9}
    task = ranker_task(ranker, lares.ReinforceSettings(**values), first, batch)
    state, stats = jax.jit(task.train_step)(task.init(), batch, jnp.float32(1e-3))
    assert np.isfinite(stats["loss"]) and float(stats["counted"]) == 1.0
    assert 0 < float(stats["reward"]) < 1 and abs(float(stats["kl"])) < 1e-6
    np.testing.assert_array_equal(state["tables"]["item"], tables["item"])
    jax.tree.map(np.testing.assert_array_equal, state["reference"]["params"], params)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state["params"], params)
    assert max(jax.tree.leaves(moved)) > 1e-4
    # Where all trajectories have one reward, the policy that is the reference has no gradient.
    same = ranker_task(ranker, lares.ReinforceSettings(**values | {"reward": "hr@8"}), first, batch)
    rows = {"rec_items": tables["item"][batch["rec_items"]]}
    gradient = jax.jit(jax.grad(same.loss, argnums=1, has_aux=True))(
        same.init(), params, rows, batch, jax.random.key(0), same.numbers
    )[0]
    assert max(np.abs(g).max() for g in jax.tree.leaves(gradient)) < 1e-5


def test_targets_that_are_nowhere_near_do_not_count_in_the_second_stage(run):
    batch, rows, tables, params = run
    ranker, first = lares.ranker(settings(start_scale=0.1)), {"params": params, "tables": tables}
    scores = represented(settings(), params, batch, rows) @ tables["item"][1:].T
    last = batch | {"candidates": 1 + np.argsort(scores)[:, :2].astype(np.int32)}
    for within, counted in ((1, 0.0), (8, 1.0)):
        config = lares.ReinforceSettings(
            trajectories=2, reward="hr@1", lambda_kl=0.5, within=within
        )
        task = ranker_task(ranker, config, first, last)
        _, stats = jax.jit(task.train_step)(task.init(), last, jnp.float32(1e-3))
        assert float(stats["counted"]) == counted


def ranker_task(ranker, config, initial, batch):
    return lares.policy_task(
        ranker,
        config,
        initial=initial,
        batches=lambda step: iter([batch]),
        steps_per_epoch=1,
        batch_size=len(batch["mask"]),
        evaluate=lambda params, tables: {},
        selection="ndcg@5/neg99",
        seed=0,
    )


def test_steps_are_drawn_about_their_mean():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: lares.steps_drawn(key, 4)))(keys))
    assert drawn.min() == 1 and drawn.max() == 12
    # The rate's mean is 4, one more step is certain, and 12 cuts a little off.
    assert 4.7 < drawn.mean() < 5.0


def test_the_partner_is_the_next_history_of_the_same_target():
    targets = jnp.array([7, 8, 7, 9, 7, 8])
    counts = jnp.array([True, True, True, True, True, False])
    partners = lares.next_of_target(targets, counts)
    assert partners[:5].tolist() == [2, 1, 4, 3, 0]


def test_the_contrast_by_hand():
    eye = jnp.eye(3, 2)
    # The third is no negative and does not count.
    others = jnp.array([[False, True, False], [True, False, False], [True, True, False]])
    counts = jnp.array([True, True, False])
    value = lares.contrasted(eye, 2 * eye, others, counts, 1.0)
    assert float(value) == pytest.approx(np.log(1 + np.exp(-2)), abs=1e-6)
    # Both directions: rows have products (2, 0) and (1, 0), columns (2, 1) and (0, 0).
    first, second = jnp.array([[2.0, 0.0], [1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    value = lares.contrasted(first, second, others[:2, :2], counts[:2], 1.0)
    rows = [np.log(np.exp(2) + 1) - 2, np.log(np.exp(1) + 1)]
    columns = [np.log(np.exp(2) + np.exp(1)) - 2, np.log(2)]
    assert float(value) == pytest.approx((sum(rows) + sum(columns)) / 4, abs=1e-6)


@pytest.fixture(scope="module")
def run():
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.standard_normal((9, WIDTH)), jnp.float32).at[0].set(0.0)
    batch = {
        "user": np.arange(1, 5, dtype=np.int32),
        "rec_items": np.array([[1, 2, 3, 4], [2, 4, 0, 0], [8, 0, 0, 0], [0, 0, 0, 0]], np.int32),
        "candidates": np.array([[6, 1], [6, 1], [7, 1], [0, 0]], np.int32),
        "mask": np.array([1.0, 1.0, 1.0, 0.0], np.float32),
    }
    rows = {"rec_items": table[batch["rec_items"]]}
    params = lares.ranker(settings()).init(jax.random.key(0), batch, rows)
    return batch, rows, {"item": table}, params


@functools.partial(jax.jit, static_argnums=0)
def represented(given, params, batch, rows):
    return lares.ranker(given).represent(params, batch, rows)


def test_scores_do_not_move_from_call_to_call_and_depend_on_the_steps(run):
    batch, rows, _, params = run
    states = represented(settings(), params, batch, rows)
    np.testing.assert_array_equal(represented(settings(), params, batch, rows), states)
    assert np.isfinite(states).all()
    further = represented(settings(mean_steps=5), params, batch, rows)
    assert np.abs(further - states).max() > 1e-3


@pytest.mark.parametrize("weights", [(0.0, 0.0), (2.0, 0.0), (0.0, 2.0)])
def test_the_contrasts_are_weighed(run, weights):
    batch, rows, tables, params = run
    target_weight, step_weight = weights
    ranker = lares.ranker(settings(target_weight=target_weight, step_weight=step_weight))
    loss = jax.jit(ranker.loss)
    total, stats = loss(params, batch, rows, tables, jax.random.key(0))
    expected = stats["full_cross_entropy"]
    if any(weights):
        expected += target_weight * stats["target_contrast"] + step_weight * stats["step_contrast"]
        # Where there is one step, none is earlier: of 20 updates some have one, some have more.
        each = [loss(params, batch, rows, tables, jax.random.key(n))[1] for n in range(20)]
        assert all(float(stats["target_contrast"]) > 0 for stats in each)
        assert 0 < sum(float(stats["step_contrast"]) > 0 for stats in each) < 20
    assert float(total) == pytest.approx(float(expected), rel=1e-6)


def test_training_starts_from_noise(run):
    batch, rows, tables, params = run
    losses = []
    for scale in (0.0, 3.0):
        plain = settings(start_scale=scale, target_weight=0.0, step_weight=0.0)
        loss = jax.jit(lares.ranker(plain).loss)
        losses.append(float(loss(params, batch, rows, tables, jax.random.key(4))[0]))
    assert abs(losses[0] - losses[1]) > 1e-3


def test_impossible_settings_of_the_second_stage_are_refused():
    for key, value, words in (
        ("trajectories", 1, "trajectories of 2 or more, found 1"),
        ("reward", "clicks", "rl.reward as a metric"),
        ("within", 0, "within above 0"),
        ("lambda_kl", -1.0, "lambda_kl of 0 or more"),
        ("negatives", 5, "found 'negatives'; correct the name"),
    ):
        config = lares_config.get_config("qilin,rl")
        check_settings(config)
        config.rl[key] = value
        with pytest.raises(UserError, match=words):
            check_settings(config)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="mean_steps above 0"):
        settings(mean_steps=0)
    with pytest.raises(ValueError, match="width divisible by heads"):
        settings(heads=3)
