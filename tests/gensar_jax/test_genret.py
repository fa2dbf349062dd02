"""GenRet's losses, plans, batches and frozen tables by hand, and the identifiers that it learns."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_gensar import SMALL, changed, refused, small_config
from test_gensar_baselines import config_of

from configs import genret_identifiers
from core.errors import UserError
from experiments.methods import open_experiment
from experiments.predict import predict
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.train import train
from gensar_jax import identifier_network
from gensar_jax.baselines import genret, genret_levels
from gensar_jax.baselines.genret_levels import LevelSettings, LevelTask, Pairs
from gensar_jax.identifiers import load_table
from gensar_jax.t5.config import of_size
from gensar_jax.t5.network import Transformer
from input_pipelines.dataset import Dataset

LEVELS = {
    **genret_identifiers.LEVELS,
    **{"levels": 2, "codes": 8, "batch_size": 8, "first_updates": 2, "updates": 3, "evals": 1},
}
# A network of 3 + 2 x 4 tokens, whose last 8 are the codes.
ROWS = np.arange(3, 11).reshape(2, 4)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_config(tmp_path_factory)


def own_config(small, **changes):
    """Its own command's config on the made-up catalogue."""
    own = genret_identifiers.get_config("amazon_beauty")
    own.data_dir, own.cache_dir = small.data_dir, small.cache_dir
    own.levels.update(LEVELS)
    of_run = ("vocabulary.pieces", "prompts.max_inputs", "prompts.max_targets", "model.size")
    own.update_from_flattened_dict({key: SMALL[key] for key in of_run})
    return changed(own, **changes)


def task_of(place, with_codes=True, pairs=None, **changes):
    network = Transformer(of_size("tiny", 11))
    rng = np.random.default_rng(0)
    made = Pairs(rng.integers(1, 3, (12, 6)), np.arange(12) % 6, rng.integers(1, 3, (6, 8)))
    pairs = made if pairs is None else pairs
    before = rng.integers(0, 4, (6, place - 1))
    settings = LevelSettings(**{**LEVELS, "codes": 4, "batch_size": 4, **changes})
    token = jnp.ones((1, 1), jnp.int32)
    params = network.init(jax.random.key(0), token, token, token, enable_dropout=False)["params"]
    return LevelTask(
        *(place, with_codes, network, ROWS, pairs, before, settings),
        **{"initial": lambda: params, "seed": 0},
    )


def test_a_plan_of_equal_products_weighs_all_codes_alike():
    plan = genret_levels.balanced_plan(jnp.full((6, 3), 2.5), 100)
    np.testing.assert_allclose(plan.sum(0), 6 / 3, atol=1e-5)
    np.testing.assert_allclose(plan.sum(1), 1.0, atol=1e-6)
    products = jax.random.normal(jax.random.key(0), (8, 4)) + jnp.array([3.0, 0, 0, 0])
    plan = genret_levels.balanced_plan(products, 100)
    np.testing.assert_allclose(plan.sum(0), 8 / 4, atol=1e-4)
    np.testing.assert_allclose(plan.sum(1), 1.0, atol=1e-6)
    # Where every item prefers code 0 nearest codes would all be that one.
    assert (np.bincount(products.argmax(1), minlength=4)[0] > 4) and plan.argmax(1).max() > 0


def test_codes_are_equally_frequent_among_items_of_a_prefix():
    # Four items below one prefix like code 0, two of them more; the fifth is alone.
    products = np.array([[3.0, 0], [3.1, 0], [1, 0], [1.1, 0], [5, 0]])
    before = np.array([[0], [0], [0], [0], [7]])
    assert genret_levels.balanced_below(products, before, 100).tolist() == [0, 0, 1, 1, 0]
    # Without codes before all are balanced against each other.
    every = genret_levels.balanced_below(products, np.zeros((5, 0), int), 100)
    assert every.tolist() == [0, 0, 1, 1, 0]
    plan = genret_levels.balanced_plan(jnp.asarray(products[:4]), 100)
    assert plan.argmax(1).tolist() == [0, 0, 1, 1]


def test_other_queries_of_an_item_are_no_negatives_of_it():
    products = jnp.array([[0.0, 5.0, np.log(3.0)], [5.0, 0.0, np.log(3.0)], [0.0, 0.0, 0.0]])
    # Items 7, 7, 8: the first two rows have log(1 + 3), the third log(3).
    loss = genret_levels.in_batch(products, jnp.array([7, 7, 8]))
    assert float(loss) == pytest.approx((2 * np.log(4) + np.log(3)) / 3)
    assert float(genret_levels.in_batch(products, jnp.array([1, 1, 1]))) == pytest.approx(0.0)


