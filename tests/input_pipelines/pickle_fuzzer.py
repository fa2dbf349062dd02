"""Reads made-up and damaged pickles until the time is over; what is found ends it with status 1.

    python tests/input_pipelines/pickle_fuzzer.py FOLDER SECONDS [FIRST_SEED [EXAMPLES_A_ROUND]]

FOLDER is for the files. A round has three parts, each of as many examples: streams of operations
with edges as arguments, calls of the admitted names with arguments near the right ones, and whole
pickles with a few bytes changed. A reading must return data or raise UserError, within ten seconds,
call nothing outside, and keep memory low. A crash shows as the signal that ends the process; the
pickle that did it is FOLDER/fuzzed.pkl.
"""

from __future__ import annotations

import collections
import pathlib
import pickle
import resource
import signal
import struct
import sys
import time
import warnings
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
from hypothesis import strategies as st

from core.errors import UserError
from input_pipelines.readers.pickled_arrays import CALLED, MADE, MARKERS
from input_pipelines.readers.restricted_pickle import load_pickle

_SECONDS_A_READING = 10
_GROWTH_BYTES = 2**30
_NAMES = sorted({*CALLED, *MADE, *MARKERS})
_EDGES = [
    0,
    1,
    2,
    3,
    5,
    8,
    127,
    128,
    255,
    256,
    65_535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
]
# A module beside these names in an event of Python's audit would mean that something has run.
_FORBIDDEN = ("pickle.find_class", "os.", "subprocess.", "ctypes.", "socket.", "exec", "shutil.")


def _seeds() -> list[bytes]:
    frame = pd.DataFrame(
        {"user_id": [1, 2], "neg_items": [[3, 4], [5]], "score": [0.5, 1.5], "shown": [True, False]}
    )
    frame.columns = pd.Index(list(frame.columns), dtype=object)
    values: list[Any] = [
        {0: {"rec_his": [1, 2, 70_000], "rec_his_ts": [1_683_000_000_000, 2.5, None]}},
        {"keyword": np.zeros((2, 3), np.int64), "text": np.array(["ab", "c"]), "raw": b"xyz"},
        np.array([[1, "a"], [None, [2]]], object),
        [
            np.float32(1),
            np.datetime64("2020-01-01"),
            np.array([b"a", b"bc"]),
            np.array(["1"], "M8[s]"),
        ],
        collections.OrderedDict(a=collections.defaultdict(list, {1: [2]})),
        np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        frame,
        frame[["score", "user_id"]][1:],
        frame["neg_items"],
    ]
    return [pickle.dumps(value, protocol) for value in values for protocol in (2, 3, 4, 5)]


SEEDS = _seeds()


# Streams of operations.


def _sized(code: bytes, form: str) -> st.SearchStrategy[bytes]:
    """An operation with a length before its bytes, right or wrong."""
    width = struct.calcsize(form)

    def written(content: bytes, wrong: int | None) -> bytes:
        size = (len(content) if wrong is None else wrong) % 2 ** (8 * width)
        return code + struct.pack(form, size) + content

    wrong = st.none() | st.sampled_from(_EDGES)
    return st.builds(written, st.binary(max_size=20), wrong)


def _global(name: tuple[str, str]) -> bytes:
    return b"c%b\n%b\n" % (name[0].encode(), name[1].encode())


_OPERATION = st.one_of(
    # All that have no argument, those that are refused among them.
    st.sampled_from([bytes([code]) for code in b"(]})\x8ft\x85\x86\x87aesu\x90\x94R\x81\x92b\x93"]),
    st.sampled_from([bytes([code]) for code in b"N\x88\x89012ldoicPQ\x82\x97\x98."]),
    st.sampled_from(_NAMES).map(_global),
    st.binary(min_size=1, max_size=1).map(lambda b: b"K" + b),
    st.binary(min_size=4, max_size=4).map(lambda b: b"J" + b),
    st.binary(min_size=8, max_size=8).map(lambda b: b"G" + b),
    st.integers(0, 5).map(lambda n: b"h" + bytes([n])),
    st.integers(0, 5).map(lambda n: b"q" + bytes([n])),
    st.sampled_from(_EDGES).map(lambda n: b"r" + struct.pack("<I", n % 2**32)),
    st.sampled_from(_EDGES).map(lambda n: b"j" + struct.pack("<I", n % 2**32)),
    st.sampled_from(_EDGES).map(lambda n: b"\x95" + struct.pack("<Q", n)),
    _sized(b"\x8a", "<B"),
    _sized(b"\x8b", "<I"),
    _sized(b"\x8c", "<B"),
    _sized(b"X", "<I"),
    _sized(b"\x8d", "<Q"),
    _sized(b"C", "<B"),
    _sized(b"B", "<I"),
    _sized(b"\x8e", "<Q"),
    _sized(b"\x96", "<Q"),
    st.binary(max_size=4),
)  # fmt: skip
_STREAM = st.lists(_OPERATION, max_size=60).map(lambda parts: b"\x80\x04" + b"".join(parts) + b".")


