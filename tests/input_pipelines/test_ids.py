"""Ids and texts of cells: one rule for values, columns and lists."""

import math

import numpy as np
import pyarrow as pa
import pytest

from core.errors import UserError
from input_pipelines import id_columns, ids

WHERE = "column user of clicks.parquet"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("u1", "u1"),
        (" u1\u00a0", " u1\u00a0"),
        ("007", "007"),
        (b"u1", "u1"),
        ("絵".encode(), "絵"),
        (1, "1"),
        (1.0, "1"),
        (-3, "-3"),
        (np.int32(7), "7"),
        (np.float32(7), "7"),
        (2.0**53, str(2**53)),
        ("x" * 1024, "x" * 1024),
    ],
)
def test_what_is_an_id(value, found):
    assert ids.of_value(value) == found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "null"),
        (math.nan, "NaN"),
        (1.5, "1.5, which is no whole number"),
        (math.inf, "inf, which is no whole number"),
        (1e300, "no whole number"),
        (True, "True"),
        (np.bool_(False), "False"),
        ([1], r"\[1\]"),
        ({"a": 1}, "{'a': 1}"),
        ("", "an empty one"),
        (b"\xff", "bytes that are no UTF-8"),
        ("a\ud800", "half a surrogate pair"),
        ("a\nb", "a line break in 'a"),
        ("x" * 1025, "1,025 bytes, 'xxx.*; 1,024 are the most"),
        ("絵" * 342, "1,026 bytes"),
    ],
)
def test_what_is_no_id_is_one_line_with_its_row(value, found):
    with pytest.raises(UserError, match=rf"in {WHERE}, found .*{found}.* in row 2") as error:
        ids.of_values(["a", value], WHERE)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array(["a", "b"]), ["a", "b"]),
        (pa.array([b"u1", b"u2"]), ["u1", "u2"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array([1, 2**63 - 1]), ["1", str(2**63 - 1)]),
        (pa.array([1.0, 2.0], pa.float32()), ["1", "2"]),
        (pa.array([1, None], pa.int64()).slice(0, 1), ["1"]),
        (pa.chunked_array([["a"], ["b"]]), ["a", "b"]),
        (pa.chunked_array([], pa.string()), []),
    ],
)
def test_columns_say_what_values_say(column, found):
    assert id_columns.of_column(column, WHERE) == found


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array(["a", None]), "null in row 2"),
        (pa.array([1.0, None]), "null in row 2"),
        (pa.array([1.0, math.nan]), "NaN in row 2"),
        (pa.array([1, None], pa.int64()), "null in row 2"),
        (pa.array([2.0, 2.5]), "2.5, which is no whole number in row 2"),
        (pa.array([False]), "False in row 1"),
        (pa.array([["a"]]), r"\['a'\] in row 1"),
        (pa.array([None]), "null in row 1"),
    ],
)
def test_columns_refuse_with_the_row(column, found):
    with pytest.raises(UserError, match=f"in {WHERE}, found {found}; mend"):
        id_columns.of_column(column, WHERE)


def test_text_whose_bytes_are_no_utf8_is_one_line():
    offsets = pa.py_buffer(np.array([0, 1, 3], np.int32))
    column = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xff\xfe")])
    with pytest.raises(UserError, match=r"no UTF-8, .* in row 2"):
        id_columns.of_column(column, WHERE)
    with pytest.raises(UserError, match=r"expected text in .*no UTF-8, .* in row 2"):
        id_columns.texts_of_column(column, WHERE)


def test_cells_with_lists():
    cells = pa.array([[1.0, 2.0], None, [], [3.0]])
    assert id_columns.of_lists(cells, WHERE) == [["1", "2"], [], [], ["3"]]
    with pytest.raises(UserError, match="found null in row 3"):
        id_columns.of_lists(pa.array([["a"], [], ["b", None]]), WHERE)


def test_texts_and_facts_leave_out_what_is_absent():
    values = [25.0, 2.5, None, math.nan, b"abc", "a\ud800b", " c ", 7]
    assert ids.texts_of(values, WHERE) == ["25", "2.5", "", "", "abc", "a\ufffdb", " c ", "7"]
    with pytest.raises(UserError, match=r"expected text in .* found True in row 1"):
        ids.texts_of([True], WHERE)
    with pytest.raises(UserError, match=r"found \[1\] in row 2"):
        ids.texts_of(["a", [1]], WHERE)


@pytest.mark.parametrize("value", [1.5, True, None, "x", "٣", "1_0", "9" * 19, [], "1 "])
def test_numbers_of_ids(value):
    assert [ids.number_of(good) for good in (5, 5.0, "5", "-5", b"5")] == [5, 5, 5, -5, 5]
    with pytest.raises(ValueError, match=r".+"):
        ids.number_of(value)
