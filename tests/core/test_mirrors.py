"""Workdirs at addresses: snapshots, the lease, and another machine that goes on."""

import logging
import os
import pathlib
import shutil
import time

import pytest

from core import distributed, mirrors, signals
from core.errors import UserError
from core.mirrors import LeaseLost, Mirror, copied_run, mirrored
from core.object_store import FOLDER_VARIABLE, Store
from core.termination import watched


@pytest.fixture
def address(tmp_path):
    return f"file://{tmp_path}/store/run"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes this the machine of a name, with folders of its own."""

    def become(name):
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / name))

    become("first")
    return become


def files(folder):
    root = pathlib.Path(folder)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def killed(mirror):
    """Ends a mirror as a kill does: nothing is saved, the lease stays, this machine's lock goes."""
    mirror._saved_enough.set()
    mirror._ended.set()
    for thread in mirror._threads:
        thread.join()
    mirror._own_lock.close()


def opened(address, lease_s=0.4):
    mirror = Mirror(address, every_s=3600.0, lease_s=lease_s)
    mirror.open()
    return mirror


def test_a_path_is_its_own_folder(tmp_path):
    with mirrored(str(tmp_path / "w")) as folder:
        assert folder == str(tmp_path / "w")
    assert copied_run(folder) == folder and not list(tmp_path.iterdir())


def test_another_machine_goes_on_from_the_last_snapshot(address, machine):
    mirror = opened(address)
    place = pathlib.Path(mirror.place)
    (place / "checkpoints" / "train" / "3").mkdir(parents=True)
    (place / "checkpoints" / "train" / "3" / "array").write_bytes(bytes(10**5))
    (place / "checkpoints" / "train" / "6.orbax-checkpoint-tmp").mkdir()
    (place / "checkpoints" / "train" / "6.orbax-checkpoint-tmp" / "array").write_bytes(b"half")
    (place / "metrics.jsonl").write_text("1\n", encoding="utf-8")
    (place / ".lock").write_text("", encoding="utf-8")
    mirror.push()
    saved = {"checkpoints/train/3/array": bytes(10**5), "metrics.jsonl": b"1\n"}
    (place / "metrics.jsonl").write_text("1\n2\n", encoding="utf-8")
    # A push that was cut short has left this.
    store = Store(address, "--workdir")
    store.write("workdir/results.json~0123456789abcdef", b"{}")
    killed(mirror)

    machine("second")
    again = opened(address)
    assert again.place != mirror.place and files(again.place) == saved
    place = pathlib.Path(again.place)
    (place / "checkpoints" / "train" / "3" / "array").unlink()
    (place / "metrics.jsonl").write_text("1\n2\n3\n", encoding="utf-8")
    again.close()

    # The first machine's own state is older now.
    machine("first")
    assert copied_run(address) == mirror.place
    kept = {name: text for name, text in files(mirror.place).items() if "tmp" not in name}
    assert {n: t for n, t in kept.items() if n != ".lock"} == {"metrics.jsonl": b"1\n2\n3\n"}
    assert not (pathlib.Path(mirror.place) / "checkpoints").exists()
    # Objects that no snapshot has are gone, and so is the lease.
    names = sorted(store.entries())
    assert [n.partition("~")[0] for n in names] == ["snapshot.json", "workdir/metrics.jsonl"]


def test_the_same_machine_goes_on_from_its_own_folder(address, machine):
    mirror = opened(address)
    place = pathlib.Path(mirror.place)
    (place / "metrics.jsonl").write_text("1\n", encoding="utf-8")
    mirror.push()
    (place / "metrics.jsonl").write_text("1\n2\n", encoding="utf-8")
    killed(mirror)
    began = time.monotonic()
    again = opened(address, lease_s=60.0)
    assert time.monotonic() - began < 30
    assert (place / "metrics.jsonl").read_text(encoding="utf-8") == "1\n2\n"
    again.close()
    machine("second")
    assert files(copied_run(address))["metrics.jsonl"] == b"1\n2\n"


def test_a_run_that_lives_keeps_others_out(address, machine, monkeypatch):
    monkeypatch.setattr(mirrors, "_RENEWED_S", 0.05)
    mirror = opened(address)
    with pytest.raises(UserError, match="to be free, found another running process in it"):
        opened(address)
    machine("second")
    with pytest.raises(UserError, match="to be free, found another running process in it"):
        opened(address)
    mirror.close()
    opened(address).close()


