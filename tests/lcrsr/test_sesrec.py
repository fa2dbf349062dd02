"""SESRec: the split and the losses by hand, what it reads, what it learns."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from announced_batches import REC, SEARCHES, batch_of, trained

from lcrsr.baselines import sesrec
from lcrsr.embedding import look_up


def settings(**changes):
    return sesrec.Settings(
        **{
            "width": 8,
            "hidden": 8,
            "layers": 1,
            "heads": 2,
            "dropout": 0.0,
            "init_scale": 0.5,
            "loss": "bce",
            "mlp_widths": (16, 8),
            "alignment_weight": 0.1,
            "alignment_temperature": 0.5,
            "alignment_pairs": 16,
            "triplet_weight": 0.1,
            "margin": 0.1,
            "rec_length": REC,
            "search_length": SEARCHES,
        }
        | changes
    )


def test_the_split_by_hand():
    weights = jnp.array([[0.5, 0.25, 0.25, 0.0], [0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    mask = jnp.array([[True, True, True, False], [True, True, False, False], [False] * 4])
    similar, dissimilar = sesrec.split(weights, mask)
    assert similar.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False] * 4,
    ]
    # Equal weights leave nothing dissimilar: the part becomes all events.
    assert dissimilar.tolist() == [
        [False, True, True, False],
        [True, True, False, False],
        [False] * 4,
    ]


def test_the_triplet_loss_by_hand():
    parts = sesrec.Parts(
        rows=jnp.array([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]]),
        mask=jnp.array([[True, True, False]]),
        weights=jnp.array([[0.75, 0.25, 0.0]]),
        similar=jnp.array([[True, False, False]]),
        dissimilar=jnp.array([[False, True, False]]),
    )
    # Anchor (2.25, 1): 1.25 from (3, 0) and 3.75 from (0, 4).
    assert float(sesrec.triplet(parts, 3.0)[0]) == pytest.approx(1.25 - 3.75 + 3.0, abs=1e-5)
    assert float(sesrec.triplet(parts, 2.0)[0]) == 0.0


def test_co_attention_by_hand():
    rec = jnp.array([[[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]])
    search = jnp.array([[[2.0, 0.0], [0.0, 0.0]]])
    masks = jnp.array([[True, True, False]]), jnp.array([[True, True]])
    module = sesrec.CoAttention()
    kernel = {"kernel": jnp.eye(2), "rec": jnp.array([1.0, 3.0]), "search": jnp.array([0.5, 0.0])}
    of_rec, of_search = module.apply({"params": kernel}, rec, search, *masks)
    # Affinities: click 1 with search 1 tanh(2), all others 0; w.x is 1 and 3, w.y is 1 and 0.
    t = np.exp(np.tanh(2.0))
    np.testing.assert_allclose(of_rec[0], [t / (t + 1), 1 / (t + 1), 0.0], atol=1e-6)
    np.testing.assert_allclose(of_search[0], [t / (t + 1), 1 / (t + 1)], atol=1e-6)


@pytest.mark.slow
@pytest.mark.trains
def test_learns_what_a_search_announces_and_reads_no_padding():
    ranker = sesrec.ranker(settings())
    state, stats = trained(ranker)
    assert np.isfinite(stats["loss"]) and stats["triplet"] < 0.1

    @jax.jit
    def scored(batch):
        rows = look_up(state["tables"], batch)
        users = ranker.represent(state["params"], batch, rows)
        scores = ranker.score(state["params"], users, rows)
        items = state["tables"]["item"]
        return scores, ranker.score_catalogue(state["params"], users, rows, items)

    batch = batch_of(np.random.default_rng(1), 200)
    batch["rec_items"][0] = 0
    batch["query_words"][1] = batch["clicked_items"][1] = 0
    batch["rec_items"][2] = 0
    batch["query_words"][2] = batch["clicked_items"][2] = 0
    scores, catalogue = scored(batch)
    assert np.isfinite(scores).all()
    assert np.mean(np.argmax(scores, 1) == 0) > 0.8
    own = np.take_along_axis(np.asarray(catalogue), batch["candidates"], 1)
    np.testing.assert_allclose(scores, own, rtol=1e-3, atol=1e-3)
    # The merged order is not its to read.
    moved = batch | {"rec_order": batch["rec_order"] * 0, "search_order": batch["search_order"] * 0}
    np.testing.assert_array_equal(scored(moved)[0], scores)


def test_gradients_are_finite_where_histories_are_empty():
    batch = batch_of(np.random.default_rng(2), 8)
    batch["rec_items"][:] = 0
    batch["query_words"][:4] = batch["clicked_items"][:4] = 0
    ranker = sesrec.ranker(settings())
    rng = np.random.default_rng(0)
    tables = {
        name: jnp.asarray(rng.standard_normal((30, 8)), jnp.float32) for name in ranker.tables
    }
    params = ranker.init(jax.random.key(0), batch, look_up(tables, batch))

    def loss(params, tables, batch):
        rows = look_up(tables, batch)
        return ranker.loss(params, batch, rows, tables, jax.random.key(0))[0]

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, tables, batch)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="hidden divisible by heads"):
        settings(heads=3)
    with pytest.raises(ValueError, match="mlp_widths"):
        settings(mlp_widths=())
