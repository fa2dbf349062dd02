"""Folders copied from and to addresses; a folder of this disk, as file://, is the store."""

import os
import pathlib

import pytest

from core import stores
from core.errors import UserError

WHAT = "config.data_dir"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder behind the address file://..., and the address."""
    monkeypatch.setenv(stores.STORES_VARIABLE, str(tmp_path / "copies"))
    folder = tmp_path / "bucket" / "data"
    (folder / "part").mkdir(parents=True)
    (folder / "clicks.csv").write_text("user,item\n", encoding="utf-8")
    (folder / "part" / "0.bin").write_bytes(bytes(1000))
    return folder, f"file://{folder}"


def test_a_copy_has_the_files_and_follows_them(bucket):
    folder, address = bucket
    place = pathlib.Path(stores.fetched(address, WHAT))
    assert (place / "clicks.csv").read_text(encoding="utf-8") == "user,item\n"
    assert (place / "part" / "0.bin").read_bytes() == bytes(1000)
    (folder / "clicks.csv").write_text("user,item,time\n", encoding="utf-8")
    (folder / "part" / "0.bin").unlink()
    (folder / "new").write_text("x", encoding="utf-8")
    (place / "lists.npy").write_text("made here", encoding="utf-8")
    assert stores.fetched(address, WHAT) == str(place)
    assert (place / "clicks.csv").read_text(encoding="utf-8") == "user,item,time\n"
    assert not (place / "part" / "0.bin").exists()
    assert sorted(p.name for p in place.iterdir() if p.is_file()) == [
        "clicks.csv",
        "lists.npy",
        "new",
    ]


def test_what_is_here_already_is_not_copied_again(bucket):
    _, address = bucket
    place = pathlib.Path(stores.fetched(address, WHAT))
    before = os.stat(place / "clicks.csv").st_ino
    stores.fetched(address, WHAT)
    assert os.stat(place / "clicks.csv").st_ino == before
    (place / "clicks.csv").write_text("damaged", encoding="utf-8")
    stores.fetched(address, WHAT)
    assert (place / "clicks.csv").read_text(encoding="utf-8") == "user,item\n"


def test_published_last_file_last_and_fetched_whole(bucket, tmp_path):
    folder, _ = bucket
    address = f"file://{tmp_path}/bucket/out"
    assert not stores.fetch_whole(address, str(tmp_path / "none"), WHAT, "clicks.csv")
    assert not (tmp_path / "none").exists()
    (folder / ".hidden").write_text("", encoding="utf-8")
    stores.publish(str(folder), address, WHAT, "clicks.csv")
    out = tmp_path / "bucket" / "out"
    assert {p.name for p in out.rglob("*") if p.is_file()} == {"clicks.csv", "0.bin"}
    assert (out / "clicks.csv").stat().st_mtime_ns >= (out / "part" / "0.bin").stat().st_mtime_ns
    assert stores.fetch_whole(address, str(tmp_path / "own"), WHAT, "clicks.csv")
    assert (tmp_path / "own" / "part" / "0.bin").read_bytes() == bytes(1000)
    # A folder whose publishing was cut short has no last file.
    (out / "clicks.csv").unlink()
    assert not stores.fetch_whole(address, str(tmp_path / "none"), WHAT, "clicks.csv")


def test_one_of_several_creates(tmp_path):
    first, second = (stores.Store(f"file://{tmp_path}/w", WHAT) for _ in range(2))
    assert first.create("lease", b"1") and not second.create("lease", b"2")
    assert second.read("lease") == b"1"
    first.remove(["lease", "lease"])
    assert second.read("lease") is None


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nothing://bucket/x", "expected an address such as gs://BUCKET/FOLDER, .*found nothing:"),
        ("s3://", "expected an address such as .*; correct it"),
        ("file:///no/such/folder", "expected a folder with files at config.data_dir=.*nothing"),
        ("file://bucket/../../etc", "expected an address such as .*found file:"),
    ],
)
def test_addresses_that_lead_nowhere(address, words, tmp_path, monkeypatch):
    monkeypatch.setenv(stores.STORES_VARIABLE, str(tmp_path / "copies"))
    with pytest.raises(UserError, match=words):
        stores.fetched(address, WHAT)
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_named(monkeypatch):
    import fsspec

    def missing(scheme, **options):
        raise ImportError(f"Please install the package of {scheme}")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(UserError, match=r"package of s3:// for --workdir=s3://b/w.*\.\[store\]"):
        stores.Store("s3://b/w", "--workdir")


def test_a_folder_that_may_not_be_read(monkeypatch, tmp_path):
    store = stores.Store(f"file://{tmp_path}", "--workdir")

    def refused(*arguments, **options):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(store._system), "pipe_file", refused)
    with pytest.raises(UserError, match=r"write to --workdir=file.*found no right to; ask for it"):
        store.write("x", b"")


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, monkeypatch):
    store = stores.Store(f"file://{tmp_path}", WHAT)
    escape = {f"{tmp_path}/../../etc/passwd": {"size": 1, "mtime": 1.0, "type": "file"}}
    monkeypatch.setattr(type(store._system), "find", lambda *a, **k: escape)
    with pytest.raises(UserError, match="expected objects with names of files"):
        store.objects()