def test_the_last_snapshot_may_take_longer_than_the_lease_lives(machine, monkeypatch):
    monkeypatch.setattr(mirrors, "_RENEWED_S", 0.05)
    # A file is read half written, an object is not.
    address = f"memory://slow/{os.urandom(4).hex()}"
    mirror = opened(address)
    pathlib.Path(mirror.place, "results.json").write_text("{}", encoding="utf-8")
    send, leases = Store.send, []

    def send_slowly(store, folder, names):
        for _ in range(2):
            leases.append(store.read("lease.json"))
            time.sleep(0.4)
        send(store, folder, names)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "send", send_slowly)
        mirror.close()
    assert leases[0] != leases[1]  # who waits for it sees that the run lives
    machine("second")
    assert files(copied_run(address)) == {"results.json": b"{}"}


def test_a_run_that_lost_its_lease_saves_no_snapshot(address, machine):
    mirror = opened(address)
    machine("second")
    other = opened(address)  # the first has not renewed it for too long
    pathlib.Path(mirror.place, "results.json").write_text("{}", encoding="utf-8")
    with pytest.raises(LeaseLost, match=r"found it taken by the run on .*; leave the workdir to"):
        mirror.push()
    assert "snapshot.json" not in Store(address, "--workdir").entries()
    other.close()
    with pytest.raises(LeaseLost, match="found it taken by a run that has ended"):
        mirror.close()


@pytest.mark.parametrize("interval", ["_RENEWED_S", "EVERY_S"])
def test_a_run_that_loses_its_lease_stops(machine, monkeypatch, caplog, interval):
    """Whether it finds that out as it renews the lease or as it saves a snapshot."""
    address = f"memory://lost/{os.urandom(4).hex()}"
    monkeypatch.setattr(mirrors, interval, 0.05)

    def train():
        with mirrored(address) as folder, watched() as termination:
            Store(address, "").write("lease.json", b'{"owner": "second", "token": "0"}')
            pathlib.Path(folder, "results.json").write_text("{}", encoding="utf-8")
            deadline = time.monotonic() + 10
            while not termination.arrived():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            raise termination.preempted(": saved")

    with pytest.raises(LeaseLost, match="found it taken by the run on second"):
        train()
    assert not caplog.messages and signals.reason() is None
    names = list(Store(address, "").entries())
    assert names[0] == "lease.json" and "snapshot.json" not in names


