"""Trains methods under one protocol with as many trials each, and compares quality and cost.

    python -m launch.zoo --dataset=amazon_beauty --data_dir=DIR --workdir=W
        [--methods=popularity,item_knn,sasrec_ce,...] [--seeds=3] [--budget=8]
        [--setting=KEY=VALUE ...] [--metric=ndcg@10/full] [--share=I/N]

Every method has --budget trials with its first seed: the settings of its config file, then others
(learning rate, L2, dropout, and what `TRIED` of its config file names). The trial that is best on
validation is trained with --seeds seeds, and these are tested. A method with nothing to try, such
as popularity, has one trial. --setting, which may be given several times, sets a key for every
method that has it, such as --setting=train.max_epochs=20; --methods without lcr_ser are those of
configs/baseline.py.

W holds table.md, table.json, page.html (self-contained, with quality against cost), and under
W/runs a normal workdir for every run. The same command continues a zoo that was stopped or killed,
and with more methods or seeds it adds to one; finished runs are not trained again. Several
processes, on machines that share W, take every N-th method each: --share=0/4 to --share=3/4. None
waits for another; the last to end writes the table.
"""

from __future__ import annotations

from absl import flags

from core import cli
from core.errors import UserError


def define_flags() -> None:
    flags.DEFINE_string("dataset", None, "Data set, as after the colon of configs.")
    flags.DEFINE_string("workdir", None, "Folder of the zoo.")
    flags.DEFINE_string("data_dir", "", "The raw files; empty: the embedded sample.")
    flags.DEFINE_list(
        "methods", [], "Of configs/baseline.py, or lcr_ser; default all that recommend."
    )
    flags.DEFINE_integer("seeds", 3, "How many seeds of the chosen settings.")
    flags.DEFINE_integer("budget", 1, "Trials of every method.")
    flags.DEFINE_multi_string("setting", [], "KEY=VALUE for every method that has the key.")
    flags.DEFINE_string("metric", "", "What is tested and drawn; default that of validation.")
    flags.DEFINE_string("share", "", "I/N: the part of the methods that this process trains.")


def check_flags() -> None:
    for name, example in (("dataset", "qilin"), ("workdir", "runs/zoo")):
        if getattr(flags.FLAGS, name) is None:
            raise UserError(f"expected --{name}=..., found none; for instance --{name}={example}")


cli.begin(__name__, define_flags, check_flags, continues=True)


import importlib
import json
from typing import Any

from studies.zoo.plans import Zoo, recommends
from studies.zoo.zoo import run_zoo

_LCR_SER = "lcr_ser"


def parse_setting(text: str) -> tuple[str, Any]:
    """Returns the key and the value, JSON or else a text, of KEY=VALUE.

    Raises:
      UserError: another form.
    """
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UserError(f"expected --setting=KEY=VALUE, found {text!r}; correct it")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def main() -> None:
    values = flags.FLAGS
    # By name: configs are files that programs are given.
    baseline = importlib.import_module("configs.baseline")
    settings = dict(map(parse_setting, values.setting)) | {"data_dir": values.data_dir}

    def config_of(method: str) -> tuple[Any, dict[str, tuple[float, float]]]:
        module, variant = baseline.file_of(method)
        try:
            config = module.get_config(",".join(filter(None, [values.dataset, variant])))
        except ValueError as error:
            raise UserError(f"{str(error).splitlines()[0]}; pass another --dataset") from error
        return config, getattr(module, "TRIED", {})

    methods = tuple(values.methods) or tuple(
        method for method in baseline.METHODS if recommends(config_of(method)[0])
    )
    zoo = Zoo(values.dataset, methods, values.seeds, values.budget, settings)
    known = (*baseline.METHODS, _LCR_SER)
    print(run_zoo(zoo, config_of, known, values.workdir, values.metric, values.share))


if __name__ == "__main__":
    cli.run(main)
