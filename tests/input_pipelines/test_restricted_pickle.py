"""Pickles: what is published loads alike, what is made up ends in one line and in little memory."""

import base64
import collections
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pandas as pd
import pytest

from core.errors import UserError
from input_pipelines.readers.restricted_pickle import load_pickle

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
PROTOCOLS = [2, 3, 4, 5]

# Of users 5 and 6 alone, so that the index is no range; zlib of a pickle.
OF_PANDAS_1_5_AND_NUMPY_1_24 = (
    "eNqNU01v1DAQ3SSbli9RVgioVMSB03IgJ1RxQCqiCNGNCBInLivLSbxrq443sh2VlagEB/oh+dbhf/IPYJxsRZb2"
    "gCM5tjMz773xy7fhTxUN2uFGNVUlNUmx0CyZaVoxcDffUkvftesLePYdjmHshqSaa3BP+uFCWaYVlSapqKJzpg24"
    "O2/kojj80O0x3T1cZRApcvM3BdwWaVQtikPJSO5zfPAD1VT1sqteNdIKqjVdYlWiWbFQxuqmsD4wbgPBbWLtNuQC"
    "0sEP2A9yOIVPME4DfMIT4FsuLu2y9kpcKF7C+Vn3PXLBK8iybPIbRzulAwv5+f69uOvMYGP1Bjx2N/JGIB2FvGMj"
    "RcFaQI/iy6Whn/ltfpePPA1+f53Etgs/rkF//Qd6z0NPYTyFNKL4ntSjYJCGjOE5f+qr/DfQrAfEH1+rsNP1a28l"
    "8DV0KGEa9VFOAYm47fULL9kXZpKcGrTJLaLYETnwZ9gN/t7Fl+vWMCWaCK4SjXDz3Gt1m41hmogSDafYnAjLqra9"
    "Hgq8cjdU3oNZc+JFT9zOdVzQCEyLAukcKLv7okeBZ1fRQ9zsYAuClfawd8n8c4fE/ISGR9sgNS/j8r8gFbO01TVF"
    "otRadPwxuA0yk3TeLh9RKRdHhpRNjS6hlhFJc4Z2PzNNnvwBAIlNCQ=="
)  # protocol 4
OF_PANDAS_2_2_AND_NUMPY_2_1 = (
    "eNp1k/lT1DAUx7tdDqkXKIqK94HFYxVPVBQERKGyaLzqsca0G7YdumW/TTrIjDujP8DCf+P/4B+mSXcXBh3TmSZp"
    "3nuf73t9+W76NRaXmSj4ywkvLCasyq1pJtlMtoIx/AO5Okzb7TAMg1YrCfI7PMJY8iRmkShUWcwqPBHWZLTsL803"
    "dxY62uY0Cj2xbW/RNK6F/lLEqacdLHT6cVqtrRZoFriaRjJkScJWLZpwfzkWMkl9aaGraWapoNkpuh1jDbt85Vbm"
    "vrB4rBcWetyckuzBcrvUHDEZxiPYvY49BHsb2Eew33Zy6jHX0dsKWZarNeXZ55rKIxzFgc2NBg4S9NtOPos2hkPF"
    "YnHutxrZyzEkDnubQY/bq047jeboas0YCBTvCMFRiWOeT6mXhiqpmFJLRKGvSIOOoTU0cJzghGM2cJLgVNAZdAVZ"
    "UqcDpfQMwdktpeeCpriFUZzX4i4QDLXFfcPFneLGJWxvs4Rhu4RLTp6VcNmeq/XlDMfkXOKKFwzqqJp/laCg+dcI"
    "rm/zRzT/BsHNLf6tFn9xFLc1/w7BXcUP/i3LaFaWPqM9fv0cb60mcE/X5T7BA4kxLcJ08lrEQ4JHWsQ4wUQDj0uY"
    "tP/qtTL/ykXBY4JbNOYrdFZ/sTD1f7OWxXQdT5o9XFbNjZl2hk91hs8IZnWG+TXMBUOqYI7tdivTVPCEhmU8d3vU"
    "LuYVGkpeFZh39Z8WGoaiKuSCl0WO1Y3Bi2K6jpcEJJgKFPSVHWyxXmvWG4K3mmWu4V3Q3+6cXKs0ZrtzXF2h9wQf"
    "JD56QRb0E0GJr+MzAW1eRtWs+JJJ0zllVxcs29MqlyxL1CvBz9QyKROBch08uw50MWIVgcU6Ku6APo6i5RVBy2lN"
    "NSaTnEbM45FAsCFSr/AHySVKxA=="
)  # protocol 2


