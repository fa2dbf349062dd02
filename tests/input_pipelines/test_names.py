"""Names without a fixed width: as a list would read, at the cost of their own bytes."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from core.errors import UserError
from input_pipelines import names as names_lib
from input_pipelines import prepared_log
from input_pipelines.log import RawEvents, build_log
from input_pipelines.log_checks import validate_log
from input_pipelines.names import Names


def test_they_read_as_a_list_does():
    expected = ["", "a", "锅 b", "x" * 300]
    names = Names.of(expected[1:])
    assert len(names) == 4 and names.tolist() == list(names) == expected
    assert names[2] == names[-2] == expected[2] and type(names[np.int32(1)]) is str
    assert names[1:].tolist() == expected[1:] and names[[3, 0]].tolist() == [expected[3], ""]
    assert names[np.array([[1, 2], [0, 3]])].tolist() == [["a", "锅 b"], ["", "x" * 300]]
    assert names[np.array([False, True, False, True])].tolist() == ["a", "x" * 300]
    assert np.asarray(names).tolist() == expected and np.asarray(names).dtype == object
    assert "a" in names and "b" not in names and names.index("锅 b") == 2
    for wrong in (4, -5, np.array([4])):
        with pytest.raises(IndexError):
            names[wrong]


def test_the_lines_of_a_hash_are_those_of_a_joined_list():
    expected = ["", "a", "锅", "bb", "c"]
    names = Names.of(expected[1:])
    for chunk in (1, 2, 3, 100):
        assert b"".join(names.lines(chunk)).decode() == "\n".join(expected)
        assert list(names.decoded(chunk)) == expected
    assert b"".join(names.lines()).decode() == "\n".join(expected)
    assert list(names) == expected


def test_numbers_are_laid_out_as_their_digits():
    values = np.array([0, 7, 10, 4_195_529], np.int64)
    assert Names(*names_lib.lay_out_numbers(values)).tolist() == ["", "0", "7", "10", "4195529"]
    assert Names(*names_lib.lay_out_numbers(values[:0])).tolist() == [""]


def events(**changes):
    given = dict(
        click_user=[f"u{n}" for n in range(20_000)],
        click_item=["a"] * 20_000,
        click_time=list(range(20_000)),
        search_user=["u0", "u1"],
        search_time=[1, 2],
        search_words=[["y" * 60_000, "tea"], ["cup"]],
        search_clicks=[[], []],
        search_places=["Rome", "z" * 60_000],
    )
    return RawEvents(**(given | changes))


def test_one_long_name_does_not_widen_the_others(tmp_path, caplog):
    tracemalloc.start()
    log = build_log("wide", events())
    prepared_log.save_log(log, str(tmp_path / "log"))
    loaded = prepared_log.load_log(str(tmp_path / "log"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # As one array of text 60,000 wide, the words and places alone would take megabytes; the users
    # with one long id among them gigabytes.
    assert peak < 40 * 2**20
    assert loaded.words.tolist() == ["", "cup", "tea", "y" * 256]
    assert loaded.place(1) == "z" * 60_000 and loaded.hash == log.hash
    assert (
        "cut words of more than 256 characters in 1 searches; the first is search 1" in caplog.text
    )


def test_an_absurd_id_is_refused_when_a_log_is_checked():
    log = build_log("wide", events(click_user=["x" * 1025] * 20_000, search_places=None))
    with pytest.raises(UserError, match="one of 1,025 bytes, where 1,024 are the most"):
        validate_log(log)


@pytest.mark.parametrize(
    ("offsets", "flat", "found"),
    [
        ([0, 0, 1], b"ab", "offsets that do not cover 2 bytes from an empty name on"),
        ([0, 1, 2], b"ab", "from an empty name on"),
        ([0, 0, 2, 2], b"ab", "an empty name or a decrease"),
        ([0, 0, 2, 3], "é\u0000".encode(), None),
        ([0, 0, 1, 3], "é\u0000".encode(), "begins within a character"),
        ([0, 0, 1], b"\xff", "bytes that are no UTF-8"),
        ([0], b"", "offsets that do not cover 0 bytes from an empty name on"),
    ],
)
def test_names_of_a_log_are_checked(offsets, flat, found):
    log = dataclasses.replace(
        build_log("toy", events(search_places=None)),
        place_offsets=np.array(offsets),
        place_bytes=np.frombuffer(flat, np.uint8),
        search_places=np.zeros(2, np.int32),
    )
    if found is None:
        validate_log(log)
        return
    with pytest.raises(UserError, match=f"of log toy, found .*{found}; prepare"):
        validate_log(log)
