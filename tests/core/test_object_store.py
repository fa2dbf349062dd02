"""Folders of an object store: fetched and sent whole or not at all, with one line where not."""

import importlib.util
import json
import os

import fsspec
import pytest

from core import checksums, object_store
from core.errors import UserError
from core.object_store import Store, fetch_folder, fetched, send_folder, sent, sent_names


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """An empty store in this process; copies of it lie below tmp_path."""
    monkeypatch.setenv(object_store.FOLDER_VARIABLE, str(tmp_path / "copies"))
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


def content_of(folder):
    return {
        os.path.relpath(os.path.join(at, name), folder): open(os.path.join(at, name), "rb").read()
        for at, _, names in os.walk(folder)
        for name in names
    }


def test_a_path_of_this_machine_is_used_as_it_is(tmp_path):
    assert fetched(str(tmp_path), "config.data_dir") == str(tmp_path)


def test_a_folder_is_fetched_once(memory, tmp_path):
    memory.pipe({"/b/data/clicks.csv": b"1,2", "/b/data/day=1/part": b"x", "/b/data/.hidden": b"-"})
    folder = fetched("memory://b/data", "config.data_dir")
    assert content_of(folder) == {"clicks.csv": b"1,2", "day=1/part": b"x"}
    assert folder.startswith(str(tmp_path / "copies"))
    os.utime(os.path.join(folder, "clicks.csv"), (1, 1))
    assert fetched("memory://b/data/", "config.data_dir") == folder
    assert os.stat(os.path.join(folder, "clicks.csv")).st_mtime == 1
    memory.pipe("/b/data/clicks.csv", b"1,3")
    other = fetched("memory://b/data", "config.data_dir")
    assert other != folder
    assert content_of(other)["clicks.csv"] == b"1,3"
    assert content_of(folder)["clicks.csv"] == b"1,2"


def test_objects_that_change_while_they_are_fetched_leave_no_copy(memory, tmp_path, monkeypatch):
    memory.pipe("/b/data/clicks.csv", b"1,2")
    fetch = Store.fetch

    def fetch_and_write(self, folder, names):
        fetch(self, folder, names)
        memory.pipe("/b/data/clicks.csv", b"1,2,3")

    monkeypatch.setattr(Store, "fetch", fetch_and_write)
    with pytest.raises(
        UserError, match=r"expected memory://b/data .* to stay as it is while it is"
    ):
        fetched("memory://b/data", "config.data_dir")
    assert os.listdir(tmp_path / "copies") == []


def test_a_file_that_is_not_what_the_store_says_leaves_no_copy(memory, tmp_path, monkeypatch):
    memory.pipe("/b/data/clicks.csv", b"1,2")

    def cut(self, folder, names):
        for name in names:
            with open(os.path.join(folder, name), "wb") as file:
                file.write(b"1")

    monkeypatch.setattr(Store, "fetch", cut)
    with pytest.raises(UserError, match=r"expected 3 bytes of memory://b/data/clicks.csv, found 1"):
        fetched("memory://b/data", "config.data_dir")
    assert os.listdir(tmp_path / "copies") == []


@pytest.mark.parametrize("name", ["../clicks.csv", "a/../../x", "a\x1b[2Jb", "a\\b"])
def test_a_name_that_leads_elsewhere_is_refused(memory, tmp_path, name):
    memory.store[f"/b/data/{name}"] = fsspec.implementations.memory.MemoryFile(
        memory, f"/b/data/{name}", b"1"
    )
    with pytest.raises(UserError, match="expected objects that can be files below memory://b/data"):
        fetched("memory://b/data", "config.data_dir")
    assert not (tmp_path / "copies").exists()


