"""JSR, NRHUB, Query-SeqRec, USER and UnifiedSSR: what they learn, and what they must not read."""

import functools
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from announced_batches import ITEMS, REC, SIZES, USERS, batch_of, trained

from configs import baseline
from core.errors import UserError
from experiments.methods import open_experiment
from experiments.resolve import resolve
from input_pipelines.dataset import Dataset
from lcrsr.baselines import jsr, nrhub, query_seqrec, unified_ssr, user
from lcrsr.embedding import init_tables, look_up

OF_ALL = {"width": 8, "dropout": 0.0, "init_scale": 0.5}
TWO_TASKS = OF_ALL | {"search_weight": 1.0}
RANKERS = {
    "jsr": (jsr, TWO_TASKS | {"mlp_widths": (16,), "loss": "bce"}),
    "nrhub": (nrhub, OF_ALL | {"attention_width": 8, "kernel": 3, "loss": "bce"}),
    "nrhub_ce": (
        nrhub,
        OF_ALL | {"attention_width": 8, "kernel": 3, "loss": "full_cross_entropy"},
    ),
    "query_seqrec": (
        query_seqrec,
        OF_ALL
        | {"length": 10, "layers": 2, "heads": 2, "loss": "full_cross_entropy"}
        | {"replaced_items": 0.0, "replaced_queries": 0.0},
    ),
    "user": (user, TWO_TASKS | {"heads": 2, "session": 2, "loss": "cross_entropy"}),
    "unified_ssr": (
        unified_ssr,
        TWO_TASKS
        | {"inner": 16, "layers": 1, "heads": 2, "sessions": 2, "loss": "bce"}
        | {"correlation_weight": 0.1, "user_scale": 0.1},
    ),
}
SEARCHING = ("jsr", "user", "unified_ssr")


def ranker_of(name, **changes):
    module, values = RANKERS[name]
    return module.ranker(module.Settings(**values | changes))


@functools.cache
def made(name):
    """A ranker, parameters with random biases and norms, and tables."""
    ranker = ranker_of(name)
    tables = init_tables(jax.random.key(0), width=8, scale=0.5, **SIZES)
    tables = {table: tables[table] for table in ranker.tables}
    example = batch_of(np.random.default_rng(0), 8)
    params = ranker.init(jax.random.key(1), example, look_up(tables, example))
    rng = np.random.default_rng(0)
    shaken = jax.tree.map(lambda p: p + 0.3 * rng.standard_normal(p.shape).astype("f"), params)
    return ranker, shaken, tables


@functools.partial(jax.jit, static_argnums=0)
def scored(ranker, params, tables, batch):
    """Scores of the candidates, of the catalogue, and of the catalogue for a `query`."""
    rows = look_up(tables, batch)
    if "query" in batch:
        users = ranker.represent(params, batch, rows)
        items, query = tables["item"], batch["query"]
        return None, None, ranker.score_query(params, users, rows, items, query)
    users = ranker.represent(params, batch, rows)
    catalogue = ranker.score_catalogue(params, users, rows, tables["item"])
    return ranker.score(params, users, rows), catalogue, None


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(ranker, params, tables, batch):
    def loss(params, tables):
        rows = look_up(tables, batch)
        return ranker.loss(params, batch, rows, tables, jax.random.key(0))[0]

    return jax.value_and_grad(loss, argnums=(0, 1))(params, tables)


def with_empty(batch):
    """Users without clicks, without searches, without anything, and searches without words."""
    for row in (0, 2):
        batch["rec_items"][row] = batch["rec_order"][row] = 0
    for row in (1, 2):
        batch["query_words"][row] = batch["clicked_items"][row] = batch["search_order"][row] = 0
    batch["query_words"][3] = 0
    batch["clicked_items"][3, 0] = 5
    return batch


@pytest.mark.parametrize("name", RANKERS)
def test_scores_ignore_padding_the_batch_and_the_other_candidates(name):
    ranker, params, tables = made(name)
    batch = with_empty(batch_of(np.random.default_rng(5), 8))
    scores, catalogue, _ = scored(ranker, params, tables, batch)
    assert np.isfinite(scores).all()
    assert np.std(scores) > 1e-3
    # A user's own candidates and the catalogue are scored alike.
    own = np.take_along_axis(np.asarray(catalogue), batch["candidates"], 1)
    np.testing.assert_allclose(scores, own, atol=1e-4)
    # The other users of a batch have no part in a user's scores.
    turned = {field: value[::-1] for field, value in batch.items()}
    np.testing.assert_allclose(scored(ranker, params, tables, turned)[0][::-1], scores, atol=1e-5)
    # Nor what padded places of the orders hold, labels, or a longer padding.
    longer = {field: value for field, value in batch.items()}
    longer["labels"] = batch["labels"][:, ::-1]
    for order, events in (("rec_order", "rec_items"), ("search_order", "clicked_items")):
        there = batch[events].reshape(*batch[events].shape[:2], -1).any(-1)
        if order == "search_order":
            there |= batch["query_words"].any(-1)
        longer[order] = np.where(there, batch[order], 6).astype(np.int32)
    np.testing.assert_allclose(scored(ranker, params, tables, longer)[0], scores, atol=1e-5)


