"""LTRGR's loss by hand, its scores, and what a generator's beams give it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_gensar import refused, small_config
from test_gensar_baselines import config_of

from core.settings import build
from experiments.methods import open_experiment
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.train import train
from gensar_jax.baselines.ltrgr import RankSettings, hinge, rank_loss, scores_of
from gensar_jax.joint_task import token_losses
from input_pipelines import histories
from input_pipelines.dataset import Dataset

RANK = {
    "searches": 30,
    "candidates": 12,
    "batch_size": 4,
    "updates": 4,
    "evals": 2,
    "learning_rate": 1e-2,
    "margin": 0.5,
    "random_margin": 0.25,
    "cross_entropy": 1.0,
    "ranking": 1.0,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    small = small_config(tmp_path_factory)
    config = config_of(small, "ltrgr", identifiers=small.identifiers)
    config.rank.update(RANK)
    return config


@pytest.fixture(scope="module")
def experiment(config):
    resolved = resolve(config)
    return open_experiment(resolved, Dataset(resolved))


def test_hinges_by_hand():
    positive, negative = jnp.array([2.0]), jnp.array([1.0])
    assert float(hinge(positive, negative, 0.5)) == 0.0
    assert float(hinge(positive, negative, 2.0)) == 1.0


def test_where_no_hinge_pulls_the_gradient_is_that_of_the_cross_entropy():
    settings = build(RankSettings, RANK, section="rank")
    positive = jnp.array([[-0.1, -0.2, 0.0], [-0.3, -0.1, -0.2]])
    worse = positive - 2.0

    def loss(own, others):
        return rank_loss(own, others, others, settings)[0]

    alone = jax.grad(lambda own: -own.sum() / 5)(positive)
    np.testing.assert_array_equal(jax.grad(loss)(positive, worse), alone)
    # Equal items are within both margins: each hinge adds its half.
    close = jax.grad(loss)(positive, positive * 1.0)
    np.testing.assert_allclose(close, alone - 1 / 2, atol=1e-6)
    value, parts = rank_loss(positive, positive, positive, settings)
    assert float(parts["hinge"]) == pytest.approx(0.5 * (0.5 + 0.75))
    assert float(value) == pytest.approx(0.625 + 0.9 / 5)


def test_the_control_is_the_cross_entropy_alone():
    control = build(RankSettings, RANK | {"ranking": 0.0}, section="rank")
    positive = jnp.array([[-0.1, -0.2, 0.0], [-0.3, -0.1, -0.2]])

    def loss(own, others):
        return rank_loss(own, others, others, control)[0]

    # Both hinges pull here, as the statistics tell; the loss does not have them.
    value, parts = rank_loss(positive, positive, positive, control)
    assert float(value) == pytest.approx(0.9 / 5) and float(parts["hinge"]) == pytest.approx(0.625)
    gradient = jax.grad(loss)(positive, positive * 1.0)
    np.testing.assert_array_equal(gradient, jax.grad(lambda own: -own.sum() / 5)(positive))
    assert not jax.grad(loss, 1)(positive, positive * 1.0).any()


def test_scores_are_those_of_the_beam(experiment):
    params = experiment.task.init()["params"]
    tokens = experiment.examples.tokens_of("search")
    searches = experiment.examples.searches.take(np.arange(2))
    inputs = experiment.examples.evaluation_inputs(searches)
    found = experiment._found(params, inputs, 12)
    scores = [
        scores_of(
            experiment.network,
            params,
            jnp.asarray(inputs),
            jnp.zeros(0, jnp.int32),
            jnp.asarray(tokens[found[:, place]]),
        ).sum(1)
        for place in range(12)
    ]
    assert (np.diff(np.stack(scores, 1)) <= 1e-5).all(), "best first"
    logits = experiment.network.apply(
        {"params": params},
        inputs,
        np.pad(tokens[found[:, 0]][:, :-1], ((0, 0), (1, 0))),
        tokens[found[:, 0]],
        enable_dropout=False,
    )
    own = -token_losses(logits, jnp.asarray(tokens[found[:, 0]])).sum(1)
    np.testing.assert_allclose(scores[0], own, atol=1e-5)


def test_negatives_are_what_the_beam_found_beside_every_click_of_the_query(experiment):
    params = experiment.task.init()["params"]
    settings = build(RankSettings, RANK, section="rank")
    ranked = experiment.ranked_searches(params, settings)
    log, every = experiment.data.log, experiment.examples.searches
    assert len(ranked.positive) == 30 and ranked.negatives.shape == (30, 12)
    clicked = {}
    for row, item in zip(every.target_row, every.item):
        clicked.setdefault(histories.query_text(log, int(row)), set()).add(int(item))
    prompts = experiment.examples.prompts
    own_of = {
        tuple(prompts.next_searched_item([], query, 1).inputs): own
        for query, own in clicked.items()
    }
    for inputs, positive, negatives in zip(*ranked):
        own = own_of[tuple(inputs[inputs > 0].tolist())]
        assert positive in own and negatives[0] > 0 and not own & set(negatives.tolist())
    again = experiment.ranked_searches(params, settings)
    assert all((a == b).all() for a, b in zip(ranked, again))


def test_mistakes_end_in_one_line(config, tmp_path):
    def changed(**flat):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({k.replace("__", "."): v for k, v in flat.items()})
        return other

    assert "searches to learn the order of" in refused(changed(mixture__nsip=0), tmp_path)
    assert "candidates of 2 or more, found 1" in refused(changed(rank__candidates=1), tmp_path)
    nothing = changed(rank__ranking=0.0, rank__cross_entropy=0.0)
    assert "config.rank.ranking or cross_entropy above 0" in refused(nothing, tmp_path)
    assert "config.rank.margin above 0" in refused(changed(rank__margin=0.0), tmp_path)


@pytest.mark.slow
def test_a_run_trains_both_stages_and_goes_on_where_it_was(config, tmp_path):
    results = train(config, str(tmp_path / "w"))
    stages = {row["stage"] for row in results["rows"]}
    assert stages == {"joint", "rank"}
    assert Restored(str(tmp_path / "w")).stage == "rank"
    assert train(config, str(tmp_path / "w"))["rows"] == results["rows"]
    # On a mesh whose devices hold parts of the network, each of them ranks whole batches.
    meshed = config.copy_and_resolve_references()
    meshed.mesh.data = meshed.mesh.model = 2
    rows = train(meshed, str(tmp_path / "m"))["rows"]
    for ours, theirs in zip(rows, results["rows"], strict=True):
        assert (ours["stage"], ours["protocol"]) == (theirs["stage"], theirs["protocol"])
        assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=1e-6)