def load(tmp_path, content):
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    return load_pickle(path)


def refused(tmp_path, content, match):
    with pytest.raises(UserError, match=match) as error:
        load(tmp_path, content)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def assert_same(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for name, value in expected.items():
            assert_same(actual[name], value)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype.newbyteorder("=")
        if expected.dtype == object:
            assert_same(actual.ravel().tolist(), expected.ravel().tolist())
        else:
            np.testing.assert_array_equal(actual, expected)
    else:
        assert actual == expected


VALUES = {
    "numbers": [0, 1, -1, 255, 256, 65_536, 2**31, -(2**31), 2**40, 2**63, 2**64 - 1, 1.5, None],
    "users": {
        n: {"rec_his": list(range(n)), "rec_his_ts": [1_683_000_000_000 + n] * n, "none": []}
        for n in range(300)
    },
    "many": list(range(200_000)),
    "texts": ["", "a", "ä" * 300, "漢字", b"", b"\xff" * 300, True, False, (1, (2, "x"))],
    "c_order": np.arange(6).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "permuted": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    "big_endian": np.array([1, 2, -3], ">i4"),
    "half": np.array([0.5, 2], "f2"),
    "unicode": np.array(["a", "漢字"]),
    "unicode_big": np.array(["a", "bcd"], ">U3"),
    "bytes": np.array([b"a", b"bc"]),
    "truth": np.array([True, False]),
    "times": np.array([1, 2], "M8[25s]"),
    "objects": np.array([[1, "a"], [None, [2, [3]]]], object, order="F"),
    "lists": np.array([[1, 2], [3], []], object),
    "empty": np.zeros((0, 3)),
    "no_axes": np.array(5),
    "scalars": [np.int64(3), np.float32(2), np.bool_(True), np.str_("ab"), np.datetime64(7, "D")],
    "in_cells": [np.arange(n) for n in range(4)],
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_values_and_arrays_read_as_they_were(tmp_path, protocol):
    assert_same(load(tmp_path, pickle.dumps(VALUES, protocol)), VALUES)
    for value in VALUES.values():
        assert_same(load(tmp_path, pickle.dumps(value, protocol)), value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dicts_with_a_default_or_an_order_read_as_dicts(tmp_path, protocol):
    by_default = collections.defaultdict(list, {1: [2], 2: []})
    assert_same(load(tmp_path, pickle.dumps(by_default, protocol)), dict(by_default))
    ordered = collections.OrderedDict([("b", 1), ("a", 2)])
    assert_same(load(tmp_path, pickle.dumps(ordered, protocol)), dict(ordered))


def a_frame():
    frame = pd.DataFrame(
        {
            "user_id": [1, 2, 3],
            "neg_items": [[1, 2, 3], [4], []],
            "score": [0.5, 1.0, 2.0],
            "word": ["x", "", None],
            "shown": [True, False, True],
            "item_id": [7, 8, 9],
        },
        dtype=object,
    ).astype({"user_id": int, "item_id": int, "score": float, "shown": bool})
    frame.columns = pd.Index(list(frame.columns), dtype=object)
    return frame


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame,
        lambda frame: frame[frame.user_id > 1],
        lambda frame: frame[["score", "user_id", "neg_items"]],
        lambda frame: frame.set_index("item_id"),
        lambda frame: pd.concat([frame, frame]),
        lambda frame: frame[:0],
        lambda frame: frame[[]],
        lambda frame: frame["neg_items"],
        lambda frame: frame["item_id"][1:],
    ],
    ids=["all", "rows", "columns", "named", "twice", "no_rows", "no_columns", "cells", "series"],
)
def test_frames_and_series_read_as_they_were(tmp_path, protocol, change):
    expected = change(a_frame())
    loaded = load(tmp_path, pickle.dumps(expected, protocol))
    test = pd.testing.assert_series_equal if expected.ndim == 1 else pd.testing.assert_frame_equal
    test(loaded, expected, check_index_type=False)


@pytest.mark.parametrize("written", [OF_PANDAS_1_5_AND_NUMPY_1_24, OF_PANDAS_2_2_AND_NUMPY_2_1])
def test_files_of_other_versions_read_alike(tmp_path, written):
    content = zlib.decompress(base64.b64decode(written))
    assert b"numpy.core.multiarray" in content or b"numpy._core.multiarray" in content
    frame = load(tmp_path, content)
    assert frame.columns.tolist() == ["user_id", "neg_items", "score"]
    assert frame.index.tolist() == [1, 2] and frame.user_id.tolist() == [5, 6]
    assert frame.neg_items.tolist() == [[3], [70000, 2]] and frame.score.tolist() == [1.0, 2.0]


class Named:
    """Pickles as a call of any name, or as a class of it with a state; nothing is imported."""

    def __init__(self, module, name, arguments, state=None, new=False):
        self.module, self.name, self.new = module, name, new
        self.arguments, self.state = arguments, state


class Name:
    def __init__(self, module, name):
        self.module, self.name = module, name


class _Pickler(pickle._Pickler):
    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 - as the base class has it

    def save_name(self, value):
        self.write(b"c%b\n%b\n" % (value.module.encode(), value.name.encode()))

    def save_named(self, value):
        self.save_name(value)
        self.save(value.arguments)
        self.write(pickle.NEWOBJ if value.new else pickle.REDUCE)
        if value.state is not None:
            self.save(value.state)
            self.write(pickle.BUILD)

    dispatch[Named], dispatch[Name] = save_named, save_name


def dumps(value, protocol=2):
    file = io.BytesIO()
    _Pickler(file, protocol).dump(value)
    return file.getvalue()


def a_dtype(code, state):
    return Named("numpy", "dtype", (code, False, True), state)


INT = a_dtype("i8", (3, "<", None, None, None, -1, -1, 0))
OBJECT = a_dtype("O8", (3, "|", None, None, None, -1, -1, 63))


def an_array(shape, kind, values, fortran=False, version=1):
    arguments = (Name("numpy", "ndarray"), (0,), b"b")
    state = (version, shape, kind, fortran, values)
    return Named("numpy.core.multiarray", "_reconstruct", arguments, state)


def raw(*numbers):
    return struct.pack(f"<{len(numbers)}q", *numbers)


def of_pandas_1_0(protocol=2, home="pandas.core.indexes.base"):
    """A frame as pandas up to 1.2 pickled it: _data, and blocks in a state of their own."""
    index = Name(home, "Index")
    columns = Named(
        home,
        "_new_Index",
        (index, {"data": an_array((3,), OBJECT, ["user_id", "neg", "item_id"]), "name": None}),
    )
    rows = Named(
        home,
        "_new_Index",
        (
            Name("pandas.core.indexes.range", "RangeIndex"),
            {"name": None, "start": 0, "stop": 2, "step": 1},
        ),
    )
    numbers = an_array((2, 2), INT, raw(1, 2, 3, 4))
    lists = an_array((1, 2), OBJECT, [[5, 6], [7]])
    blocks = [
        {"values": numbers, "mgr_locs": Named("builtins", "slice", (0, 4, 2))},
        {"values": lists, "mgr_locs": Named("builtins", "slice", (1, 2, 1))},
    ]
    state = ([columns, rows], [numbers, lists], [columns], {"0.14.1": {
        "axes": [columns, rows], "blocks": blocks}})  # fmt: skip
    manager = Named("pandas.core.internals.managers", "BlockManager", (), state, new=True)
    about = {"_data": manager, "_typ": "dataframe", "_metadata": []}
    return dumps(Named("pandas.core.frame", "DataFrame", (), about, new=True), protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("home", ["pandas.core.indexes.base", "pandas.core.index"])
def test_the_layout_of_older_pandas_reads(tmp_path, protocol, home):
    frame = load(tmp_path, of_pandas_1_0(protocol, home))
    assert frame.columns.tolist() == ["user_id", "neg", "item_id"]
    assert frame.user_id.tolist() == [1, 2] and frame.item_id.tolist() == [3, 4]
    assert frame.neg.tolist() == [[5, 6], [7]]


# Each made NumPy read memory at an address of the file, write over its own, or worse.
CLEARED = a_dtype("O8", (3, "|", None, None, None, -1, -1, 0))
ATTACKS = {
    "object flags cleared": an_array((1,), CLEARED, raw(0x4141414141414141)),
    "objects as bytes": an_array((1,), OBJECT, raw(0x4141414141414141)),
    "a scalar that is a pointer": Named(
        "numpy.core.multiarray", "scalar", (OBJECT, raw(0x4141414141414141))
    ),
    "a cleared scalar": Named("numpy._core.multiarray", "scalar", (CLEARED, raw(0x41414141))),
    "fields over each other": a_dtype(
        "V8", (3, "|", None, ("a",), {"a": (OBJECT, 0)}, 8, 1, 0)
    ),
    "fields of a number": a_dtype("i8", (3, "<", None, ("a",), {"a": (OBJECT, 0)}, 8, 1, 63)),
    "a size of its own": a_dtype("U2", (3, "<", None, None, None, 800, 4, 8)),
    "too few bytes": an_array((3,), INT, raw(1, 2)),
    "too many bytes": an_array((1,), INT, raw(1, 2)),
    "a negative axis": an_array((-1, -2), INT, raw(1, 2)),
    "an empty array of endless rows": an_array((2**31, 0), INT, b""),
    "axes that overflow": an_array((2**62, 4), INT, b""),
    "an axis of truth": an_array((True,), INT, raw(1)),
    "64 axes": an_array((1,) * 64, INT, raw(1)),
    "objects that are no list": an_array((2,), OBJECT, (1, 2)),
    "a state without a dtype": an_array((1,), "i8", raw(1)),
    "a version": an_array((1,), INT, raw(1), version=0),
    "characters beyond Unicode": an_array(
        (1,), a_dtype("U1", (3, "<", None, None, None, 4, 4, 8)), b"\xff" * 4
    ),
    "truth of two": an_array(
        (1,), a_dtype("b1", (3, "|", None, None, None, -1, -1, 0)), b"\x02"
    ),
    "a unit of nothing": a_dtype(
        "M8", (4, "<", None, None, None, -1, -1, 0, (None, (b"ns", 0, 1, 1)))
    ),
    "metadata": a_dtype(
        "M8", (4, "<", None, None, None, -1, -1, 0, ({1: 2}, (b"ns", 1, 1, 1)))
    ),
    "a buffer too short": Named(
        "numpy._core.numeric", "_frombuffer", (raw(1), INT, (2**40,), "C")
    ),
    "a block without values": Named("pandas._libs.internals", "_unpickle_block", (None, None, 2)),
    "an index of nothing": Named(
        "pandas.core.indexes.base", "_new_Index", (Name("pandas", "Index"), {"data": None})
    ),
    "an index as a class of another": Named(
        "pandas.core.indexes.base", "_new_Index", (Name("pandas", "DataFrame"), {"data": None})
    ),
    "a frame of anything": Named("pandas", "DataFrame", (), {"_mgr": {}, "__class__": 1}, new=True),
    "a frame that is called": Named("pandas", "DataFrame", ()),
    "a state of a number": Named("collections", "OrderedDict", (), {"__dict__": {}}),
    "a state of a list": Named("numpy", "dtype", ("i8", False, True), [3]),
    "a dtype without a state": [Named("numpy", "dtype", ("i8", False, True))],
    "long names of types": a_dtype("longdouble", (3, "<", None, None, None, -1, -1, 0)),
    "a step of nothing": Named(
        "pandas.core.indexes.base",
        "_new_Index",
        (Name("pandas", "RangeIndex"), {"start": 0, "stop": 9, "step": 0}),
    ),
    "a codec": Named("_codecs", "encode", ("x", "zlib")),
    "a factory": Named("collections", "defaultdict", (Name("numpy", "dtype"),)),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_made_up_arrays_and_frames_are_refused(tmp_path, attack, protocol):
    refused(tmp_path, dumps(ATTACKS[attack], protocol), "expected (a whole pickle|numbers)")
    refused(tmp_path, dumps({"users": [ATTACKS[attack]]}, protocol), "expected")


def test_the_pointer_of_a_file_is_never_followed(tmp_path):
    """In a process of its own: where it is followed, the process dies of it."""
    path = tmp_path / "x.pkl"
    path.write_bytes(dumps({"x": [ATTACKS["object flags cleared"], ATTACKS["a cleared scalar"]]}))
    code = (
        "import pathlib, sys\nfrom core.errors import UserError\n"
        "from input_pipelines.readers.restricted_pickle import load_pickle\n"
        "try:\n    print(load_pickle(pathlib.Path(sys.argv[1])))\n"
        "except UserError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done
    assert "the state of a dtype O8" in done.stdout


def nested(opening, closing, times):
    return b"\x80\x04" + opening * times + b"N" + closing * times + b"."


BOMBS = {
    "bytes of gigabytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "a bytearray of gigabytes": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x.",
    "text of gigabytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
    "text of more": b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x.",
    "a frame of gigabytes": b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"N.",
    "a number of megabytes": b"\x80\x02\x8b" + struct.pack("<I", 2**20) + b"\x01" * 2**20 + b".",
    "a number of 200 bytes": b"\x80\x02\x8a\xc8" + b"\x01" * 200 + b".",
    "a number as text": b"L" + b"9" * 10**6 + b"L\n.",
    "a far place of the memo": b"\x80\x02]r" + b"\xff" * 4 + b"j\xff\xff\xff\x7f.",
    "a place as text": b"]p99999999999\n.",
    "deep lists": nested(b"](", b"e", 10**5),
    "deep tuples": nested(b"", b"\x85", 10**6),
    "deep tuples as a key": b"\x80\x04})" + b"\x85" * 10**6 + b"Ns.",
    "marks": b"\x80\x04" + b"(" * 10**6 + b".",
    "a list in itself": b"\x80\x04]\x94h\x00a.",
    "a list in its own list": b"\x80\x04]\x94](h\x00ea.",
    "a dict in itself": b"\x80\x04}\x94K\x01h\x00s.",
    "no memo": b"\x80\x04h\x07.",
    "an object in its own state": b"\x80\x04cpandas\nDataFrame\n)\x81\x94}\x8c\x04_mgrh\x00sb.",
    "pairs of one": b"\x80\x04}(K\x01u.",
    "a list as a key": b"\x80\x04}]K\x01s.",
    "nothing": b"",
    "no end": b"\x80\x04K\x01",
    "two values": b"\x80\x04K\x01K\x02.",
    "an open mark": b"\x80\x04(K\x01.",
    "a name of an extension": b"\x80\x02\x82\x01.",
    "a name of a storage": b"\x80\x02U\x01xQ.",
    "a name as an instance": b"(ios\nsystem\n.",
    "a later protocol": b"\x80\x09N.",
    "a class as data": b"\x80\x02cnumpy\nndarray\n.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_end_in_one_line_and_in_little_memory(tmp_path, bomb):
    content = BOMBS[bomb]
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"expected (a whole pickle|numbers)") as error:
            load_pickle(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20 + 120 * len(content)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_sharing_counts_each_time(tmp_path):
    # Each list holds the one before it twice: 2**24 values are read, 2**30 are not.
    def lists(times):
        value = [1, 2]
        for _ in range(times):
            value = [value, value]
        return pickle.dumps(value, 4)

    loaded = load(tmp_path, lists(20))
    assert loaded[0] is loaded[1]
    refused(tmp_path, lists(28), "more than 134,217,728 values")
    refused(tmp_path, lists(50), "more than")


def repeated(first, call, times):
    """A tuple of what `call` makes each time of the values of `first`, which are in the memo."""
    return b"\x80\x04(" + first + call * times + b"t."


def remembered(value, place):
    return pickle.dumps(value, 2)[2:-1] + b"q" + bytes([place])


# Each call takes some 40 bytes of the file, and memory for all that it is given.
CALLS = {
    "arrays in another byte order": repeated(
        b"B"
        + struct.pack("<I", 2**22)
        + bytes(2**22)
        + b"q\xc8"
        # The dtype, from the array of protocol 2, lies in the memo.
        + b"cnumpy\ndtype\nX\x02\0\0\0i8\x89\x88\x87R(K\x03X\x01\0\0\0>NNN"
        + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tbq\xc9",
        b"cnumpy.core.numeric\n_frombuffer\n(h\xc8h\xc9J\0\0\x08\0\x85X\x01\0\0\0CtR",
        1000,
    ),
    "bytes of one text": repeated(
        remembered("a" * 2**22, 200) + remembered("latin1", 201),
        b"c_codecs\nencode\nh\xc8h\xc9\x86R",
        1000,
    ),
    "ranges, each described with one array": repeated(
        pickle.dumps(np.zeros(2**20, bool), 2)[2:-1] + b"q\xc8",
        b"cpandas.core.indexes.base\n_new_Index\ncpandas\nRangeIndex\n"
        b"}(X\x04\0\0\0datah\xc8X\x05\0\0\0startK\0X\x04\0\0\0stopK\0X\x04\0\0\0stepK\x01u\x86R",
        1000,
    ),
    "frames of one array": repeated(
        pickle.dumps(np.zeros((1, 2**19)), 2)[2:-1] + b"q\xc8",
        b"".join(
            [
                b"cpandas.core.frame\nDataFrame\n)\x81}X\x04\0\0\0_mgr",
                b"cpandas.core.internals.managers\nBlockManager\n",
                b"cpandas._libs.internals\n_unpickle_block\n",
                b"h\xc8cbuiltins\nslice\nK\0K\x01K\x01\x87RK\x02\x87R\x85",
                b"cpandas.core.indexes.base\n_new_Index\ncpandas\nRangeIndex\n",
                b"}(X\x05\0\0\0startK\0X\x04\0\0\0stopK\x01X\x04\0\0\0stepK\x01u\x86R",
                b"cpandas.core.indexes.base\n_new_Index\ncpandas\nRangeIndex\n",
                b"}(X\x05\0\0\0startK\0X\x04\0\0\0stopJ\0\0\x08\0X\x04\0\0\0stepK\x01u\x86R",
                b"\x86\x86Rsb",
            ]
        ),
        1000,
    ),
}


@pytest.mark.parametrize("calls", CALLS)
def test_calls_that_share_what_they_are_given_are_bounded_together(tmp_path, calls):
    tracemalloc.start()
    try:
        refused(tmp_path, CALLS[calls], "far more memory than the file|calls with more than")
        assert tracemalloc.get_traced_memory()[1] < 2**29
    finally:
        tracemalloc.stop()


def test_a_range_of_more_rows_than_memory_has_is_no_index(tmp_path):
    content = (
        b"\x80\x04}X\x01\0\0\0acpandas.core.indexes.base\n_new_Index\ncpandas\nRangeIndex\n"
        b"}(X\x05\0\0\0startK\0X\x04\0\0\0stop\x8a\x06\0\0\0\0\0\x10X\x04\0\0\0stepK\x01u\x86Rs."
    )
    refused(tmp_path, content, "the range of an index")


def test_names_in_messages_are_printable(tmp_path):
    refused(tmp_path, b"c\x1b[31mos\nsys\x07tem\n.", r"a call of \?\[31mos\.sys\?tem;")
    refused(tmp_path, b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.", "numpy.ndarray.dumps")
    refused(tmp_path, b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", r"builtins\.eval; nothing")


def test_the_machine_calls_nothing_of_pickles_own(tmp_path):
    """No name of a file is looked up by Python, which audits each look-up."""
    code = (
        "import pathlib, sys\nfrom input_pipelines.readers.restricted_pickle import load_pickle\n"
        "path, found = pathlib.Path(sys.argv[1]), []\nload_pickle(path)\n"
        "sys.addaudithook(lambda event, _: found.append(event))\nload_pickle(path)\n"
        "print(sorted({e for e in found if e.startswith(('pickle', 'os.', 'exec', 'ctypes'))}))\n"
    )
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"frame": a_frame(), **VALUES}, 4))
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done


def fuzz(folder, seconds, first_seed, examples):
    """Runs the fuzzer in a process of its own, whose crash shows as a negative status."""
    arguments = [str(folder), str(seconds), str(first_seed), str(examples)]
    done = subprocess.run(
        [sys.executable, str(HERE / "pickle_fuzzer.py"), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    last_input = folder / "fuzzed.pkl"
    last = last_input.read_bytes().hex() if done.returncode else ""
    assert done.returncode == 0, f"status {done.returncode}, {last}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_fuzzed_pickles_crash_nothing(tmp_path):
    assert "readings" in fuzz(tmp_path, 0, 0, 250)


@pytest.mark.slow
def test_fuzzed_pickles_crash_nothing_for_long(tmp_path):
    print(fuzz(tmp_path, os.environ.get("FUZZ_SECONDS", 60), 1, 1000))