# Calls of the admitted names: (value written, in the order that the machine reads it).


def _plain(value: Any) -> bytes:
    return pickle.dumps(value, 3)[2:-1]


def _tuple(parts: list[bytes]) -> bytes:
    return b"(" + b"".join(parts) + b"t"


_NUMBER = st.sampled_from([-1, 0, 1, 2, 3, 4, 8, 12, 16, 63, 2**31, -(2**40), 2**62, 2**70])
_CODE = st.sampled_from(
    ["b1", "i1", "i8", "u2", "f2", "f8", "f16", "c8", "U2", "U0", "S3", "S", "M8", "m8", "O8", "O",
     "V8", "i8,i8", "U999999999", "\x00", ""]
)  # fmt: skip
_SHAPE = (
    st.lists(st.sampled_from([0, 1, 2, 3, 2**31, -1, 2**47]), max_size=3).map(tuple).map(_plain)
)
_STATE = st.sampled_from(
    [
        (3, "<", None, None, None, -1, -1, 0),
        (3, ">", None, None, None, -1, -1, 0),
        (3, "|", None, None, None, -1, -1, 63),
        (3, "|", None, None, None, -1, -1, 0),
        (3, "<", None, None, None, 8, 4, 8),
        (3, "|", None, None, None, 3, 1, 0),
        (3, "|", None, ("f",), {"f": 1}, 8, 1, 16),
        (4, "<", None, None, None, -1, -1, 0, (None, (b"ns", 1, 1, 1))),
        (4, "<", None, None, None, -1, -1, 0, ({}, ("generic", 2**31, 0, 1))),
        (2, "<"),
    ]
)


def _called(name: tuple[str, str], parts: list[bytes], code: bytes = b"R") -> bytes:
    return _global(name) + _tuple(parts) + code


def _find(name: str) -> tuple[str, str]:
    return next(key for key in _NAMES if key[1] == name)


_DTYPE = st.builds(
    lambda code, state: (
        _called(("numpy", "dtype"), [_plain(code), b"\x89", b"\x88"]) + _plain(state) + b"b"
    ),
    _CODE,
    _STATE,
)
_RAW = st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32]).map(lambda n: _plain(b"\x00" * n))
_RAW |= st.binary(max_size=32).map(_plain)
_LEAF = st.one_of(
    _NUMBER.map(_plain),
    _RAW,
    _CODE.map(_plain),
    st.sampled_from([b"N", b"\x88", b"G" + b"\x7f\xf8" + b"\0" * 6, b"]", b"}", b")"]),
    st.sampled_from(["start", "stop", "step", "data", "name", "_mgr", "_data", "0.14.1"]).map(
        _plain
    ),
    st.sampled_from(_NAMES).map(_global),
    _DTYPE,
)


