"""What a run of CRS keeps: its ids, which others may extend, and its tokenizer."""

import json
import shutil

import numpy as np
import pytest
from test_crs import ITEMS, opened, write_beauty

from core.errors import UserError
from core.workdir import Workdir
from launch import crs_kept


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_beauty(tmp_path_factory.mktemp("crs") / "beauty")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_a_run_is_held_to_its_ids_and_its_tokenizer(folder, cache, tmp_path):
    experiment = opened(folder, cache)
    workdir = Workdir(str(tmp_path))
    crs_kept.keep(workdir, experiment.examples)
    crs_kept.keep(workdir, experiment.examples)
    before = (tmp_path / "semantic_ids.npz").read_bytes()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"expected the tokenizer that this run has in .*json"):
        crs_kept.keep(workdir, experiment.examples)
    other = opened(folder, cache, **{"semantic_ids.codes": (3, 4, 4)})
    with pytest.raises(UserError, match=r"semantic ids \w+ that this run .* bring its config"):
        crs_kept.keep(workdir, other.examples)
    assert (tmp_path / "semantic_ids.npz").read_bytes() == before


def test_a_larger_catalogue_keeps_the_ids_of_a_run(folder, cache, tmp_path):
    before = opened(folder, cache).examples
    crs_kept.keep(Workdir(str(tmp_path / "run")), before)
    shutil.copytree(folder, tmp_path / "larger")
    with open(tmp_path / "larger" / "items.jsonl", "a") as file:
        for item in range(ITEMS, ITEMS + 3):
            record = {"item": item, "query_ids": [0], "title": f"kind0 red no{item}"}
            file.write(json.dumps(record) + "\n")
    extend = {"semantic_ids.extend": str(tmp_path / "run")}
    after = opened(str(tmp_path / "larger"), cache, **extend).examples
    codes = dict(zip(after.item_names(), after.ids.codes.tolist(), strict=True))
    assert len(codes) == ITEMS + 3 and len(np.unique(after.ids.codes, axis=0)) == ITEMS + 3
    kept = dict(zip(before.item_names(), before.ids.codes.tolist(), strict=True))
    assert kept.items() <= codes.items()
    # Of the same catalogue they are the run's own, whatever would be made now.
    again = opened(folder, cache, **extend, **{"vectors.width": 8}).examples
    assert again.ids.hash == before.ids.hash
