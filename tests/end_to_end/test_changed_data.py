"""A run whose data has changed is neither continued nor evaluated, whatever its config says."""

import json
import shutil

import pytest

from configs import popularity
from core.errors import UserError
from experiments.restored import Restored
from experiments.train import train
from studies.ablation.ablate import ablate

WORDS = r"expected the log \w+ that the run in .* was trained on, found \w+: .*another --workdir"


@pytest.fixture
def config(small_config, csv_folder, tmp_path):
    changed = small_config.copy_and_resolve_references()
    changed.data_dir = str(tmp_path / "data")
    shutil.copytree(csv_folder, changed.data_dir)
    return changed


def change(config):
    with open(f"{config.data_dir}/clicks.csv", "a", encoding="utf-8") as file:
        file.write("u7,i7,12345\n")


def test_a_run_keeps_to_its_log(config, tmp_path):
    popular = popularity.get_config()
    popular.dataset, popular.data = config.dataset, config.data
    popular.data_dir, popular.cache_dir = config.data_dir, config.cache_dir
    popular.eval.protocols = ("neg99",)
    workdir = tmp_path / "w"
    (row,) = train(popular, str(workdir))["rows"]
    log = workdir / "log.json"
    assert json.loads(log.read_text()) == {"hash": row["data_hash"]}
    assert train(popular, str(workdir))["rows"] == [row]
    change(config)
    with pytest.raises(UserError, match=WORDS):
        train(popular, str(workdir))
    with pytest.raises(UserError, match=WORDS):
        Restored(str(workdir))
    log.unlink()
    for program, arguments in ((Restored, ()), (train, (popular,))):
        with pytest.raises(UserError, match=r"expected log\.json, .* found none; restore the file"):
            program(*arguments, str(workdir))


def test_a_sweep_keeps_to_its_log(config, tmp_path):
    def killed(arms):
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ablate(config, "lambda_tcl:0,0.5", str(tmp_path / "w"), train=killed)
    change(config)
    with pytest.raises(UserError, match=WORDS):
        ablate(config, "lambda_tcl:0,0.5", str(tmp_path / "w"))
    # Also where nothing is left to train.
    arms = {f"lambda_TCL = {value}, seed 0": None for value in ("0", "0.5")}
    (tmp_path / "w" / "arms.json").write_text(json.dumps(arms))
    with pytest.raises(UserError, match=WORDS):
        ablate(config, "lambda_tcl:0,0.5", str(tmp_path / "w"))