def test_losses_by_hand():
    # One place, two codes, D = 1: queries, documents and codes are 1 and -1.
    states = jnp.array([[[1.0]], [[-1.0]]])
    table = jnp.array([[[1.0], [-1.0]]])
    nothing = jnp.zeros((2, 0), int)
    losses = genret_levels.level_losses(states, states, table, nothing, jnp.arange(2), 100)
    one = np.log1p(np.exp(-2.0))
    assert float(losses["contrast"]) == pytest.approx(one)
    assert float(losses["code"]) == pytest.approx(2 * one)
    assert float(losses["reconstruction"]) == pytest.approx(one)
    assert float(losses["fixed"]) == 0.0
    # At the second place both had code 1, -1, before: right for the second document alone.
    both = jnp.concatenate([states, states], 1)
    tables = jnp.concatenate([table, table])
    losses = genret_levels.level_losses(
        both, both, tables, jnp.ones((2, 1), int), jnp.arange(2), 100
    )
    assert float(losses["fixed"]) == pytest.approx(2 * (one + np.log1p(np.exp(2.0))) / 2)
    # The reconstruction trains the codes and not the document that it is held against.
    gradient = jax.grad(
        lambda documents: genret_levels.level_losses(
            states, documents, table, nothing, jnp.arange(2), 100
        )["reconstruction"]
    )(states * 1.5)
    assert np.isfinite(gradient).all()


def test_batches_are_of_documents_that_share_a_prefix():
    groups = np.array([0, 1] * 6 + [2])
    batches = genret_levels.batches_of(groups, 3, np.random.default_rng(0))
    assert batches.shape == (4, 3) and len(np.unique(batches)) == 12
    pure = [len(np.unique(groups[batch])) == 1 for batch in batches]
    assert sum(pure) >= 2
    whole = genret_levels.batches_of(groups[:12], 3, np.random.default_rng(0))
    assert all(len(np.unique(groups[batch])) == 1 for batch in whole)


def test_an_epoch_has_every_document_once_with_one_of_its_queries():
    items = np.array([3, 5, 3, 3, 9])
    drawn = {
        tuple(genret_levels.one_each(items, np.random.default_rng(seed)).tolist())
        for seed in range(50)
    }
    assert drawn == {(place, 1, 4) for place in (0, 2, 3)}
    # Five of six pairs are of one document, and yet it is one of three in a batch.
    pairs = Pairs(np.arange(1, 8)[:, None], np.array([0, 0, 0, 0, 0, 1, 4]), np.ones((5, 1), int))
    task = task_of(1, pairs=pairs)
    assert task.batch_size == 3 and task.steps_per_epoch == 1
    stream = task.batches(0)
    batches = [next(stream) for _ in range(20)]
    assert all(sorted(batch["items"]) == [0, 1, 4] for batch in batches)
    asked = {(int(i), int(q)) for b in batches for i, q in zip(b["items"], b["queries"][:, 0])}
    assert asked == {*((0, query) for query in range(1, 6)), (1, 6), (4, 7)}


