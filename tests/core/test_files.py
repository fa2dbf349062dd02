"""Files are written whole, by the umask, and read with bounds."""

import io
import json
import os
import resource
import subprocess
import sys
import time
import warnings
import zipfile

import numpy as np
import pytest

from core.errors import UserError
from core.files import (
    load_npy,
    load_npz,
    open_atomically,
    read_json,
    remove_abandoned,
    save_npy,
    save_npz,
    write_atomically,
)


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), open_atomically(str(path)) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_modes_follow_the_umask(tmp_path):
    code = (
        "import os, sys; os.umask(int(sys.argv[1], 8));"
        "from core.files import write_atomically; write_atomically(sys.argv[2], 'x')"
    )
    for umask, mode in (("022", 0o644), ("077", 0o600), ("002", 0o664)):
        path = tmp_path / umask
        subprocess.run([sys.executable, "-c", code, umask, str(path)], check=True)
        assert path.stat().st_mode & 0o777 == mode


def test_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_atomically(str(link), "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_device_and_a_pipe_are_written_to(tmp_path):
    write_atomically("/dev/null", "gone")
    assert not os.path.isfile("/dev/null")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    write_atomically(str(pipe), "through")
    assert reader.communicate(timeout=10)[0] == b"through"
    assert pipe.is_fifo()


def test_only_old_files_without_a_writer_are_removed(tmp_path):
    old = time.time() - 3600
    for name in (".partial-dead", ".partial-new", "other"):
        (tmp_path / name).write_text("")
    (tmp_path / ".partial-folder").mkdir()
    for name in (".partial-dead", "other", ".partial-folder"):
        os.utime(tmp_path / name, (old, old))
    with open_atomically(str(tmp_path / "whole")) as file:
        os.utime(file.fileno(), (old, old))
        remove_abandoned(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [".partial-new", "other", "whole"]


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "cannot be read"),
        (b'{"a": 1', "cannot be read"),
        (b"[1]", "a list"),
        (b"1", "int"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "cannot be read"),
    ],
)
def test_json_that_is_none_is_one_line(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_json(str(path), "values", "write them again")


def test_json_of_another_size_or_nowhere(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match="no such file"):
        read_json(str(path), "values", "write them again")
    path.write_text(json.dumps({"a": 1}))
    assert read_json(str(path), "values", "write them again") == {"a": 1}
    with pytest.raises(UserError, match="more than 3 bytes"):
        read_json(str(path), "values", "write them again", max_bytes=3)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _claiming(shape: str) -> bytes:
    """A .npy of no values whose header says otherwise."""
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize("memory_map", [False, True])
def test_arrays_come_back_as_they_were(tmp_path, memory_map):
    for array in (
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros((0, 3), np.int32),
        np.array(3.0),
        np.array(["a", "bc"]),
    ):
        path = tmp_path / "a.npy"
        path.write_bytes(_npy(array))
        values = load_npy(str(path), "values", "again", memory_map=memory_map)
        np.testing.assert_array_equal(values, array)
        assert values.dtype == array.dtype


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        _npy(np.arange(9))[:-1],
        _npy(np.arange(9)) + b"x",
        _claiming("(1000000000000,)"),
        _claiming("(-1, -1)"),
        _claiming("(4294967296, 4294967296, 4294967296)"),
        _claiming("(" * 40 + "1" + ",)" * 40),
    ],
)
@pytest.mark.parametrize("memory_map", [False, True])
def test_an_array_that_is_none_is_one_line(tmp_path, content, memory_map):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(UserError, match="expected values at"):
        load_npy(str(path), "values", "write them again", memory_map=memory_map)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(UserError, match="expected values at"):
        load_npz(str(tmp_path / "a.npz"), "values", "write them again")


def test_arrays_of_objects_are_never_unpickled(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match="objects"):
        load_npy(str(path), "values", "write them again")


def test_archives_are_bounded_and_whole(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"a": np.arange(5), "b": np.zeros((1000, 1000), np.float32)}
    np.savez_compressed(path, **arrays)
    for name, array in load_npz(str(path), "values", "again").items():
        np.testing.assert_array_equal(array, arrays[name])
    with pytest.raises(UserError, match="more than 1,000,000 bytes"):
        load_npz(str(path), "values", "again", max_bytes=10**6)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        load_npz(str(path), "values", "again")


def test_standard_output_is_written_to_wherever_it_leads(tmp_path):
    code = (
        "import sys; from core.files import write_atomically; print('before');"
        "write_atomically(sys.argv[1], 'whole\\n'); print('after')"
    )
    for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        command = [sys.executable, "-c", code, name]
        piped = subprocess.run(command, check=True, capture_output=True).stdout
        with open(tmp_path / "log", "wb") as file:
            file.write(b"old\n")
            file.flush()
            subprocess.run(command, check=True, stdout=file)
        assert piped == b"before\nwhole\nafter\n"
        assert (tmp_path / "log").read_bytes() == b"old\nbefore\nwhole\nafter\n"


def test_what_cannot_be_written_is_one_line_and_an_os_error(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    for path, reason in (("full", "No space left"), ("none/a", "no such file"), ("", "Is a dir")):
        with pytest.raises(UserError, match=f"expected to write .*, found {reason}") as caught:
            write_atomically(str(tmp_path / path), "x")
        assert isinstance(caught.value, OSError) and caught.value.errno
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError), open_atomically(str(tmp_path / "a")):
        open(tmp_path / "other")  # noqa: SIM115 - it is not there
    assert os.listdir(tmp_path) == ["full"]


@pytest.mark.parametrize("rows", [200, 900, 1100])
def test_an_array_whose_end_does_not_fit_is_not_written(tmp_path, rows):
    # A limit on file sizes makes writes fail as a full disk does. NumPy by itself tells of it only
    # where more than its buffer of 4,096 bytes was left over.
    array = np.arange(rows, dtype=np.int32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(UserError, match=r"expected to write .*a\.npy, found File too large"):
            save_npy(str(tmp_path / "a.npy"), array)
        with pytest.raises(UserError, match=r"expected to write .*a\.npz, found File too large"):
            save_npz(str(tmp_path / "a.npz"), {"a": array})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []
    save_npy(str(tmp_path / "a.npy"), array)
    np.testing.assert_array_equal(load_npy(str(tmp_path / "a.npy"), "an array", "mend it"), array)


@pytest.mark.parametrize("second", ["a.npy", "a"])
def test_an_archive_with_two_arrays_of_one_name_is_refused(tmp_path, second):
    path = str(tmp_path / "x.npz")
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, count in (("a.npy", 3), (second, 4)):
            content = io.BytesIO()
            np.save(content, np.arange(count))
            archive.writestr(name, content.getvalue())
    with pytest.raises(UserError, match="two arrays of the name 'a'"):
        load_npz(path, "vectors", "make them again")


def test_a_npy_header_with_a_list_as_a_key_is_one_line(tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\0\x08\0{[]: 1}\n")
    with pytest.raises(UserError, match="a header that is no dict"):
        load_npy(str(path), "vectors", "make them again")