def test_a_run_that_lost_its_lease_removes_no_objects(address, machine, monkeypatch):
    """It sleeps between its look at the lease and its snapshot: who takes over needs them."""
    mirror = opened(address)
    path = pathlib.Path(mirror.place, "results.json")
    path.write_text("1", encoding="utf-8")
    mirror.push()
    path.write_text("22", encoding="utf-8")
    write = Store.write

    def taken_before(store, name, content):
        if name == "snapshot.json":
            write(store, "lease.json", b'{"owner": "second", "token": "0"}')
        write(store, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", taken_before)
        with pytest.raises(LeaseLost):
            mirror.push()
    killed(mirror)
    names = [name for name in Store(address, "--workdir").entries() if "results.json" in name]
    assert len(names) == 2


def replaced(path, text):
    path.with_suffix(".new").write_text(text, encoding="utf-8")
    os.replace(path.with_suffix(".new"), path)


def test_snapshots_are_of_one_moment(address, machine, monkeypatch):
    """Both files are replaced between the copies of the two: no snapshot has the old and a new."""
    mirror = opened(address)
    pair = [pathlib.Path(mirror.place, name) for name in ("a", "b")]
    for path in pair:
        path.write_text("1", encoding="utf-8")
    copy, copied = shutil.copyfile, []

    def copyfile(path, out):
        copy(path, out)
        copied.append(path)
        if len(copied) == 1:
            for path in pair:
                replaced(path, "2")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", copyfile)
        mirror.push()
    assert len([path for path in copied if path.startswith(f"{mirror.place}/")]) == 4
    killed(mirror)
    machine("second")
    assert files(copied_run(address)) == {"a": b"2", "b": b"2"}


def test_a_file_that_grows_holds_no_snapshot_up(address, machine, monkeypatch):
    mirror = opened(address)
    lines = pathlib.Path(mirror.place, "metrics.jsonl")
    lines.write_text("1\n", encoding="utf-8")
    copy = shutil.copyfile

    def copyfile(path, out):
        copy(path, out)
        with open(path, "a", encoding="utf-8") as file:
            file.write("2\n")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", copyfile)
        mirror.push()
        mirror.push()
    killed(mirror)
    machine("second")
    assert files(copied_run(address)) == {"metrics.jsonl": b"1\n2\n"}


def test_other_objects_are_no_run(address, machine, tmp_path):
    folder = tmp_path / "store" / "run"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(UserError, match=r"to be empty or a run's workdir, found thesis.txt in it"):
        opened(address)
    assert files(folder) == {"thesis.txt": b"precious"}


@pytest.mark.parametrize("damage", ["object", "missing", "snapshot"])
def test_damage_is_told(address, machine, damage, tmp_path):
    mirror = opened(address)
    pathlib.Path(mirror.place, "results.json").write_text("{}", encoding="utf-8")
    mirror.close()
    folder = tmp_path / "store" / "run"
    (saved,) = folder.glob("workdir/*")
    if damage == "object":
        saved.write_text("[]", encoding="utf-8")
    elif damage == "missing":
        saved.unlink()
    else:
        (folder / "snapshot.json").write_text('{"format": 1}', encoding="utf-8")
    machine("second")
    words = {
        "object": r"expected the checksum .*results.json",
        "missing": "to stay, found one gone",
        "snapshot": "expected the snapshot of a run with its own checksum",
    }
    with pytest.raises(UserError, match=words[damage]):
        copied_run(address)
    with pytest.raises(UserError, match=words[damage]):
        opened(address)
    # The refused one has left no lease.
    assert not (folder / "lease.json").exists()


def test_no_run_at_an_address(address, machine):
    with pytest.raises(UserError, match=r"expected the workdir of a run at file://.*found none"):
        copied_run(address)


def test_a_folder_of_copies_that_cannot_be_made_is_one_line(address, machine, tmp_path):
    (tmp_path / "first").write_text("no folder", encoding="utf-8")
    for begin in (opened, copied_run):
        with pytest.raises(UserError, match=f"expected to make .*; set {FOLDER_VARIABLE} to anot"):
            begin(address)


def test_what_a_failing_run_has_left_is_saved(address, machine):
    with pytest.raises(RuntimeError), mirrored(address) as folder:
        pathlib.Path(folder, "metrics.jsonl").write_text("1\n", encoding="utf-8")
        raise RuntimeError
    machine("second")
    assert files(copied_run(address)) == {"metrics.jsonl": b"1\n"}


def test_a_store_that_fails_costs_a_warning_until_the_end(address, machine, caplog, monkeypatch):
    mirror = opened(address)
    pathlib.Path(mirror.place, "metrics.jsonl").write_text("1\n", encoding="utf-8")

    def refused(*arguments):
        raise UserError("expected to write to the store, found it full; free it")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(Store, "send", refused)
        mirror._push_quietly()
        mirror._push_quietly()
        with pytest.raises(UserError, match="found it full; free it; the run is whole in"):
            mirror.close()
    assert caplog.text.count("no snapshot was saved") == 1
    opened(address).close()
    machine("second")
    assert files(copied_run(address)) == {"metrics.jsonl": b"1\n"}


def test_processes_on_several_machines_are_refused(address, machine, monkeypatch):
    mirror = opened(address)
    word = mirror.sign()
    assert mirror.is_signed(word) and not mirror.is_signed("another")
    machine("second")
    # The other process of the job, which looks for the word in the copy of its own machine.
    assert not Mirror(address).is_signed(word)
    mirror.close()
    monkeypatch.setattr(distributed, "of_all", lambda value: [value, False])
    with (
        pytest.raises(UserError, match=f"on one machine with --workdir={address}, found several"),
        mirrored(address),
    ):
        pytest.fail("nothing is to run")
    assert Store(address, "--workdir").read("lease.json") is None
