"""The training task: its batches, what it logs, and a run cut in the middle."""

import dataclasses

import jax
import numpy as np
import pytest

from core.loop import LoopConfig, run_stage
from core.workdir import open_workdir
from gensar_jax.identifier_task import IdentifierTask, TrainingConfig, explained, scaled
from gensar_jax.rqvae import RQVAE, RQVAEConfig

TRAINING = TrainingConfig(
    batch_size=16,
    epochs=4,
    weight_decay=1e-5,
    clip_norm=1.0,
    kmeans_iterations=3,
    revive_after=1.0,
)


def vectors(rows=50):
    rng = np.random.default_rng(0)
    widths = {"semantic": 6, "collaborative": 4}
    return scaled({s: rng.normal(size=(rows, w)).astype(np.float32) for s, w in widths.items()})


def task(rows=50, **changes):
    values = {"widths": (8,), "latent_width": 2, "shared_levels": 1, "specific_levels": 1}
    config = RQVAEConfig(**(values | {"codes": 8} | changes))
    given = {s: v for s, v in vectors(rows).items() if s in config.sources}
    widths = tuple(given[s].shape[1] for s in config.sources)
    return IdentifierTask(RQVAE(config, widths), TRAINING, given, seed=0)


def loop(**changes):
    values = {
        "max_steps": 12,
        "eval_every": 6,
        "checkpoint_every": 2,
        "log_every": 3,
        "learning_rate": 1e-2,
        "min_learning_rate": 1e-2,
        "plateau_factor": 1.0,
        "plateau_patience": 100,
        "stop_patience": 100,
    }
    return LoopConfig(**(values | changes))


def test_scaled_vectors_have_mean_square_1_and_keep_their_cosines():
    rows = {"semantic": np.array([[3.0, 0.0], [0.0, 1.0]])}
    vectors = scaled(rows)["semantic"]
    # Mean square 10 / 4.
    np.testing.assert_allclose(
        vectors, np.array([[3.0, 0.0], [0.0, 1.0]]) / np.sqrt(2.5), rtol=1e-6
    )


def test_an_epoch_shows_items_once_and_can_start_anywhere():
    made = task()
    assert (made.batch_size, made.steps_per_epoch, made.max_steps) == (16, 3, 12)
    stream = made.batches(0)
    first = [next(stream) for _ in range(7)]
    rows = np.concatenate([batch["semantic"] for batch in first[:3]])
    assert len(np.unique(rows, axis=0)) == 48
    later = next(made.batches(6))
    np.testing.assert_array_equal(later["collaborative"], first[6]["collaborative"])
    assert not np.array_equal(first[0]["semantic"], first[3]["semantic"])


def test_a_catalogue_smaller_than_a_batch_is_one_batch():
    made = task(rows=10)
    assert (made.batch_size, made.steps_per_epoch) == (10, 1)


@pytest.mark.slow
def test_a_cut_run_ends_in_the_same_bits(tmp_path):
    whole = run_stage(task(), loop(), open_workdir(str(tmp_path / "a"), {}))

    class Cut(IdentifierTask):
        def batches(self, start_step):
            for number, batch in enumerate(super().batches(start_step)):
                if start_step + number == 8:
                    raise RuntimeError("killed")
                yield batch

    made = task()
    cut = Cut(made.model, TRAINING, vectors(), seed=0)
    workdir = open_workdir(str(tmp_path / "b"), {})
    with pytest.raises(RuntimeError, match="killed"):
        run_stage(cut, loop(), workdir)
    resumed = run_stage(task(), loop(), workdir)
    for ours, theirs in zip(jax.tree.leaves(whole.state), jax.tree.leaves(resumed.state)):
        np.testing.assert_array_equal(ours, theirs)
    codes = [task().assign(r.state["params"]).codes["semantic"] for r in (whole, resumed)]
    np.testing.assert_array_equal(*codes)


def test_training_raises_what_the_codes_explain_and_the_rate_falls_to_0():
    made = task(sinkhorn_epsilon=0.0)
    state = made.init()
    before = made.evaluate(state)
    step = jax.jit(made.train_step)
    stream = made.batches(0)
    for _ in range(12):
        state, values = step(state, next(stream), 1e-2)
    assert set(values) == {"loss", "reconstruction", "rq", "revived"}
    after = made.evaluate(state)
    assert after["explained/catalogue"] > before["explained/catalogue"] + 0.05
    # At the end of the decay nothing moves but by rounding; a step at the full rate is about 1e-2.
    final, _ = step(state, next(stream), 1e-2)
    for ours, theirs in zip(
        jax.tree.leaves(state["params"]["network"]), jax.tree.leaves(final["params"]["network"])
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_explained_variance_is_about_the_mean():
    vectors = np.array([[3.0, 1.0], [3.0, -1.0]], np.float32)

    def of(decoded):
        return explained(vectors, np.square(vectors - decoded).mean(-1))

    assert of(np.array([3.0, 0.0])) == 0.0  # of the vectors' squares it would be .9
    assert of(np.zeros(2)) == -9.0
    assert of(vectors) == 1.0
    assert of(vectors * [1.0, 0.5]) == pytest.approx(0.75)
    assert explained(np.ones((3, 2)), np.full(3, 0.1)) == 0.0


def test_metrics_of_every_level_and_identifier():
    made = task(shared_levels=2)
    state = made.init()
    metrics = made.evaluate(state)
    levels = ("1/shared", "2/shared", "1/semantic", "1/collaborative")
    assert set(metrics) == {f"{n}_{x}" for n in ("usage", "perplexity") for x in levels} | {
        f"{n}/{s}"
        for n in ("collision_rate", "colliding_items", "explained")
        for s in ("semantic", "collaborative")
    } | {"explained/catalogue"}
    codes = made.assign(state["params"]).codes["semantic"]
    assert metrics["usage_1/semantic"] == len(set(codes[:, 2])) / 8
    assert metrics["collision_rate/semantic"] == pytest.approx(
        1 - len(np.unique(codes, axis=0)) / 50
    )


@pytest.mark.parametrize(
    ("changes", "widths"),
    [
        ({"sources": ("semantic",)}, {"semantic": 2}),
        ({"shared_levels": 2, "specific_levels": 0}, {"semantic": 4, "collaborative": 4}),
        ({"shared_levels": 0, "specific_levels": 2}, {"semantic": 2, "collaborative": 2}),
    ],
)
def test_residuals_are_those_of_the_last_codebook(changes, widths):
    made = task(**changes)
    state = made.init()
    assigned = made.assign(state["params"])
    for source, width in widths.items():
        assert assigned.residuals[source].shape == (50, width)
        name = source if made.model.config.specific_levels else "shared"
        book = np.asarray(state["params"]["codebooks"][name][-1])
        gaps = np.square(assigned.residuals[source][:, None] - book).sum(-1)
        assert gaps.argmin(1).tolist() == assigned.codes[source][:, -1].tolist()


def test_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="above 0, found 0"):
        dataclasses.replace(TRAINING, epochs=0)