@pytest.mark.parametrize("name", SEARCHING)
def test_a_query_is_answered_for_its_words_alone(name):
    ranker, params, tables = made(name)
    batch = with_empty(batch_of(np.random.default_rng(6), 8))
    query = np.random.default_rng(7).integers(1, ITEMS, (8, 3)).astype(np.int32)
    query[:, 2] = 0
    query[5] = 0  # a query without words
    scores = scored(ranker, params, tables, batch | {"query": query})[2]
    assert np.isfinite(scores).all()
    padded = np.pad(query, ((0, 0), (0, 2)))
    again = scored(ranker, params, tables, batch | {"query": padded})[2]
    np.testing.assert_allclose(again, scores, atol=1e-5)
    other = query.copy()
    other[0, 0] = 1 + other[0, 0] % ITEMS
    moved = np.abs(scored(ranker, params, tables, batch | {"query": other})[2] - scores).max(1)
    assert moved[0] > 1e-3
    assert moved[1:].max() < 1e-5
    assert ranker.tasks == ("recommendation", "search")
    assert ranker_of(name, search_weight=0.0).tasks == ("recommendation",)


@pytest.mark.parametrize("name", RANKERS)
def test_losses_and_gradients_are_finite(name):
    ranker, params, tables = made(name)
    batch = with_empty(batch_of(np.random.default_rng(8), 8, 4 if name in SEARCHING else 0))
    batch["mask"][7] = 0

    value, gradients = value_and_gradients(ranker, params, tables, batch)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    # Rows that are no examples count nothing.
    other = batch | {"candidates": batch["candidates"].copy()}
    other["candidates"][7] = [3, 1, 2, 4, 5]
    again, _ = value_and_gradients(ranker, params, tables, other)
    assert float(again) == pytest.approx(float(value), abs=1e-5)


def own_item(rng, size=48, search_rows=0):
    """Each user has an item of their own; clicks count up to the target."""
    batch = batch_of(rng, size, search_rows)
    length = rng.integers(1, REC + 1, size)
    place = np.arange(REC)
    if search_rows:
        length[size - search_rows :] = 1
    target = batch["candidates"][:, 0]
    rec = 1 + (target[:, None] - 1 - length[:, None] + place) % ITEMS
    batch["rec_items"] = np.where(place < length[:, None], rec, 0).astype(np.int32)
    batch["user"] = (1 + (target - 1) * USERS // ITEMS).astype(np.int32)
    return batch


# JSR has no history: a user's own row tells which third of the items is theirs. UnifiedSSR's
# recommendations read clicks alone.
PROBLEMS = {"jsr": own_item, "unified_ssr": own_item}


@pytest.mark.parametrize("name", RANKERS)
def test_learns_a_small_problem(name):
    ranker, problem = ranker_of(name), PROBLEMS.get(name, batch_of)
    searches = 24 if name in SEARCHING else 0
    state, stats = trained(ranker, searches, 200, problem)
    assert np.isfinite(stats["loss"])
    batch = problem(np.random.default_rng(1), 200)
    scores = np.asarray(scored(ranker, state["params"], state["tables"], batch)[0])
    least = 0.5 if name == "jsr" else 0.8
    assert np.mean(np.argmax(scores, 1) == 0) > least
    assert np.all(np.asarray(state["tables"]["item"])[0] == 0)
    if searches:
        query = np.stack([batch["candidates"][:, 0], 0 * batch["user"]], 1)
        found = scored(ranker, state["params"], state["tables"], batch | {"query": query})[2]
        assert np.mean(np.argmax(found[:, 1:], 1) + 1 == batch["candidates"][:, 0]) > 0.8


@pytest.mark.parametrize("name", RANKERS)
def test_a_log_without_searches_trains_recommendation_alone(name, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(Path(__file__).parent.parent / "data" / "csv_log", raw)
    header = (raw / "searches.csv").read_text().splitlines()[0]
    (raw / "searches.csv").write_text(header + "\n")
    config = baseline.get_config(f"{name},csv_log")
    config.data_dir, config.cache_dir = str(raw), str(tmp_path / "cache")
    data = Dataset(resolve(config))
    experiment = open_experiment(config, data)
    if name in SEARCHING:
        with pytest.raises(UserError, match=r"found none; set --config\.model\.search_weight=0"):
            experiment.training_batches(0)
        config.model.search_weight = 0.0
        experiment = open_experiment(config, data)
    experiment.check_data()
    batches, _ = experiment.training_batches(0)
    batch = next(batches(0))
    assert not batch["query_words"].any() and "query" not in batch
    assert batch["rec_items"].any()
