"""Every ranker trains by every loss that it claims, which is one and the same for all of them."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from announced_batches import ITEMS, REC, SEARCHES, SIZES, batch_of

from configs import baseline, lcr_ser
from core.errors import UserError
from experiments.methods import check_settings, experiment_class
from lcrsr import losses
from lcrsr.embedding import init_tables, look_up

USERS = 8
# Of these a user is one vector; of those items are scored by a network of user and item.
VECTORS = (
    "bert4rec",
    "cl4srec",
    "copps",
    "fmlp_rec",
    "gru4rec",
    "lares",
    "lcr_ser",
    "lrurec",
    "nrhub",
    "qem",
    "query_seqrec",
    "sasrec",
    "tem",
    "unified_ssr",
)
PAIRS = ("jsr", "sesrec", "unisar", "user")
SMALL = {
    "width": 8,
    "hidden": 8,
    "inner": 8,
    "ffn_width": 8,
    "attention_width": 8,
    "expert_width": 8,
    "experts": 2,
    "mlp_widths": (8,),
    "tower_widths": (8,),
    "layers": 1,
    "heads": 2,
    "length": 10,
    "dropout": 0.0,
    "init_scale": 0.5,
    "replaced_items": 0.0,
    "replaced_queries": 0.0,
}


def config_of(method, loss):
    config = (lcr_ser if method == "lcr_ser" else baseline).get_config(
        "qilin" if method == "lcr_ser" else f"{method},qilin"
    )
    section, key = ("train", "recommendation") if method == "lcr_ser" else ("model", "loss")
    config[section][key] = loss
    config.data.train_negatives = 4
    config.data.rec_length, config.data.search_length = REC, SEARCHES
    for key in config.model.keys() & SMALL.keys():
        config.model[key] = SMALL[key]
    config.train.table_update = "dense" if loss == losses.FULL else "touched_rows"
    return config


def ranker_of(method, loss):
    config = config_of(method, loss)
    check_settings(config)
    return experiment_class(config).ranker_of(config)


def batch_with(negatives, searching):
    """Users' targets beside `negatives`, a function of the targets."""
    batch = batch_of(np.random.default_rng(0), USERS)
    targets = np.full(USERS, 3)
    batch["candidates"] = np.concatenate([targets[:, None], negatives(targets)], 1)
    batch["candidates"] = batch["candidates"].astype(np.int32)
    batch["labels"] = np.eye(1, batch["candidates"].shape[1], dtype=np.float32).repeat(USERS, 0)
    if searching:
        batch["query"] = np.stack([targets, 0 * targets], 1).astype(np.int32)
    return batch


def all_rows(targets):
    """Every item, and the target for the padding: the estimate is of a table's rows."""
    return np.concatenate([np.tile(np.arange(1, ITEMS + 1), (USERS, 1)), targets[:, None]], 1)


def all_others(targets):
    return 1 + (targets[:, None] + np.arange(ITEMS - 1)) % ITEMS


def values(method):
    """The value of each loss of a method, of one set of parameters and of tables."""
    searching = method in ("copps", "qem", "tem")
    batches = {losses.FULL: all_rows, losses.SAMPLED: all_rows}
    batches = {loss: batch_with(batches.get(loss, all_others), searching) for loss in losses.LOSSES}
    rankers = {loss: ranker_of(method, loss) for loss in losses.LOSSES}
    first = rankers["bce"]
    tables = init_tables(jax.random.key(0), width=first.width, scale=0.5, **SIZES)
    tables = {name: tables[name] for name in first.tables}

    def each(tables):
        batch = batches["bce"]
        params = first.init(jax.random.key(1), batch, look_up(tables, batch))
        return {
            loss: ranker.loss(
                params, batches[loss], look_up(tables, batches[loss]), tables, jax.random.key(2)
            )[1]
            for loss, ranker in rankers.items()
        }

    stats = jax.jit(each)(tables)
    name = {"bert4rec": "cloze"}.get(method)
    return {loss: float(stats[loss][name or loss]) for loss in losses.LOSSES}