def test_tables_start_as_centres_about_the_mean_of_a_prefix():
    before = np.array([[0]] * 4 + [[1]] * 4)
    offsets = np.array([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    vectors = np.concatenate([offsets + np.array([50, 7]), offsets - np.array([30, 2])]).astype(
        np.float32
    )
    centres = genret_levels.first_table(vectors, before, 2, seed=0)
    # About the mean of their prefixes they are at 1 and -1, without their part along (10, 2.5).
    mean = np.array([10.0, 2.5])
    expected = np.array([1.0, 0]) - 10 * mean / (mean @ mean)
    order = np.argsort(centres[:, 0])
    np.testing.assert_allclose(centres[order], [-expected, expected], atol=1e-4)


def test_agreement_by_chance_is_worth_nothing():
    assert genret_levels.kappa(np.zeros(4, int), np.zeros(4, int)) == 0.0
    assert genret_levels.kappa(np.array([0, 1, 2]), np.array([0, 1, 2])) == pytest.approx(1.0)
    # Half agree, as they would by chance.
    assert genret_levels.kappa(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == pytest.approx(0.0)


@pytest.mark.parametrize("place", [1, 2])
def test_tables_of_the_places_before_are_frozen(place):
    task = task_of(place, weight_decay=0.1)
    state = task.init()
    batch = next(task.batches(0))
    before = state["tables"]["before"][batch["items"]]

    def total(params):
        return sum(task.losses(params, batch, before).values())

    gradient = jax.jit(jax.grad(total))(state["params"])["token_embedder"]["embedding"]
    after, stats = jax.jit(task.train_step)(state, batch, jnp.float32(0.1))
    first, last = (s["params"]["token_embedder"]["embedding"] for s in (state, after))
    assert np.isfinite(stats["loss"]) and np.abs(gradient[ROWS[place - 1]]).min() > 0
    for number, rows in enumerate(ROWS):
        if number + 1 < place:
            assert not gradient[rows].any() and (first[rows] == last[rows]).all()
    assert (first[ROWS[place - 1]] != last[ROWS[place - 1]]).any()
    # A place that is still to come is not read at all.
    assert place == 2 or not gradient[ROWS[1]].any()


def test_without_codes_their_losses_do_not_count():
    task = task_of(1, with_codes=False)
    state = task.init()
    _, stats = jax.jit(task.train_step)(state, next(task.batches(0)), jnp.float32(0.1))
    assert set(stats) == {"loss", "contrast", "fixed"}
    assert float(stats["loss"]) == pytest.approx(0.5 * float(stats["contrast"]))
    # Batches go on where they were.
    start = task.batches(0)
    skipped = [next(start) for _ in range(4)][3]
    assert (next(task.batches(3))["items"] == skipped["items"]).all()


def test_codes_do_not_collapse():
    """Codes are learnt from scratch with the config's dropout and rate, in the task's own batches.

    16 documents have two words of their own in a prompt of 12 tokens; most pairs are of 4 of them.
    With a dropout of .1 all documents have one code, with batches of random pairs they have 4.
    """
    documents, codes = 16, 8
    rng = np.random.default_rng(0)
    words = rng.permutation(np.arange(20, 20 + 2 * documents)).reshape(documents, 2)
    items = np.concatenate([np.arange(documents), np.arange(160) % 4])
    shared = np.arange(1, 11)

    def prompts(own, first):
        return np.column_stack([np.tile(first, (len(own), 1)), own]).astype(np.int32)

    pairs = Pairs(prompts(words[items], shared), items, prompts(words, shared[::-1] + 1))
    own = genret_identifiers.method()
    network = Transformer(of_size("tiny", 60 + codes, dropout_rate=float(own.model.dropout_rate)))
    token = jnp.ones((1, 1), jnp.int32)
    rows = 60 + np.arange(codes)[None]
    settings = LevelSettings(
        **{**own.levels.to_dict(), "levels": 1, "codes": codes, "batch_size": 16}
        | {"first_updates": 30, "updates": 20}
    )
    params = network.init(jax.random.key(0), token, token, token, enable_dropout=False)["params"]
    before = np.zeros((documents, 0), np.int32)
    for with_codes in (False, True):
        task = LevelTask(
            *(1, with_codes, network, rows, pairs, before, settings),
            **{"initial": lambda params=params: params, "seed": 0},
        )
        state, batches = task.init(), task.batches(0)
        step = jax.jit(task.train_step)
        for _ in range(task.max_steps):
            state, _ = step(state, next(batches), jnp.float32(settings.learning_rate))
        params = state["params"]
        if not with_codes:
            vectors = task.vectors(params, pairs.documents, before)
            table = genret_levels.first_table(vectors, before, codes, 1)
            params = genret.with_rows(params, rows[0], table)
    metrics = task.evaluate(state)
    assert metrics["perplexity/catalogue"] > 0.75 * codes
    assert metrics["kappa/catalogue"] > 0.9


def test_what_codes_are_learnt_from(small):
    experiment = open_experiment(resolve(own_config(small)), Dataset(resolve(small)))
    pairs, log = experiment.pairs, experiment.data.log
    assert len(pairs.documents) == log.num_items and pairs.queries.shape[0] == len(pairs.items)
    shown = set(np.asarray(log.rec_items)[experiment.data.splits.training_rows].tolist())
    text_of = experiment.vocabulary.text_of
    assert not any("heldout" in text_of(row) for row in pairs.queries.tolist())
    asked = {text_of([t for t in row if t]) for row in pairs.queries.tolist()}
    assert any("red tea kind" in text for text in asked)
    assert set((pairs.items + 1).tolist()) >= shown - {4, 6}
    assert any("heldout" in text_of(row) for row in pairs.documents.tolist())


def test_mistakes_end_in_one_line(small, tmp_path):
    assert "head is its embedding" in refused(own_config(small, model__size="tiny-v1_1"), tmp_path)
    assert "at least 256 items" in refused(own_config(small, levels__codes=256), tmp_path)
    assert "config.levels.updates" in refused(own_config(small, levels__updates=0), tmp_path)
    config = config_of(small, "genret", identifiers=small.identifiers)
    assert "expected identifiers of genret_identifiers in" in refused(config, tmp_path)


def test_more_equal_items_than_codes_are_refused(small):
    experiment = open_experiment(resolve(own_config(small)), Dataset(resolve(small)))
    codes = np.zeros((9, 2), np.int32)
    with pytest.raises(UserError, match="at most 8 items to share the codes"):
        experiment._table(codes)
    table = experiment._table(codes[:8])
    assert table.codes["semantic"][:, 2].tolist() == list(range(8))
    unique = experiment._table(np.array([[0, 1], [1, 0]], np.int32)).codes["semantic"]
    assert unique.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_a_network_is_kept_with_its_tokens_and_shapes(tmp_path):
    params = {"a": {"b": np.ones((2, 3), np.float32)}, "c": np.zeros(2, np.float32)}
    folder = str(tmp_path)
    assert not identifier_network.is_saved(folder)
    identifier_network.save(folder, params, "digest")
    again = identifier_network.load(folder, "digest", params)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))
    with pytest.raises(UserError, match="to know the tokens other of this run, found digest; "):
        identifier_network.load(folder, "other", params)
    wider = {**params, "c": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match=r"expected c of shape \(3,\) .* found \(2,\); make"):
        identifier_network.load(folder, "digest", wider)
    with pytest.raises(UserError, match=r"expected d of shape \(2,\) .* found none; make"):
        identifier_network.load(folder, "digest", {**params, "d": params["c"]})
    (tmp_path / "network.npz").write_bytes(b"other")
    with pytest.raises(UserError, match=r"network\.npz"):
        identifier_network.load(folder, "digest", params)


@pytest.mark.slow
def test_it_learns_identifiers_and_goes_on_with_their_network(small, tmp_path):
    folder = str(tmp_path / "i")
    more = {**LEVELS, "codes": 48, "first_updates": 4, "updates": 8}
    own = own_config(small)
    own.levels.update(more)
    rows = train(own, folder)["rows"]
    data = Dataset(resolve(own))
    table = load_table(folder, data_hash=data.log.hash)
    codes = table.codes["semantic"]
    assert codes.shape[1] == 3 and len(np.unique(codes, axis=0)) == data.log.num_items
    assert {"kappa_1/catalogue", "perplexity_2/catalogue"} < set(rows[0]["metrics"])
    # The same command does nothing more; without its last files it writes the same ones.
    assert train(own, folder)["rows"] == rows
    for name in ("identifiers.json", "identifiers.npz", "network.json", "results.json"):
        os.remove(os.path.join(folder, name))
    train(own, folder)
    assert load_table(folder, data_hash=data.log.hash).hash == table.hash
    # The variant makes the same ones itself, and starts from their network.
    config = config_of(
        *(small, "genret"),
        **{"train__updates": 4, "eval__search_protocols": ("full",)},
    )
    config.identifier_levels.update(more)
    results = train(config, str(tmp_path / "w"))
    assert {row["stage"] for row in results["rows"]} == {"joint"}
    written = json.loads((tmp_path / "w" / "identifiers" / "identifiers.json").read_text())
    assert written["hash"] == table.hash and written["method"] == "genret_identifiers"
    restored = Restored(str(tmp_path / "w"))
    started = restored.experiment.task.init()["params"]
    vocabulary = restored.experiment.examples.vocabulary
    kept = identifier_network.load(folder, vocabulary.digest, started)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), started, kept))
    items = [row["item"] for row in predict(restored, None, 5, "red tea kind2")]
    assert len(set(items)) == 5
    # With other pieces the network would read other tokens.
    other = changed(config, vocabulary__pieces=400, identifiers=folder)
    assert "to know the tokens" in refused(other, tmp_path)
