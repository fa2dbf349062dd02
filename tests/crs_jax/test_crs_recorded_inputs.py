"""What a run of CRS keeps: its ids, which others may extend, and its tokenizer."""

import json
import shutil

import numpy as np
import pytest
from test_crs import ITEMS, config_of, opened, write_beauty

from core.errors import UserError
from core.mirrors import mirrored
from core.object_store import FOLDER_VARIABLE
from core.workdir import Workdir
from crs_jax import recorded_inputs
from experiments.methods import open_experiment, reopened
from input_pipelines.dataset import Dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_beauty(tmp_path_factory.mktemp("crs") / "beauty")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_a_run_is_held_to_its_ids_and_its_tokenizer(folder, cache, tmp_path):
    experiment = opened(folder, cache)
    workdir = Workdir(str(tmp_path))
    recorded_inputs.record(workdir, experiment.examples)
    recorded_inputs.record(workdir, experiment.examples)
    before = (tmp_path / "semantic_ids.npz").read_bytes()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"expected the tokenizer that this run has in .*json"):
        recorded_inputs.record(workdir, experiment.examples)
    other = opened(folder, cache, **{"semantic_ids.codes": (3, 4, 4)})
    with pytest.raises(UserError, match=r"semantic ids \w+ that this run .* bring its config"):
        recorded_inputs.record(workdir, other.examples)
    assert (tmp_path / "semantic_ids.npz").read_bytes() == before


def test_broken_records_of_a_run_are_one_line(folder, cache, tmp_path):
    experiment = opened(folder, cache)
    workdir = Workdir(str(tmp_path))
    for content in (b"", b"[]", b"{", b"\xe9", b"[" * 100_000, b"{}", b'{"items": 3}'):
        (tmp_path / "inputs.json").write_bytes(content)
        with pytest.raises(UserError, match=r"expected the .*items.*, found .*; (restore|bring)"):
            recorded_inputs.record(workdir, experiment.examples)
    config = config_of(folder, cache)
    for content in (b"", b"[]", b"{}", b'"3"', b"\xe9"):
        (tmp_path / "text_rows.json").write_bytes(content)
        with pytest.raises(UserError, match="expected a run's rows of text at"):
            recorded_inputs.reopened(config, str(tmp_path), training=True)


def ids_by_name(examples):
    return dict(zip(examples.item_names(), examples.ids.codes.tolist(), strict=True))


def test_a_larger_catalogue_keeps_the_ids_of_a_run(folder, cache, tmp_path, monkeypatch):
    before = opened(folder, cache).examples
    recorded_inputs.record(Workdir(str(tmp_path / "run")), before)
    shutil.copytree(folder, tmp_path / "larger")
    with open(tmp_path / "larger" / "items.jsonl", "a") as file:
        for item in range(ITEMS, ITEMS + 3):
            record = {"item": item, "query_ids": [0], "title": f"kind0 red no{item}"}
            file.write(json.dumps(record) + "\n")
    extend = {"semantic_ids.extend": str(tmp_path / "run")}
    after = opened(str(tmp_path / "larger"), cache, **extend).examples
    codes = ids_by_name(after)
    assert len(codes) == ITEMS + 3 and len(np.unique(after.ids.codes, axis=0)) == ITEMS + 3
    assert ids_by_name(before).items() <= codes.items()
    # Of the same catalogue they are the run's own, whatever would be made now.
    again = opened(folder, cache, **extend, **{"vectors.width": 8}).examples
    assert again.ids.hash == before.ids.hash
    more = opened(folder, cache, **extend, **{"semantic_ids.last_codes": 40}).examples.ids
    assert more.levels == (4, 4, 4, 40) and (more.codes == before.ids.codes).all()
    with pytest.raises(UserError, match=r"codes=\(3, 4, 4\) in .*, found codes up to"):
        opened(folder, cache, **extend, **{"semantic_ids.codes": (3, 4, 4)})

    # An item that leaves keeps its id from those that come later.
    recorded_inputs.record(Workdir(str(tmp_path / "second")), after)
    extend = {"semantic_ids.extend": str(tmp_path / "second")}
    back = opened(folder, cache, **extend).examples
    recorded_inputs.record(Workdir(str(tmp_path / "third")), back)
    assert back.ids.codes.tolist() == before.ids.codes.tolist()
    # From a store it is the same.
    address = f"memory://third/{tmp_path.name}"
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "machine"))
    with mirrored(address) as place:
        shutil.copytree(tmp_path / "third", place, dirs_exist_ok=True)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "another machine"))
    extend = {"semantic_ids.extend": address}
    with open(tmp_path / "larger" / "items.jsonl", "a") as file:
        record = {"item": ITEMS + 3, "query_ids": [0], "title": "kind0 red"}
        file.write(json.dumps(record) + "\n")
    examples = opened(str(tmp_path / "larger"), cache, **extend).examples
    assert codes.items() <= ids_by_name(examples).items()
    assert len(np.unique(examples.ids.codes, axis=0)) == ITEMS + 4


def test_a_run_continues_with_what_it_keeps_and_the_same_items(folder, cache, tmp_path):
    begun = tmp_path / "run"
    config = config_of(folder, cache)
    assert reopened(config, str(begun), training=True) is config
    experiment = opened(folder, cache)
    recorded_inputs.record(Workdir(str(begun)), experiment.examples)
    # Neither the cache nor the run whose ids were extended need be there any more.
    config.cache_dir = str(tmp_path / "empty")
    config.semantic_ids.extend = str(tmp_path / "gone")
    config = reopened(config, str(begun), training=True)
    again = open_experiment(config, Dataset(config))
    assert again.examples.ids.hash == experiment.examples.ids.hash
    recorded_inputs.record(Workdir(str(begun)), again.examples)
    other = shutil.copytree(folder, tmp_path / "dearer")
    lines = (other / "items.jsonl").read_text().replace('"title"', '"price": 9.5, "title"', 1)
    (other / "items.jsonl").write_text(lines)
    dearer = opened(str(other), tmp_path / "other")
    assert dearer.data.log.hash == experiment.data.log.hash
    with pytest.raises(UserError, match=r"expected the training searches, items' texts .* found"):
        recorded_inputs.record(Workdir(str(begun)), dearer.examples)


def test_no_room_for_an_item_is_found_before_anything_is_made(folder, cache):
    experiment = opened(folder, cache, **{"prompts.max_answer": 3})
    with pytest.raises(UserError, match=r"an item's context in 2 tokens, .*prompts\.max_answer"):
        experiment.check_data()
