"""Small files that claim or unpack to much: one line, at once, in little memory."""

import io
import json
import pathlib
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from core.errors import UserError
from core.files import load_npy, load_npz, read_json
from core.text_lines import LONGEST_LINE, lines_of, read_lines

ROOT = pathlib.Path(__file__).parents[2]


def npy(header, values=b"", version=(1, 0)):
    text = header.encode("latin1")
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + values


def described(shape, dtype="'<i8'"):
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}\n"


ARRAYS = {
    "terabytes": npy(described("(1000000000000,)")),
    "more than its bytes": npy(described("(3,)"), bytes(16)),
    "fewer than its bytes": npy(described("(1,)"), bytes(16)),
    "a negative axis": npy(described("(-1,)"), bytes(8)),
    "axes that overflow": npy(described(f"({2**62}, 4)"), b""),
    "objects": npy(described("(1,)", "'|O'"), b"\x80\x04N."),
    "objects inside": npy(described("(1,)", "[('a', '|O')]"), bytes(8)),
    "nothing a value": npy(described("(1000000000000,)", "'|V0'")),
    "a long header": npy(" " * 60_000 + described("(1,)"), bytes(8)),
    "a header of gigabytes": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{",
    "a header that calls": npy("__import__('os').system('false')\n"),
    "a deep header": npy("-" * 9_000 + "1\n"),
    "deep brackets": npy("(" * 9_000 + "\n"),
    "a pickle": b"\x80\x04N.",
    "an unknown version": npy(described("(1,)"), bytes(8), (9, 9)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_do_not_fit_their_file(tmp_path, name):
    path = tmp_path / "x.npy"
    path.write_bytes(ARRAYS[name])
    for memory_map in (False, True):
        with pytest.raises(UserError, match=r"expected a table at .*x\.npy, .*; mend it") as error:
            load_npy(str(path), "a table", "mend it", memory_map=memory_map)
        assert "\n" not in str(error.value)
    packed = tmp_path / "x.npz"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.npy", ARRAYS[name])
    with pytest.raises(UserError, match=r"expected a table at .*x\.npz, .*; mend it"):
        load_npz(str(packed), "a table", "mend it")


def test_an_archive_of_a_few_kilobytes_may_not_unpack_to_gigabytes(tmp_path):
    path = tmp_path / "x.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w", force_zip64=True) as file,
    ):
        file.write(npy(described(f"({5 * 2**26},)", "'|i1'")))
        for _ in range(5):
            file.write(bytes(2**26))
    assert path.stat().st_size < 2**20
    with pytest.raises(UserError, match="arrays of more than"):
        load_npz(str(path), "a table", "mend it")


def test_an_archive_may_not_lie_about_what_it_unpacks_to(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.zeros(100_000, np.int64))
    content = path.read_bytes()
    wrong = content.replace(struct.pack("<I", 800_128), struct.pack("<I", 136))
    assert wrong != content
    path.write_bytes(wrong)
    with pytest.raises(UserError, match="expected a table"):
        load_npz(str(path), "a table", "mend it")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "1" * 5_000, "", "[]", '"\\ud800', "\x00", "NaN", "null"],
    ids=["lists", "dicts", "digits", "empty", "list", "cut", "zero", "nan", "null"],
)
def test_json_that_is_no_dict_of_sane_depth(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"expected settings at .*; mend it") as error:
        read_json(str(path), "settings", "mend it")
    assert "\n" not in str(error.value)


def test_reading_allocates_what_a_file_has(tmp_path):
    """In a process that may have little memory: a small file is read, a hole of terabytes not."""
    small, hole, line = tmp_path / "small.json", tmp_path / "hole.json", tmp_path / "line.txt"
    small.write_text(json.dumps({"a": 1}))
    for path in (hole, line):
        with open(path, "wb") as file:
            file.truncate(2**41)
    code = (
        "import resource, sys\n"
        "from core.errors import UserError\n"
        "from core.files import load_npy, read_json\n"
        "from core.text_lines import read_lines\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))\n"
        "print(read_json(sys.argv[1], 'x', 'y'))\n"
        "for read in (read_json, load_npy, read_lines):\n"
        "    try:\n        read(sys.argv[2], 'x', 'y')\n"
        "    except UserError as error:\n        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small), str(hole)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 4, done
    assert "{'a': 1}" in lines[0] and "more than" in lines[1] and "longer one, line 1" in lines[3]


def test_lines_are_bounded(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("a\n" + "x" * LONGEST_LINE + "\nb\n")
    assert list(map(len, read_lines(path, "x", "y"))) == [1, LONGEST_LINE, 1]
    path.write_text("a\n" + "x" * (LONGEST_LINE + 1))
    with pytest.raises(UserError, match=r"characters in .*x\.txt, found a longer one, line 2"):
        read_lines(path, "x", "y")
    file = io.TextIOWrapper(io.BytesIO(b"a\r\nb\n\nc"), newline="\n")
    assert list(lines_of(file)) == ["a", "b", "", "c"]