def test_an_object_that_is_a_folder_too_is_refused(memory, tmp_path):
    for name, content in {"/b/data/a": b"1", "/b/data/a/b": b"2"}.items():
        memory.store[name] = fsspec.implementations.memory.MemoryFile(memory, name, content)
    with pytest.raises(UserError, match=r"objects that can be files below memory://b/data .* 'a'"):
        fetched("memory://b/data", "config.data_dir")
    assert not (tmp_path / "copies").exists()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("zz://bucket/x", r"on this machine or in an object store, found zz://bucket/x \(Value"),
        ("memory://", "expected config.data_dir=memory://BUCKET/FOLDER, found memory://; name the"),
        ("memory://b/none", "expected files below memory://b/none .*, found none; correct"),
        ("memory://b/data/one", "expected a folder at memory://b/data/one .*, found an object"),
    ],
)
def test_an_address_that_cannot_be_is_one_line(memory, tmp_path, address, words):
    memory.pipe("/b/data/one", b"1")
    with pytest.raises(UserError, match=words) as raised:
        fetched(address, "config.data_dir")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "copies").exists()


@pytest.mark.skipif(bool(importlib.util.find_spec("adlfs")), reason="adlfs is installed")
def test_a_missing_package_is_named():
    with pytest.raises(UserError, match=r"expected the package for abfs:// of config.data_dir=abf"):
        fetched("abfs://c/data", "config.data_dir")


def refusing(error):
    def refuse(*_, **__):
        raise error

    return refuse


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError("Access Denied"), r"to read memory://b/data .*, found no rights \(Access"),
        (FileNotFoundError("The specified bucket does not exist"), "found The specified bucket do"),
        (
            ConnectionError("no route\nto host"),
            "found ConnectionError: no route to host; correct the addr",
        ),
    ],
)
def test_what_a_store_answers_is_one_line(memory, monkeypatch, error, words):
    monkeypatch.setattr(type(memory), "find", refusing(error))
    with pytest.raises(UserError, match=words):
        fetched("memory://b/data", "config.data_dir")


def test_what_was_sent_is_fetched_whole(memory, tmp_path):
    folder = tmp_path / "log"
    (folder / "index").mkdir(parents=True)
    (folder / "a.npy").write_bytes(b"array")
    (folder / "index" / "meta.json").write_text("{}")
    (folder / ".partial-x").write_text("not whole")
    store = Store("memory://b/log", "config.cache_dir")
    assert not fetch_folder(store, str(tmp_path / "none"))
    send_folder(store, str(folder))
    assert fetch_folder(store, str(tmp_path / "copy"))
    assert content_of(tmp_path / "copy") == {"a.npy": b"array", "index/meta.json": b"{}"}

    # Only what is new is sent, and what was there stays.
    before = memory.modified("/b/log/a.npy")
    (folder / "lists.npy").write_bytes(b"lists")
    send_folder(store, str(folder))
    assert memory.modified("/b/log/a.npy") == before
    assert fetch_folder(store, str(tmp_path / "later"))
    assert content_of(tmp_path / "later")["lists.npy"] == b"lists"


def codes_of(maker, tmp_path):
    """Makes a folder of two files that go with each other."""
    folder = tmp_path / maker
    folder.mkdir()
    (folder / "codes.npz").write_text(f"codes of {maker}")
    (folder / "codes.json").write_text(f'"codes of {maker}"')
    return folder


def test_what_was_sent_stays_whoever_makes_another(memory, tmp_path):
    """Two machines make files that go with each other, of the same sizes: no mixture of both."""
    store = Store("memory://b/log", "config.cache_dir")
    folders = {maker: codes_of(maker, tmp_path) for maker in ("1", "2")}
    (folders["2"] / "run").mkdir()
    for name in ("of_run", "run/a"):
        (folders["2"] / name).write_text("2")
    send_folder(store, str(folders["1"]))
    send_folder(store, str(folders["2"]), left_out=["run"])
    assert fetch_folder(store, str(tmp_path / "copy"))
    assert content_of(tmp_path / "copy") == {
        **{"codes.npz": b"codes of 1", "codes.json": b'"codes of 1"'},
        "of_run": b"2",
    }
    assert sent_names(store) == {"codes.npz", "codes.json", "of_run"}


