"""QEM, TEM and the CoPPS-like model by hand, what they learn, and runs on searches alone."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from announced_batches import SIZES, batch_of, trained

from configs import qem as qem_config
from configs import tem as tem_config
from core.errors import UserError
from experiments.evaluate import evaluate
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.train import train
from lcrsr.baselines import copps, product_search, qem, tem
from lcrsr.baselines.two_histories import QUIET
from lcrsr.embedding import init_tables, look_up
from serving.export import export_run
from serving.recommender import Recommender

OF_ALL = {"width": 8, "dropout": 0.0, "init_scale": 0.5, "loss": "bce"}
RANKERS = {
    "qem": (qem, OF_ALL),
    "tem": (tem, OF_ALL | {"length": 4, "layers": 2, "heads": 2, "inner": 16}),
    "copps": (
        copps,
        OF_ALL
        | {"length": 4, "layers": 2, "heads": 2, "inner": 16, "contrastive_weight": 0.1}
        | {"temperature": 1.0, "hide": 0.3, "reorder": 0.6},
    ),
}


def searches(rng, size=48, search_rows=0):
    """Batches of searches alone, whose query names the target."""
    del search_rows
    return batch_of(rng, size, size)


@functools.cache
def made(name):
    module, values = RANKERS[name]
    ranker = module.search_ranker(module.Settings(**values))
    tables = init_tables(jax.random.key(0), width=8, scale=0.5, **SIZES)
    tables = {table: tables[table] for table in ranker.tables}
    batch = batch_of(np.random.default_rng(0), 8)
    params = ranker.init(jax.random.key(1), batch, look_up(tables, batch))
    rng = np.random.default_rng(0)
    shaken = jax.tree.map(lambda p: p + 0.3 * rng.standard_normal(p.shape).astype("f"), params)
    return ranker, shaken, tables


@functools.partial(jax.jit, static_argnums=0)
def scored(ranker, params, tables, batch):
    """Scores of the candidates, and of the catalogue for the query."""
    rows = look_up(tables, batch)
    users = ranker.represent(params, batch, rows)
    found = ranker.score_query(params, users, rows, tables["item"], batch["query"])
    return ranker.score(params, users, rows), found


def test_a_query_is_tanh_of_a_map_of_the_mean_of_its_words():
    words = jnp.array([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]], [[5.0, 5.0]] * 3])
    mask = jnp.array([[True, True, False], [False] * 3])
    dense = {"kernel": jnp.array([[2.0, 0.0], [0.0, 4.0]]), "bias": jnp.array([0.0, 0.5])}
    query = product_search.QueryEncoder().apply({"params": {"Dense_0": dense}}, words, mask)
    np.testing.assert_allclose(query, np.tanh([[1.0, 2.5], [0.0, 0.5]]), rtol=1e-6)


def test_purchases_are_clicks_of_both_kinds_in_time_order():
    batch = batch_of(np.random.default_rng(0), 1)
    batch["rec_items"][0], batch["rec_order"][0] = [3, 7, 0, 0], [0, 2, 0, 0]
    batch["clicked_items"][0], batch["search_order"][0] = [[4], [0], [0]], [1, 3, 0]
    tables = made("tem")[2]
    items, valid = product_search.purchases(batch, look_up(tables, batch), 3)
    assert valid.tolist() == [[True] * 3]
    np.testing.assert_array_equal(items[0], tables["item"][jnp.array([3, 4, 7])])
    items, valid = product_search.purchases(batch, look_up(tables, batch), 2)
    np.testing.assert_array_equal(items[0], tables["item"][jnp.array([4, 7])])
    batch["rec_items"][:] = batch["clicked_items"][:] = 0
    items, valid = product_search.purchases(batch, look_up(tables, batch), 3)
    assert not valid.any() and not items.any()


def test_without_its_positions_the_encoder_knows_no_order():
    encoder = product_search.PurchaseEncoder(2, 2, 8)
    items = jax.random.normal(jax.random.key(0), (2, 4, 8))
    query, valid = jnp.ones((2, 8)), jnp.array([[True] * 4, [True] * 3 + [False]])
    places = product_search.sinusoids(5, 8)
    params = encoder.init(jax.random.key(1), query, items, valid, QUIET)
    state = jax.jit(lambda items: encoder.apply(params, query, items, valid, QUIET))
    order = jnp.array([2, 0, 1, 3])
    plain = state(items - places[1:])
    np.testing.assert_allclose(state(items[:, order] - places[1:]), plain, atol=1e-5)
    assert np.abs(state(items[:, order]) - state(items)).max() > 1e-3
    # What stands in padding is seen by nobody.
    np.testing.assert_allclose(state(items.at[1, 3].set(9.0))[1], state(items)[1], atol=1e-6)


@pytest.mark.parametrize("name", RANKERS)
def test_scores_ignore_padding_the_batch_and_the_user(name):
    ranker, params, tables = made(name)
    batch = searches(np.random.default_rng(2), 8)
    batch["query"][3] = 0
    for row in (0, 1):
        batch["rec_items"][row] = batch["clicked_items"][row] = 0
    batch["query"][1] = batch["query"][0]
    scores, found = scored(ranker, params, tables, batch)
    assert np.isfinite(found).all()
    own = np.take_along_axis(np.asarray(found), batch["candidates"], 1)
    np.testing.assert_allclose(scores, own, atol=1e-5)
    # Whoever has bought nothing gets the same for the same query.
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    turned = {field: value[::-1] for field, value in batch.items()}
    np.testing.assert_allclose(scored(ranker, params, tables, turned)[1][::-1], found, atol=1e-5)
    bought = batch | {"rec_items": batch["rec_items"].copy()}
    bought["rec_items"][0, 0] = 7
    moved = np.abs(scored(ranker, params, tables, bought)[1] - found).max(1)
    assert (moved[0] > 1e-3) == (name != "qem") and moved[1:].max() < 1e-6


@pytest.mark.parametrize("name", RANKERS)
def test_learns_what_queries_name(name):
    ranker = made(name)[0]
    state, stats = trained(ranker, 48, 150, searches)
    assert np.isfinite(stats["loss"])
    batch = searches(np.random.default_rng(1), 200)
    found = scored(ranker, state["params"], state["tables"], batch)[1]
    assert np.mean(np.argmax(found[:, 1:], 1) + 1 == batch["candidates"][:, 0]) > 0.9


def test_contrast_by_hand():
    eye, every, requests = jnp.eye(2), jnp.ones(2, bool), jnp.arange(2)
    # Two users, each with equal states: of a state's three others one is its partner.
    assert float(copps.nt_xent(eye, eye, requests, every, 1.0)) == pytest.approx(
        np.log(1 + 2 / np.e)
    )
    ones = jnp.ones((2, 2))
    assert float(copps.nt_xent(ones, ones, requests, every, 1.0)) == pytest.approx(np.log(3))
    # A pair that there is not is no negative either.
    one = jnp.array([True, False])
    assert float(copps.nt_xent(eye, eye, requests, one, 1.0)) == pytest.approx(0.0)
    assert float(copps.nt_xent(eye, eye, requests, ~every, 1.0)) == 0.0


def test_views_hide_and_shuffle_shares_of_what_there_is():
    counts = jnp.array([5, 1, 0, 3])
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.vmap(lambda key, count: copps.hidden_places(key, count, 6, 0.6))(keys, counts)
    assert hidden.sum(1).tolist() == [3, 0, 0, 1]
    assert not (hidden & (jnp.arange(6) >= counts[:, None])).any()
    orders = jax.vmap(lambda key: copps.shuffled_places(key, counts, 6, 0.6))(
        jax.random.split(jax.random.key(1), 50)
    )
    np.testing.assert_array_equal(np.sort(orders, -1), np.broadcast_to(np.arange(6), orders.shape))
    moved = np.asarray(orders != np.arange(6))
    # 3 of 5 neighbours, nothing of the others (one of three is no order), every place some time.
    assert not moved[:, 1:].any() and moved[:, 0, :5].any(0).all() and not moved[:, 0, 5].any()
    spans = [np.flatnonzero(row) for row in moved[:, 0]]
    assert max(span.max() - span.min() for span in spans if len(span)) == 2


def test_partners_have_the_same_query_and_target():
    queries = jnp.array([[1, 2], [1, 2], [1, 0], [1, 2], [1, 2]])
    targets, counts = jnp.array([7, 7, 7, 8, 7]), jnp.array([True, True, True, True, False])
    assert copps.partners(queries, targets, counts).tolist() == [1, 0, 2, 3, 4]


@functools.partial(jax.jit, static_argnums=0)
def loss_of(ranker, params, tables, batch):
    return ranker.loss(params, batch, look_up(tables, batch), tables, jax.random.key(5))


def test_without_its_weight_copps_is_tem_bit_for_bit():
    tables, batch = made("tem")[2], searches(np.random.default_rng(3), 8)
    dropped = {"dropout": 0.3}
    of_tem = tem.search_ranker(tem.Settings(**RANKERS["tem"][1] | dropped))
    values = RANKERS["copps"][1] | dropped
    without, with_weight = (
        copps.search_ranker(copps.Settings(**values | {"contrastive_weight": weight}))
        for weight in (0.0, 0.1)
    )
    example = batch_of(np.random.default_rng(0), 8)
    params = of_tem.init(jax.random.key(1), example, look_up(tables, example))
    own = without.init(jax.random.key(1), example, look_up(tables, example))
    assert set(own) == {*params, "mask_row"}
    jax.tree.map(np.testing.assert_array_equal, {name: own[name] for name in params}, params)
    expected = loss_of(of_tem, params, tables, batch)[0]
    assert float(loss_of(without, own, tables, batch)[0]) == float(expected)
    total, stats = loss_of(with_weight, own, tables, batch)
    assert float(stats["bce"]) == float(expected)
    contrast = float(stats["within"]) + float(stats["between"])
    assert float(total) == pytest.approx(float(expected) + 0.1 * contrast, rel=1e-5)
    assert float(stats["within"]) > 0


def small(config, csv_folder, tmp_path):
    config.dataset, config.data_dir = "csv_log", str(csv_folder)
    config.cache_dir = str(tmp_path / "cache")
    config.model.width = 8
    config.train.update({"batch_size": 16, "max_epochs": 1.0})
    return config


def write_log(folder, with_searches=True):
    """120 items; of each user's searches for 'tea' one validates and one tests."""
    folder.mkdir()
    clicks = [(f"u{u}", f"i{5 * u + t}", 10 * t + 10) for u in range(12) for t in range(5)]
    times = (15, 25, 42, 48)
    tea = [f"u{u},s{t},{t},tea,i{60 + n}" for u in range(12) for n, t in enumerate(times)]
    for name, header, lines in (
        ("clicks", "user,item,time", [",".join(map(str, row)) for row in clicks]),
        ("searches", "user,session,time,query,clicked_items", tea if with_searches else []),
        ("items", "item,title", [f"i{i},pot {i}" for i in range(120)]),
    ):
        (folder / f"{name}.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder


def test_a_run_is_selected_and_tested_on_searches(tmp_path):
    config = small(tem_config.get_config("csv_log"), write_log(tmp_path / "raw"), tmp_path)
    results = train(config, str(tmp_path / "w"))
    rows = {row["protocol"]: row for row in results["rows"]}
    assert set(rows) == {"search/neg99", "search/full"}
    for protocol, row in rows.items():
        assert row["task"] == "search" and row["examples"] > 0
        assert row["selected_on"] == "ndcg@5/search/neg99 on validation"
        assert f"ndcg@5/{protocol}" in row["metrics"]
    restored = Restored(str(tmp_path / "w"))
    again = evaluate(restored, "test", "search/full")
    assert again["metrics"] == rows["search/full"]["metrics"]
    model = Recommender.load(str(tmp_path / "w"))
    answer = model.search("tea", user="u1", k=5)
    assert model.tasks == ("search",) and len(answer.items) == 5
    with pytest.raises(UserError, match=r"can answer \(search\)"):
        model.recommend(user="u1")
    with pytest.raises(UserError, match="tem, which cannot be exported yet"):
        export_run(restored, str(tmp_path / "export"))
    with pytest.raises(UserError, match="--task=search of a run of tem"):
        restored.experiment.columns("recommendation", "full")
    with pytest.raises(UserError, match="answers searches alone"):
        restored.experiment.predict(None, None, ["u1"], 5)


def test_a_log_without_searches_is_refused(tmp_path):
    raw = write_log(tmp_path / "raw", with_searches=False)
    config = small(qem_config.get_config("csv_log"), raw, tmp_path)
    with pytest.raises(UserError, match=r"expected .*searches with words and clicks"):
        train(config, str(tmp_path / "w"))
    assert not (tmp_path / "w").exists() or not list((tmp_path / "w").glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("eval.selection", "ndcg@5/neg99", "eval.selection to be one of eval.metrics against"),
        ("data.use_search", False, "qem is a model of searches"),
        ("mesh.data", 2, r"mesh\.data=1 of a model of searches alone"),
        ("train.targets_per_window", 8, r"train\.targets_per_window=1"),
        ("eval.search_protocols", ("neg98",), "search_protocols"),
    ],
)
def test_settings_that_a_model_of_searches_does_not_take(key, value, words):
    config = qem_config.get_config()
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(UserError, match=words):
        resolve(config)