def _arrays(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Arrays, scalars, indexes, blocks and frames, nearly right, of `values`."""
    lists = st.lists(values, max_size=6).map(lambda parts: b"](" + b"".join(parts) + b"e")
    begun = _called(
        _find("_reconstruct"), [_global(("numpy", "ndarray")), _plain((0,)), _plain(b"b")]
    )
    array = st.builds(
        lambda shape, kind, order, content: (
            begun + _tuple([b"K\x01", shape, kind, order, content]) + b"b"
        ),
        _SHAPE,
        _DTYPE,
        st.sampled_from([b"\x88", b"\x89", b"K\x01"]),
        _RAW | lists,
    )
    shared = st.builds(
        lambda content, kind, shape, order: _called(
            _find("_frombuffer"), [content, kind, shape, _plain(order)]
        ),
        _RAW,
        _DTYPE,
        _SHAPE,
        st.sampled_from(["C", "F", "K", "A"]),
    )
    scalar = st.builds(lambda kind, raw: _called(_find("scalar"), [kind, raw]), _DTYPE, _RAW)
    some = array | shared | scalar | values
    index = st.builds(
        lambda data, name: _called(
            _find("_new_Index"),
            [_global(_find("Index")), b"}(" + _plain("data") + data + _plain("name") + name + b"u"],
        ),
        some,
        values,
    )
    range_index = st.builds(
        lambda bounds: _called(
            _find("_new_Index"),
            [
                _global(_find("RangeIndex")),
                b"}("
                + b"".join(_plain(n) + _plain(v) for n, v in zip(("start", "stop", "step"), bounds))
                + b"u",
            ],
        ),
        st.lists(_NUMBER, min_size=3, max_size=3),
    )
    places = st.builds(
        lambda bounds: _called(_find("slice"), [_plain(n) for n in bounds]),
        st.lists(_NUMBER | st.none(), min_size=3, max_size=3),
    )
    block = st.builds(
        lambda value, place, size: _called(_find("_unpickle_block"), [value, place, _plain(size)]),
        some,
        places | array,
        st.sampled_from([1, 2]),
    )
    axis = index | range_index
    manager = st.builds(
        lambda blocks, axes: _called(
            _find("BlockManager"), [_tuple(blocks), b"](" + b"".join(axes) + b"e"]
        ),
        st.lists(block, max_size=2),
        st.lists(axis, max_size=2),
    )
    frame = st.builds(
        lambda name, key, value: _global(name) + b")\x81}(" + _plain(key) + value + b"ub",
        st.sampled_from([_find("DataFrame"), _find("Series"), _find("BlockManager")]),
        st.sampled_from(["_mgr", "_data"]),
        manager,
    )
    anything = st.builds(
        lambda name, parts, code: _called(name, parts, code),
        st.sampled_from(_NAMES),
        st.lists(some, max_size=4),
        st.sampled_from([b"R", b"\x81"]),
    )
    return st.one_of(some, lists, index, range_index, block, manager, frame, anything)


_CALLS = st.recursive(_LEAF, _arrays, max_leaves=12).map(lambda body: b"\x80\x04" + body + b".")


# Whole pickles with a few changes.


def _changed(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for kind, place, piece in changes:
        at = place % (len(content) + 1)
        if kind == 0:  # replace
            content = content[:at] + piece + content[at + len(piece) :]
        elif kind == 1:  # insert
            content = content[:at] + piece + content[at:]
        elif kind == 2:  # remove
            content = content[:at] + content[at + max(len(piece), 1) :]
        else:  # repeat
            content = content[: at + 20] + content[at:]
    return content


_PIECE = st.binary(min_size=1, max_size=4) | _OPERATION
_CHANGED = st.builds(
    _changed,
    st.sampled_from(SEEDS),
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2**16), _PIECE), min_size=1, max_size=6
    ),
)  # fmt: skip


def _use(value: Any, depth: int = 0) -> None:
    """Touches every value, so that memory that is not there would show."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _use(key, depth + 1)
            _use(inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _use(inner, depth + 1)
    elif isinstance(value, np.ndarray):
        repr(value.dtype)
        _use(value.tolist(), depth + 1)
    elif isinstance(value, pd.DataFrame | pd.Series):
        if len(value) < 2**20:
            repr(value)
            _use(value.to_numpy(), depth + 1)
    else:
        assert depth < 64
        repr(value)


class _Watch:
    """Notes what Python's audit tells while a pickle is read."""

    def __init__(self):
        self.reading = False
        self.events: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple) -> None:
        if self.reading and event.startswith(_FORBIDDEN):
            self.events.append(event)


def main(folder: str, seconds: str, first_seed: str = "0", examples: str = "300") -> None:
    path = pathlib.Path(folder) / "fuzzed.pkl"
    warnings.simplefilter("ignore")
    watch, counts = _Watch(), collections.Counter[str]()
    for content in SEEDS:
        path.write_bytes(content)
        _use(load_pickle(path))  # imports what is imported later
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def read(content: bytes) -> None:
        path.write_bytes(content)
        counts["readings"] += 1
        signal.alarm(_SECONDS_A_READING)
        watch.reading = True
        try:
            value = load_pickle(path)
        except UserError as error:
            assert "\n" not in str(error), error
        else:
            counts["loaded"] += 1
            _use(value)
        finally:
            watch.reading = False
            signal.alarm(0)
        assert not watch.events, watch.events
        growth = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        assert growth < _GROWTH_BYTES, f"{growth:,} bytes"

    settings = hypothesis.settings(
        max_examples=int(examples),
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    end, seed = time.monotonic() + float(seconds), int(first_seed)
    while True:
        for strategy in (_STREAM, _CALLS, _CHANGED):
            hypothesis.seed(seed)(settings(hypothesis.given(strategy)(read)))()
        seed += 1
        if time.monotonic() >= end:
            break
    print(f"{counts['readings']} readings, {counts['loaded']} of them loaded, {seed} rounds")


if __name__ == "__main__":
    main(*sys.argv[1:])
