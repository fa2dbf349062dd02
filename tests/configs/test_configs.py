"""Every config as text, in tests/golden/configs; the choices after a config file's colon.

A changed value shows as a difference; `pytest tests/configs --update-golden` writes the text anew.
"""

import importlib
import pathlib

import pytest

import configs
from configs import choices, crs, datasets, gensar, lcr_ser, matching, rearec, retrieval, sasrec
from core.workdir import settings
from experiments.resolve import resolve

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "configs"
FILES = sorted(path.stem for path in pathlib.Path(configs.__path__[0]).glob("*.py"))
METHODS = [
    name for name in FILES if hasattr(importlib.import_module(f"configs.{name}"), "DATASETS")
]
# Names from when a data set had a file of its own, which README's commands have.
NAMED = {
    "crs_amazon_beauty": ("crs", "amazon_beauty"),
    "crs_sample": ("crs", "qilin"),
    "crs_trivago_100k": ("crs", "trivago"),
    "gensar_amazon_beauty": ("gensar", "amazon_beauty"),
    "gensar_identifiers_amazon_beauty": ("gensar_identifiers", "amazon_beauty"),
    "gensar_qilin": ("gensar", "qilin"),
    "item_knn_amazon_beauty": ("item_knn", "amazon_beauty"),
    "lcr_ser_amazon_beauty": ("lcr_ser", "amazon_beauty"),
    "lcr_ser_csv_log": ("lcr_ser", "csv_log"),
    "lcr_ser_qilin": ("lcr_ser", "qilin"),
    "popularity_amazon_beauty": ("popularity", "amazon_beauty"),
    "sasrec_ce_amazon_beauty": ("sasrec", "amazon_beauty,ce"),
}


def every_choice(name):
    """Choices that a method's file takes, the data set qilin first."""
    module = importlib.import_module(f"configs.{name}")
    known = sorted(
        choices.names(module.DATASETS), key=lambda dataset: (dataset != "qilin", dataset)
    )
    variants = getattr(module, "VARIANTS", choices.ONE_FORM)
    for dataset in known:
        for variant in variants:
            if (name, variant) != ("matching", "dsi") or dataset in gensar.DATASETS:
                yield choices.choice_of(dataset, variant)


def values_of(config, data_dir):
    """The resolved config's values by dotted key, as text."""
    config.data_dir = data_dir
    return {key: repr(value) for key, value in settings(resolve(config).to_dict()).items()}


def text_of(name):
    """A method's first config in full, then what each of the others has otherwise."""
    module = importlib.import_module(f"configs.{name}")
    lines, first = [], {}
    for choice in every_choice(name):
        config = module.get_config(choice)
        for data_dir in ("/data", "") if "on_sample" in config else ("/data",):
            values = values_of(module.get_config(choice), data_dir)
            lines += ["", f"[{name}.py:{choice}{'' if data_dir else ', the sample'}]"]
            lines += [
                f"{key}: {values.get(key, 'none')}"
                for key in sorted(first | values)
                if values.get(key) != first.get(key)
                and ("on_sample" in config or not key.startswith("on_sample."))
            ]
            first = first or values
    return "\n".join(lines[1:]) + "\n"


@pytest.mark.parametrize("name", METHODS)
def test_every_config_is_as_its_golden_text(name, request):
    path, text = GOLDEN / f"{name}.txt", text_of(name)
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        pytest.skip(f"wrote {path.name} anew")
    assert text.splitlines() == path.read_text(encoding="utf-8").splitlines()


def test_golden_text_is_of_methods_that_there_are():
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == METHODS


def test_a_file_is_a_method_or_names_a_choice_of_one():
    assert set(FILES) - set(METHODS) - set(NAMED) == {
        *("__init__", "baseline", "choices", "datasets", "defaults", "identifiers_at_once"),
    }
    for name, (method, choice) in NAMED.items():
        named = importlib.import_module(f"configs.{name}").get_config()
        of_method = importlib.import_module(f"configs.{method}").get_config(choice)
        assert named.to_dict() == of_method.to_dict(), name


def test_a_variant_may_stand_first_and_the_first_is_taken_where_none_is_named():
    for module, default, other in ((sasrec, "bce", "ce"), (rearec, "erl", "prl")):
        plain = module.get_config("kuaisar").to_dict()
        assert module.get_config(f"kuaisar,{default}").to_dict() == plain
        turned = module.get_config(f"{other},kuaisar").to_dict()
        assert turned == module.get_config(f"kuaisar,{other}").to_dict() != plain
    assert retrieval.get_config("amazon_beauty").model.kind == "bm25"
    assert lcr_ser.get_config().to_dict() == lcr_ser.get_config("qilin").to_dict()


@pytest.mark.parametrize(
    ("module", "choice", "words"),
    [
        (sasrec, "", r"^expected configs/sasrec\.py:DATASET\[,VARIANT\] with a data set of amaz"),
        (sasrec, "ce", "found 'ce'$"),
        (sasrec, "qilin,kuaisar", "found 'qilin,kuaisar'$"),
        (sasrec, "qilin,ce,bce", "found 'qilin,ce,bce'$"),
        (sasrec, "qilin,", "found 'qilin,'$"),
        (lcr_ser, "kuaisar_small", r"found 'kuaisar_small' \(did you mean kuaisar\?\)$"),
        (gensar, "trivago", "a data set of amazon_beauty, amazon_electronics, qilin and a variant"),
        (crs, "trivago,0.6b", r"a variant of 1\.7b, 4b, tiny, latentr3, found 'tri"),
        (matching, "trivago,dsi", "a data set of amazon_beauty, qilin and a variant of dsi, found"),
    ],
)
def test_a_choice_that_there_is_not(module, choice, words):
    with pytest.raises(ValueError, match=words):
        module.get_config(choice)


def test_a_file_without_variants_does_not_ask_for_one():
    with pytest.raises(ValueError, match=r"gru4rec\.py:DATASET with a data set of [^,]+, .* found"):
        importlib.import_module("configs.gru4rec").get_config("mars")


def test_a_variants_values_stay_on_the_sample():
    assert resolve(crs.get_config("qilin")).model.size == "tiny"
    large = resolve(crs.get_config("qilin,1.7b"))
    assert (large.model.size, large.model.dtype) == ("1.7b", "float32")


def test_a_data_set_changes_only_keys_that_there_are():
    config = sasrec.method()
    with pytest.raises(KeyError, match=r"model\.widht"):
        choices.configure("sasrec", config, "kuaisar", {"kuaisar": {"model.widht": 8}})


def test_every_ranker_takes_every_data_set():
    for name in ("lcr_ser", "sasrec", "unisar", "popularity", "retrieval"):
        known = choices.names(importlib.import_module(f"configs.{name}").DATASETS)
        assert set(known) >= set(datasets.EVERY), name
