"""Training in a notebook leaves its workdir to whoever comes next, however it ends."""

import pytest

from configs import baseline
from core import workdir
from core.errors import UserError
from experiments import train


def test_a_workdir_is_free_after_training(tmp_path, monkeypatch):
    opened, kept = train.open_workdir, []

    def keep(*args):
        kept.append(opened(*args))
        return kept[-1]

    monkeypatch.setattr(train, "open_workdir", keep)
    config = baseline.get_config("popularity,qilin")
    config.cache_dir, config.on_sample.users = str(tmp_path / "cache"), 60
    path = str(tmp_path / "w")
    rows = train.train(config, path)["rows"]
    # What the first run holds lives on, as in a notebook or a cycle of references.
    assert train.train(config, path)["rows"] == rows and len(kept) == 2

    def fail(*args):
        raise UserError("expected room, found none; make some")

    monkeypatch.setattr(train.results, "write_summary", fail)
    with pytest.raises(UserError, match="expected room"):
        train.train(config, path)
    workdir.Workdir(path).lock()
