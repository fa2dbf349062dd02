"""Item vectors of a trained baseline, and every way the export is refused."""

import hashlib
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
from ml_collections import config_dict

from configs import popularity, sasrec
from core import checksums
from core.errors import UserError
from core.experiment import Experiment
from core.workdir import Workdir
from experiments.export_vectors import check_place, export
from experiments.restored import Restored
from experiments.train import train

ROOT = pathlib.Path(__file__).parent.parent.parent


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "launch.export_vectors", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def config_of(module, small_config):
    config = module.get_config()
    config.dataset = "csv_log"
    config.data_dir, config.cache_dir = small_config.data_dir, small_config.cache_dir
    config.data = small_config.data.copy_and_resolve_references()
    if "train" in config:
        config.train.batch_size, config.train.max_epochs = 32, 1.0
    config.eval.protocols = ("neg99",)
    return config


@pytest.fixture(scope="module")
def trained(small_config, tmp_path_factory):
    config = config_of(sasrec, small_config)
    config.model.width, config.model.layers = 8, 1
    workdir = tmp_path_factory.mktemp("run") / "w"
    train(config, str(workdir))
    return workdir


def test_the_files_hold_the_table_in_the_order_of_the_ids(trained, tmp_path):
    restored = Restored(str(trained))
    out = tmp_path / "items.npy"
    described = export(restored, "item", str(out))
    rows = np.load(out)
    assert rows.shape == (150, 8) and rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.asarray(restored.tables["item"])[1:])
    text = (tmp_path / "items.ids.txt").read_text()
    assert text.splitlines() == np.asarray(restored.data.log.item_ids)[1:].tolist()
    saved = checksums.read_sealed(str(tmp_path / "items.json"), "", "")
    assert saved == described
    assert saved["hash"] == hashlib.sha256(rows.tobytes() + text.encode()).hexdigest()[:16]
    assert saved["method"] == "sasrec" and saved["stage"] == "train"
    assert saved["step"] == restored.step > 0 and saved["workdir"] == str(trained)
    assert saved["ids_file"] == "items.ids.txt" and saved["commit"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "items.ids.txt",
        "items.json",
        "items.npy",
    ]


def test_what_is_refused(trained, small_config, tmp_path):
    restored = Restored(str(trained))
    with pytest.raises(UserError, match="user vectors, found one of sasrec, which has the tables"):
        export(restored, "user", str(tmp_path / "users.npy"))
    for out in (tmp_path / "items.txt", tmp_path / "no" / "items.npy"):
        with pytest.raises(UserError, match=r"--out=FILE\.npy"):
            export(restored, "item", str(out))
    popular = tmp_path / "popular"
    train(config_of(popularity, small_config), str(popular))
    with pytest.raises(UserError, match="found one of popularity, which has no vectors at all"):
        export(Restored(str(popular)), "item", str(tmp_path / "items.npy"))
    empty = Workdir(str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    for name in ("config.json", "log.json"):
        (tmp_path / "empty" / name).write_text((trained / name).read_text())
    with pytest.raises(UserError, match="expected checkpoints of stage train"):
        Restored(empty.path)
    assert not list(tmp_path.glob("*.npy")) and not list(tmp_path.glob("*.json"))


def test_tables_that_are_no_vectors_are_refused(tmp_path):
    experiment = Experiment()
    experiment.config = config_dict.ConfigDict({"method": "gensar"})
    tables = {"identifiers": np.zeros(4, np.uint8)}
    restored = types.SimpleNamespace(tables=tables, experiment=experiment)
    with pytest.raises(UserError, match="found one of gensar, which has no vectors at all"):
        export(restored, "identifiers", str(tmp_path / "items.npy"))
    assert not list(tmp_path.iterdir())


def test_files_of_another_kind_are_not_overwritten(trained, tmp_path):
    for name in ("config", "results", "log"):
        before = (trained / f"{name}.json").read_bytes()
        done = run(f"--workdir={trained}", f"--out={trained / name}.npy")
        assert done.returncode == 2 and "Traceback" not in done.stderr
        words = f"expected {trained / name}.json to be free for the vectors' description"
        assert words in done.stderr
        assert (trained / f"{name}.json").read_bytes() == before
    assert not list(trained.glob("*.npy")) and not list(trained.glob("*.ids.txt"))
    (tmp_path / "items.json").write_text("no JSON")
    with pytest.raises(UserError, match="found another file; pass another --out"):
        check_place(str(tmp_path / "items.npy"))
    # Its own description is replaced.
    (tmp_path / "items.json").unlink()
    for _ in range(2):
        export(Restored(str(trained)), "item", str(tmp_path / "items.npy"))


def test_the_command_ends_a_mistake_in_one_line(tmp_path):
    done = run(f"--workdir={tmp_path / 'none'}", f"--out={tmp_path / 'items.npy'}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "config.json" in lines[0]
    assert not (tmp_path / "items.npy").exists()