@pytest.mark.parametrize("moment", [1, 2])
def test_two_who_send_the_same_names_at_once_leave_what_is_described(
    memory, tmp_path, monkeypatch, moment
):
    """The other sends all of its own between the two files of one, or before that one's record."""
    store = Store("memory://b/log", "config.cache_dir")
    folders = {maker: codes_of(maker, tmp_path) for maker in ("one", "other")}
    send, sends = Store.send, []

    def send_beside(self, folder, names, objects):
        send(self, folder, names, objects)
        sends.append(folder)
        if len(sends) == moment:
            send_folder(store, str(folders["other"]), by_content=True)
        if sent_names(store):  # which a reader may fetch at any moment
            assert fetch_folder(store, str(tmp_path / f"copy{len(sends)}"))

    with monkeypatch.context() as patch:
        patch.setattr(Store, "send", send_beside)
        send_folder(store, str(folders["one"]), by_content=True)
    assert fetch_folder(store, str(tmp_path / "copy"))
    assert content_of(tmp_path / "copy") == content_of(folders["other"])


def test_what_was_not_sent_whole_is_not_there(memory, tmp_path, monkeypatch):
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "a.npy").write_bytes(b"array")
    (folder / "meta.json").write_text("{}")
    store, send = Store("memory://b/log", "config.cache_dir"), Store.send

    def killed(self, folder, names, objects):
        names = list(names)
        send(self, folder, names, objects)
        if "a.npy" in names:
            raise UserError("killed")

    monkeypatch.setattr(Store, "send", killed)
    with pytest.raises(UserError, match="killed"):
        send_folder(store, str(folder))
    monkeypatch.undo()
    assert memory.exists("/b/log/a.npy") and not memory.exists("/b/log/meta.json")
    with pytest.raises(UserError, match=r"a whole folder at memory://b/log .* is being sent, or"):
        fetched("memory://b/log", "config.data_dir")
    assert not fetch_folder(store, str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()
    send_folder(store, str(folder))
    assert fetch_folder(store, str(tmp_path / "copy"))


def test_a_changed_object_is_refused(memory, tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "a.npy").write_bytes(b"array")
    store = Store("memory://b/log", "config.cache_dir")
    send_folder(store, str(folder))
    memory.pipe("/b/log/a.npy", b"arraz")
    with pytest.raises(UserError, match=r"expected the checksum .* of .*a.npy, found .*; remove"):
        fetch_folder(store, str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()
    record = json.loads(memory.cat("/b/log/" + object_store.RECORD))
    record["files"] = {"../../x": {"bytes": 1, "xxh3": "0"}}
    memory.pipe("/b/log/" + object_store.RECORD, json.dumps(record).encode())
    with pytest.raises(UserError, match=r"with its own checksum at memory://b/log/.whole.json"):
        fetch_folder(store, str(tmp_path / "copy"))
    sealed = checksums.sealed({name: record[name] for name in ("format", "files")})
    memory.pipe("/b/log/" + object_store.RECORD, json.dumps(sealed).encode())
    with pytest.raises(UserError, match=r"can be files below memory://b/log .*, found '../../x'"):
        fetch_folder(store, str(tmp_path / "copy"))


def test_a_block_that_fails_sends_nothing(memory, tmp_path):
    with (
        pytest.raises(UserError, match="expected more in memory://b/log, found none"),
        sent("memory://b/log", "--data_dir") as folder,
    ):
        (tmp_path / folder / "a").write_text("half")
        raise UserError(f"expected more in {folder}, found none")
    assert not memory.exists("/b/log/a")
    assert os.listdir(tmp_path / "copies") == []
    # What is there after that is no stranger's.
    with sent("memory://b/log", "--data_dir") as folder:
        (tmp_path / folder / "a").write_text("whole")
    assert memory.cat("/b/log/a") == b"whole"
    # It is there now: the block gets it.
    with sent("memory://b/log", "--data_dir") as folder:
        assert content_of(folder) == {"a": b"whole"}
