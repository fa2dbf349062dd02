"""Data and cache in an object store: one machine prepares, others fetch, and nothing is halved."""

import logging
import os
import shutil

import fsspec
import pytest

from configs import popularity
from core import object_store
from core.errors import UserError
from experiments.resolve import resolve
from input_pipelines.dataset import Dataset
from input_pipelines.stored_cache import open_cache

CLICKS = "user,item,time\n" + "".join(
    f"u{user},i{(user * place) % 130},{100 * place}\n" for user in range(8) for place in range(1, 6)
)
ITEMS = "item,title\n" + "".join(f"i{item},a pot\n" for item in range(130))
SEARCHES = "user,session,time,query,clicked_items\nu1,s1,120,red tea,\n"


@pytest.fixture
def config(monkeypatch, tmp_path):
    """Reads memory://b/raw into memory://b/cache; machines are folders below tmp_path."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    for name, text in {"clicks": CLICKS, "items": ITEMS, "searches": SEARCHES}.items():
        files.pipe(f"/b/raw/{name}.csv", text.encode())
    config = popularity.get_config("csv_log")
    config.data_dir, config.cache_dir = "memory://b/raw", "memory://b/cache"
    at(monkeypatch, tmp_path, "first")
    yield config
    files.store.clear()


def at(monkeypatch, tmp_path, machine):
    monkeypatch.setenv(object_store.FOLDER_VARIABLE, str(tmp_path / machine))


def objects():
    """The names of what the store has, without the checksums of files of the cache."""
    names = fsspec.filesystem("memory").store
    return {name.removeprefix("/b/cache/").partition("~")[0] for name in names}


def test_another_machine_finds_what_one_has_prepared(config, monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO, "core.object_store")
    data = Dataset(resolve(config))
    assert data.directory.startswith(str(tmp_path / "first"))
    lists = data.candidate_lists("test", "neg99")
    log = os.path.basename(data.directory)
    assert {f"{log}/meta.json", f"{log}/rec_items.npy", f"{log}/.whole.json"} < objects()
    assert any("neg99" in name for name in objects())

    at(monkeypatch, tmp_path, "second")
    monkeypatch.setattr("input_pipelines.prepare._prepare", None)  # not to be called
    there = Dataset(resolve(config))
    assert there.directory.startswith(str(tmp_path / "second"))
    assert there.log.hash == data.log.hash
    caplog.clear()
    assert (there.candidate_lists("test", "neg99") == lists).all()
    assert not caplog.records  # nothing new to send

    local = config.copy_and_resolve_references()
    shutil.copytree(there.raw_dir, tmp_path / "raw")
    local.data_dir, local.cache_dir = str(tmp_path / "raw"), str(tmp_path / "cache")
    monkeypatch.undo()
    assert Dataset(resolve(local)).log.hash == data.log.hash


def test_a_run_in_the_cache_is_sent_once_it_is_finished(config):
    """Another process trains identifiers there: nobody fetches half of what it writes."""
    data = Dataset(resolve(config))
    run = os.path.join(data.directory, "identifiers-0")
    os.mkdir(run)

    def write(name, text):
        with open(os.path.join(run, name), "w", encoding="utf-8") as file:
            file.write(text)

    def there():
        return {name.partition("/identifiers-0/")[2] for name in objects() if "identifiers" in name}

    write("config.json", "{}")
    write("metrics.jsonl", "1\n")
    data.share()
    assert not there()
    write("results.json", "{}")
    data.share()
    assert there() == {"config.json", "metrics.jsonl", "results.json"}
    # Files of another machine's are not added to it.
    write("events", "2")
    data.share()
    assert there() == {"config.json", "metrics.jsonl", "results.json"}


def test_a_store_that_cannot_be_written_is_found_before_the_reading(config, monkeypatch, tmp_path):
    files = fsspec.filesystem("memory")

    def refuse(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(files), "pipe_file", refuse)
    monkeypatch.setattr("input_pipelines.prepare._prepare", None)  # not to be called
    with pytest.raises(UserError, match=r"to write memory://b/cache/csv_log-.*, found no rights"):
        Dataset(resolve(config))
    assert not [name for name in objects() if not name.startswith("/b/raw/")]


def test_lists_that_cannot_be_sent_cost_a_warning(config, monkeypatch, caplog):
    data = Dataset(resolve(config))

    def refuse(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", refuse)
    assert data.candidate_lists("test", "neg99").shape[1] == 100
    assert "what was made from the data stays on this machine: expected to write" in caplog.text
    assert "no rights (Access Denied)" in caplog.text


def test_a_cache_of_this_machine_is_shared_with_nobody(tmp_path):
    assert open_cache(str(tmp_path)) == (str(tmp_path), None)


def test_data_that_change_in_the_store_are_other_data(config):
    before = Dataset(resolve(config)).log.hash
    fsspec.filesystem("memory").pipe("/b/raw/clicks.csv", (CLICKS + "u1,i1,700\n").encode())
    assert Dataset(resolve(config)).log.hash != before
