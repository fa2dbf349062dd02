"""Values of a config that no method can train with end where it is resolved."""

import re

import pytest

from configs import crs_sample, gensar_qilin, lcr_ser_qilin, sasrec_qilin, unisar_qilin
from core.errors import UserError
from launch.data import resolve


def resolved(module, **changes):
    """The config of a module on the sample with 'section__key' set."""
    config = module.get_config()
    values = {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict(values)
    return resolve(config, values)


@pytest.mark.parametrize(
    ("module", "key", "value", "words"),
    [
        (lcr_ser_qilin, "on_sample__users", 0, "above 0"),
        (lcr_ser_qilin, "on_sample__users", -7, "above 0"),
        (lcr_ser_qilin, "on_sample__seed", -4, "of 0 or more"),
        (lcr_ser_qilin, "model__mlp_widths", (200, 0), "with widths above 0"),
        (lcr_ser_qilin, "pretrain__user_dropout", 1.5, "from 0 to 1"),
        (lcr_ser_qilin, "pretrain__plateau_factor", -2.0, "from 0 to 1"),
        (lcr_ser_qilin, "model__dropout", -0.2, "from 0 to below 1"),
        (sasrec_qilin, "model__dropout", 1.0, "from 0 to below 1"),
        (sasrec_qilin, "model__heads", 0, "above 0"),
        (unisar_qilin, "model__tower_widths", (-1,), "with widths above 0"),
        (gensar_qilin, "model__dropout_rate", 1.5, "from 0 to below 1"),
        (gensar_qilin, "data__rec_length", -1, "of 0 or more"),
        (crs_sample, "evolve__iterations", -1, "of 0 or more"),
        (crs_sample, "data__history", -2, "of 0 or more"),
    ],
)
def test_values_out_of_their_range(module, key, value, words):
    name = re.escape(f"config.{key.replace('__', '.')} {words}, found {value};")
    with pytest.raises(UserError, match=name):
        resolved(module, **{key: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("module", "key"),
    [
        (lcr_ser_qilin, "model__init_scale"),
        (lcr_ser_qilin, "pretrain__lambda_tcl"),
        (lcr_ser_qilin, "pretrain__max_epochs"),
        (gensar_qilin, "train__learning_rate"),
        (crs_sample, "rl__kl_weight"),
    ],
)
def test_numbers_that_are_not_finite(module, key, value):
    name = re.escape(f"expected a finite config.{key.replace('__', '.')}, found {value};")
    with pytest.raises(UserError, match=name):
        resolved(module, **{key: value})


def test_a_weight_that_is_not_finite():
    with pytest.raises(UserError, match=r"a finite config\.rl\.accuracy_weights, found nan"):
        resolved(crs_sample, rl__accuracy_weights=(1.0, float("nan"), 0.5))


@pytest.mark.parametrize(
    ("module", "key", "names"),
    [
        (lcr_ser_qilin, "eval__metrics", ("ndcg@5", "hr@1", "ndcg@5")),
        (lcr_ser_qilin, "eval__protocols", ("neg99", "neg99")),
        (crs_sample, "eval__search_protocols", ("catalogue", "catalogue")),
    ],
)
def test_a_metric_or_protocol_named_twice(module, key, names):
    found = f"config.{key.replace('__', '.')} once, found '{names[0]}' 2 times"
    with pytest.raises(UserError, match=re.escape(found)):
        resolved(module, **{key: names})


def test_the_ends_of_the_ranges_are_in_them():
    resolved(
        lcr_ser_qilin,
        model__dropout=0.0,
        pretrain__user_dropout=1.0,
        pretrain__plateau_factor=1.0,
        pretrain__plateau_patience=0,
    )
    resolved(crs_sample, evolve__iterations=0, data__history=0)
    resolved(gensar_qilin, data__rec_length=0, data__clicks=0)
