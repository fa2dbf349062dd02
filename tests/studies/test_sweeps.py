"""What a sweep's text stands for, and what is refused."""

import pytest

from configs import lcr_ser, sasrec, unisar
from core.errors import UserError
from studies.ablation.sweeps import parse_sweep


def config(**changes):
    changed = lcr_ser.method()
    changed.update_from_flattened_dict(changes)
    return changed


def values(sweep):
    return [(s.label, s.changes) for s in sweep.settings]


def test_numbers_become_one_setting_each():
    sweep = parse_sweep("lambda_tcl:0,0.5", config())
    assert values(sweep) == [
        ("lambda_TCL = 0", {"train.lambda_tcl": 0.0}),
        ("lambda_TCL = 0.5", {"train.lambda_tcl": 0.5}),
    ]
    assert [s.value for s in sweep.settings] == [0.0, 0.5]
    assert len(parse_sweep("figure8", config()).settings) == 7


def test_a_sweep_over_k_takes_as_many_steps_as_its_largest():
    sweep = parse_sweep("k:0,5", config())
    assert values(sweep) == [
        ("K = 0", {"model.max_steps": 5, "train.active_steps": 0}),
        ("K = 5", {"model.max_steps": 5, "train.active_steps": 5}),
    ]
    default = parse_sweep("k", config())
    assert [s.changes["train.active_steps"] for s in default.settings] == [0, 1, 2, 3]
    arms = parse_sweep("k:0,3", config(), given=["model.max_steps"])
    assert values(arms)[1] == ("K = 3", {"train.active_steps": 3})


def test_values_that_are_close_have_labels_of_their_own():
    sweep = parse_sweep("lambda_tcl:0.1,0.10000001,1e-7", config())
    labels = ["lambda_TCL = 0.1", "lambda_TCL = 0.10000001", "lambda_TCL = 1e-07"]
    assert [s.label for s in sweep.settings] == labels


def test_table3_adds_modules_one_by_one():
    base, lcr, tra, tcl, rl, control = parse_sweep("table3", config()).settings
    assert base.changes == {
        "train.active_steps": 0,
        "train.lambda_tcl": 0.0,
        "model.attention": "mean",
        "rl.enabled": False,
    }
    assert lcr.changes == base.changes | {"train.active_steps": 3}
    assert tra.changes == lcr.changes | {"model.attention": "bilinear"}
    assert tcl.changes == rl.changes == control.changes == {}
    assert [s.stage for s in (base, lcr, tra, tcl, rl, control)] == [
        *["train"] * 4,
        "rl",
        "control",
    ]


def test_choices_are_all_by_default():
    assert [s.label for s in parse_sweep("block", config()).settings] == ["post_ln", "printed"]
    reward = parse_sweep("reward:ndcg@5,hr@1", config())
    assert values(reward) == [
        ("ndcg@5", {"rl.reward": "ndcg@5"}),
        ("hr@1", {"rl.reward": "hr@1"}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kk:1", "found 'kk'"),
        ("k:-1", "whole, from 0 to 100 in --sweep=k, found -1"),
        ("k:1.5", "whole, from 0 to 100 in --sweep=k, found 1.5"),
        ("k:1e30", "whole, from 0 to 100 in --sweep=k, found 1e+30"),
        ("figure6:0,101", "whole, from 0 to 100 in --sweep=figure6, found 101"),
        ("table4:0,101", "up to 100 after --sweep=table4:, found 101"),
        ("table4:1,01", "every value of --sweep once, found 1 twice"),
        ("k:nan", "found nan"),
        ("k:a", "numbers after --sweep=k:, found 'a'"),
        ("k:1,1", "every value of --sweep once"),
        ("k:1,1.0", "every value of --sweep once, found 1 twice"),
        ("k:0,-0", "every value of --sweep once, found 0 twice"),
        ("lambda_tcl:0.1,0.5,0.10", "every value of --sweep once, found 0.1 twice"),
        ("lambda_tcl:-0.1", "0 or more in --sweep=lambda_tcl, found -0.1"),
        ("lambda_kl:inf", "found inf"),
        ("learning_rate:0", "above 0 in --sweep=learning_rate, found 0"),
        ("gamma:0", "above 0"),
        ("distance:manhattan", "cosine, euclidean in --sweep=distance, found 'manhattan'"),
        ("reward:map", "map"),
        ("table3:1", "without values"),
    ],
)
def test_what_does_not_fit_is_refused(text, message):
    with pytest.raises(UserError) as error:
        parse_sweep(text, config())
    assert message in str(error.value)


def test_what_the_config_does_not_allow_is_refused():
    with pytest.raises(UserError, match=r"up to config\.model\.max_steps = 3, found 4"):
        parse_sweep("k:4", config(), given=["model.max_steps"])
    with pytest.raises(UserError, match=r"rl\.enabled=True for the sweep gamma"):
        parse_sweep("gamma", config(**{"rl.enabled": False}))
    with pytest.raises(UserError, match="lambda_tcl=0; these are what its rows add"):
        parse_sweep("table3", config(**{"train.lambda_tcl": 0.0}))
    for text in ("figure4", "figure5"):
        with pytest.raises(UserError, match=rf"use_search=True for {text}, found False; set it"):
            parse_sweep(text, config(**{"data.use_search": False}))
    with pytest.raises(UserError, match="found one of sasrec"):
        parse_sweep("k", sasrec.get_config())


def test_thresholds_begin_with_all_searches():
    config_of_unisar = unisar.get_config()
    sweep = parse_sweep("figure2:-1,0.5", config_of_unisar)
    assert values(sweep) == [
        ("threshold = -1", {"train.targets_per_window": 1}),
        ("threshold = 0.5", {"train.targets_per_window": 1, "data.search_filter": 0.5}),
    ]
    with pytest.raises(UserError, match="found 0 twice"):
        parse_sweep("figure2:-1,0,0.0", config_of_unisar)
    for wrong in ("figure2:0,0.5", "figure2:-1,2", "figure2:-1,a", "figure2:-1,nan"):
        with pytest.raises(UserError, match="-1 to 1 and -1 first"):
            parse_sweep(wrong, config_of_unisar)
    with pytest.raises(UserError, match="expected a config of unisar"):
        parse_sweep("figure2", config())
