"""Values of a config that no method can train with end where it is resolved."""

import importlib
import pathlib
import re

import pytest

import configs
from configs import choices, crs_sample, gensar_qilin, lcr_ser, lcr_ser_qilin, sasrec, unisar
from core import workdir
from core.errors import UserError
from experiments.resolve import resolve


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
        (lcr_ser_qilin, "on_sample__seed", -4, "of whole numbers from 0 to 2147483647"),
        (lcr_ser_qilin, "seed", -1, "of whole numbers from 0 to 2147483647"),
        (sasrec, "seed", 2**31, "of whole numbers from 0 to 2147483647"),
        (crs_sample, "seed", 2**64, "of whole numbers from 0 to 2147483647"),
        (gensar_qilin, "data__candidates_seed", 2**70, "of whole numbers from 0 to 2147483647"),
        (lcr_ser_qilin, "train__batch_size", 2**63, "of 64 bits"),
        (lcr_ser_qilin, "model__mlp_widths", (200, 0), "with widths above 0"),
        (lcr_ser_qilin, "train__user_dropout", 1.5, "from 0 to 1"),
        (lcr_ser_qilin, "train__plateau_factor", -2.0, "from 0 to 1"),
        (lcr_ser_qilin, "model__dropout", -0.2, "from 0 to below 1"),
        (sasrec, "model__dropout", 1.0, "from 0 to below 1"),
        (sasrec, "model__heads", 0, "above 0"),
        (unisar, "model__tower_widths", (-1,), "with widths above 0"),
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
        (lcr_ser_qilin, "train__lambda_tcl"),
        (lcr_ser_qilin, "train__max_epochs"),
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
    message = f"config.{key.replace('__', '.')} once, found '{names[0]}' 2 times"
    with pytest.raises(UserError, match=re.escape(message)):
        resolved(module, **{key: names})


def test_the_ends_of_the_ranges_are_in_them():
    resolved(
        lcr_ser_qilin,
        model__dropout=0.0,
        train__user_dropout=1.0,
        train__plateau_factor=1.0,
        train__plateau_patience=0,
    )
    resolved(crs_sample, evolve__iterations=0, data__history=0)
    resolved(gensar_qilin, data__rec_length=0, data__clicks=0)


def test_a_seed_that_is_no_whole_number():
    config = lcr_ser_qilin.get_config()
    for value in (1.5, "1", None):
        with config.ignore_type():
            config.seed = value
        with pytest.raises(UserError, match=r"config\.seed of whole numbers from 0 to"):
            resolve(config)


@pytest.mark.parametrize(
    ("module", "changes", "key"),
    [
        (lcr_ser_qilin, {"eval__protocols": ()}, "eval.protocols"),
        (lcr_ser_qilin, {"eval__metrics": ()}, "eval.metrics"),
        (crs_sample, {"eval__search_protocols": ()}, "eval.search_protocols"),
        (
            gensar_qilin,
            {"eval__protocols": (), "eval__search_protocols": ()},
            "eval.protocols",
        ),
    ],
)
def test_nothing_to_be_tested_on(module, changes, key):
    with pytest.raises(UserError, match=f"expected names in config.{key}, found none; name some"):
        resolved(module, **changes)
    if module is gensar_qilin:  # one of the two is enough
        resolved(module, eval__search_protocols=())


def on_sample():
    """Every config of the sample, by its name."""
    for path in sorted(pathlib.Path(configs.__path__[0]).glob("*.py")):
        module = importlib.import_module(f"configs.{path.stem}")
        for variant in getattr(module, "VARIANTS", choices.ONE_FORM):
            if "qilin" in getattr(module, "DATASETS", ()):
                choice = choices.choice_of("qilin", variant)
                yield f"{path.stem}:{choice}", module.get_config(choice)


def test_the_sample_has_its_own_values_and_what_is_set_by_hand_stays():
    names = []
    for name, config in on_sample():
        names.append(name)
        flat = workdir.settings(resolve(config).to_dict())
        overrides = workdir.settings(config.on_sample.overrides.to_dict())
        wanted = {key: value for key, value in overrides.items() if key in flat and "." in key}
        for key, value in wanted.items():
            if key not in workdir.settings({}):
                assert flat[key] == value, (name, key)
        assert not [key for key in flat if key.startswith("on_sample.replaced")]
        resolved_again = resolve(resolve(config))
        assert resolved_again.to_dict() == resolve(config).to_dict(), name
    assert len(names) > 15


def test_a_value_set_by_hand_wins():
    config = lcr_ser.get_config("qilin,paper")
    base = config.train.max_epochs
    assert resolve(config).train.max_epochs == 8.0
    config.train.max_epochs = 1.0  # from Python
    config.rl.examples = 64
    resolved = resolve(config)
    assert (resolved.train.max_epochs, resolved.rl.examples) == (1.0, 64)
    assert resolved.train.batch_size == 128, "the rest is the sample's"
    config.train.max_epochs = base  # told by its name alone
    assert resolve(config).train.max_epochs == 8.0
    assert resolve(config, {"train.max_epochs"}).train.max_epochs == base
    config.on_sample.overrides.train.max_epochs = 2.0
    assert resolve(config).train.max_epochs == 2.0
    config.on_sample.overrides.loop = {"log_every": 7}  # which the file does not replace
    config.train.max_epochs = 1.0
    resolved = resolve(config)
    assert (resolved.loop.log_every, resolved.train.max_epochs) == (7, 1.0)
    assert resolve(resolved).to_dict() == resolved.to_dict()