@pytest.mark.parametrize("method", VECTORS)
def test_with_every_item_for_a_negative_the_softmaxes_are_one(method):
    value = values(method)
    # Each item is the negative of each target once, so that nothing is left to chance.
    difference = value["sampled_softmax"] - value["full_cross_entropy"]
    if method in ("bert4rec", "query_seqrec"):  # which have other targets than the last, too
        assert 0 < difference < np.log((ITEMS + 1) / ITEMS)
    else:
        assert abs(difference) < 1e-4
        assert value["cross_entropy"] == pytest.approx(value["full_cross_entropy"], rel=1e-4)
    assert np.isfinite(value["bce"]) and value["bce"] > 0
    assert abs(value["bce"] - value["cross_entropy"]) > 1e-3


@pytest.mark.parametrize("method", PAIRS)
def test_a_network_of_user_and_item_takes_those_over_candidates_alone(method):
    for loss in losses.RECOMMENDATION:
        ranker = ranker_of(method, loss)
        assert not ranker.needs_whole_tables
    for loss in (losses.SAMPLED, losses.FULL):
        with pytest.raises(UserError, match=r"model\.loss of bce, cross_entropy, .*by a network"):
            check_settings(config_of(method, loss))


def test_lcr_ser_as_printed_takes_those_over_candidates_alone():
    for loss in (losses.SAMPLED, losses.FULL):
        config = config_of("lcr_ser", loss)
        config.model.scorer = "mlp"
        with pytest.raises(UserError, match=r"scorer='dot_product' with .*recommendation"):
            check_settings(config)


@pytest.mark.parametrize("method", ["sasrec", "qem", "lcr_ser"])
def test_a_loss_over_all_items_needs_whole_tables(method):
    config = config_of(method, losses.FULL)
    config.train.table_update = "touched_rows"
    with pytest.raises(UserError, match=r"table_update='dense', found 'touched_rows'"):
        check_settings(config)


@pytest.mark.parametrize("loss", [*losses.RECOMMENDATION, losses.SAMPLED])
@pytest.mark.parametrize("method", ["sasrec", "qem"])
def test_a_loss_without_negatives_is_refused_where_it_counts_them(method, loss):
    config = config_of(method, loss)
    config.data.train_negatives = 0
    if loss == losses.SAMPLED:  # the batch's size decides how many there are
        check_settings(config)
        return
    with pytest.raises(UserError, match=r"train_negatives above 0, found 0"):
        check_settings(config)


def test_every_method_with_a_loss_is_tested_above():
    named = set()
    for method in (*baseline.METHODS, "lcr_ser"):
        module = lcr_ser if method == "lcr_ser" else baseline.file_of(method)[0]
        config = module.get_config("qilin")
        if "loss" in config.model or method == "lcr_ser":
            named.add(config.method)
    assert named == {*VECTORS, *PAIRS}


def test_the_losses_of_places_are_those_of_vectors_where_each_user_has_one():
    rng = np.random.default_rng(3)
    users = jnp.asarray(rng.standard_normal((USERS, 4)), jnp.float32)
    items = jnp.asarray(rng.standard_normal((ITEMS + 1, 4)), jnp.float32)
    batch = batch_of(rng, USERS) | {"mask": np.float32([1] * 6 + [0] * 2)}
    rows = {"candidates": items[batch["candidates"]]}
    targets = batch["candidates"][:, :1]
    for loss in losses.LOSSES:
        one = losses.of_vectors(loss, users, batch, rows, items)
        counts = batch["mask"][:, None]
        places = losses.of_states(
            loss, users[:, None], targets, items[targets], counts, batch, rows, items
        )
        assert float(places) == pytest.approx(float(one), rel=1e-5)
        # A place without a target changes nothing.
        two = [jnp.stack([x, 1.0 - x], 1) for x in (users, items[targets][:, 0])]
        counts = np.concatenate([counts, 0 * counts], 1)
        padded = np.concatenate([targets, 0 * targets], 1)
        places = losses.of_states(loss, two[0], padded, two[1], counts, batch, rows, items)
        assert float(places) == pytest.approx(float(one), rel=1e-5)
