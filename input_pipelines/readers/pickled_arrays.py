"""Builds NumPy arrays and pandas frames from what a pickle says of them, all of it checked first.

A pickle does not hold an array but the calls that make one: of NumPy's `_reconstruct`, of
`dtype.__setstate__` with flags and offsets, of `scalar` with raw bytes. Made-up arguments of these
crash the interpreter or let it read and run any memory. So none of them is called here. The
functions below take the same arguments as plain values, hold them to what NumPy and pandas write,
and build the arrays from a code, a shape and exactly as many bytes as both need.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

_SIMPLE = {"b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8"}
_TEXT = re.compile(r"[US][1-9][0-9]{0,8}")
_TIMES = ("M8", "m8")
_UNITS = frozenset(["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"])
_ORDERS = {"<": "<", ">": ">", "|": "", "=": "="}
# Flags of NumPy's descriptions: of objects, and of text, whose items need Python.
_OBJECT_FLAGS, _UNICODE_FLAGS = 63, 8
_MOST_DIMENSIONS = 8
_MOST_COLUMNS = 10_000
_LONGEST_EMPTY_AXIS = 2**20
# Rows that a range of an index numbers: it holds none of them, but others make arrays of it.
_LONGEST_RANGE = 2**27
_LAST_CHARACTER = 0x10FFFF
_OLD_STATE = "0.14.1"  # the key of the state that pandas wrote up to 1.2


class Marker(NamedTuple):
    """Stands for a class that a pickle names as an argument and that is never called."""

    name: str


class Unfinished:
    """Holds what a pickle has begun to make and finishes with a state that follows.

    Attributes:
      finish: makes the value from the state.
      value: the value once it is finished.
    """

    __slots__ = ("finish", "value")

    def __init__(self, finish: Callable[[Any], Any]):
        self.finish = finish
        self.value: Any = None


class Block(NamedTuple):
    """Holds columns of a frame that share a dtype.

    Attributes:
      values: [columns, rows], or [rows] of a series.
      places: of the columns in the frame; a slice or whole numbers.
    """

    values: np.ndarray
    places: Any


class Manager(NamedTuple):
    """Holds the blocks of a frame or series, and its axes: columns and rows, or rows alone."""

    blocks: tuple[Block, ...]
    axes: tuple[pd.Index, ...]


ARRAY, INDEX = Marker("numpy.ndarray"), Marker("pandas.Index")
RANGE_INDEX = Marker("pandas.RangeIndex")
FACTORIES = (Marker("builtins.dict"), Marker("builtins.list"))


def _expect(fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(f"expected {what}")


def _are_whole(values: Any) -> bool:
    return all(type(value) is int for value in values)


def dtype(code: Any, align: Any = False, copy: Any = True) -> Unfinished:
    """Begins a dtype by its code, such as 'i8'; its state tells the byte order."""
    _expect(type(code) is str and type(align) is bool and type(copy) is bool, "a dtype's code")
    known = code in _SIMPLE or code in _TIMES or code in ("O", "O8") or _TEXT.fullmatch(code)
    _expect(bool(known), "a dtype of numbers, text, times or objects")
    return Unfinished(lambda state: _finished_dtype(code, state))


def _finished_dtype(code: str, state: Any) -> np.dtype:
    kind = code[0]
    _expect(type(state) is tuple and len(state) in (8, 9), "a dtype's state")
    version, order, *rest = state[:8]
    size, alignment, flags = -1, -1, 0
    if kind == "U":
        size, alignment, flags = 4 * int(code[1:]), 4, _UNICODE_FLAGS
    elif kind == "S":
        size, alignment = int(code[1:]), 1
    elif kind == "O":
        flags = _OBJECT_FLAGS
    _expect(type(order) is str and order in _ORDERS, "a byte order")
    _expect(_are_whole([version, *rest[3:]]) and version in (3, 4), "a dtype's state")
    _expect(
        all(value is None for value in rest[:3]) and rest[3:] == [size, alignment, flags],
        f"the state of a dtype {code}",
    )
    if code in _TIMES:
        _expect(len(state) == 9, "the unit of times")
        return np.dtype(f"{_ORDERS[order]}{code}{_unit(state[8])}")
    _expect(len(state) == 8, f"the state of a dtype {code}")
    return np.dtype(object) if kind == "O" else np.dtype(_ORDERS[order] + code)


def _unit(described: Any) -> str:
    _expect(type(described) is tuple and len(described) == 2, "the unit of times")
    metadata, unit = described
    _expect(metadata is None or (type(metadata) is dict and not metadata), "times without metadata")
    _expect(type(unit) is tuple and len(unit) == 4 and _are_whole(unit[1:]), "the unit of times")
    name = unit[0].decode("ascii") if type(unit[0]) is bytes else unit[0]
    _expect(type(name) is str and name in _UNITS, "the unit of times")
    _expect(0 < unit[1] < 2**31 and unit[2:] == (1, 1), "the unit of times")
    return f"[{unit[1]}{name}]"


def reconstruct(kind: Any, shape: Any, code: Any) -> Unfinished:
    """Begins an array; its state tells shape, dtype, order and values."""
    _expect(kind is ARRAY and shape == (0,) and code in (b"b", "b"), "an array of NumPy's")
    return Unfinished(_finished_array)


def _finished_array(state: Any) -> np.ndarray:
    _expect(type(state) is tuple and len(state) == 5, "an array's state")
    version, shape, kind, fortran, values = state
    _expect(version == 1 and type(fortran) is bool, "an array's state")
    return _array(shape, kind, values, "F" if fortran else "C")


def from_buffer(values: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """Returns an array of bytes as protocol 5 keeps it.

    Args:
      axes: with the order 'K', where each axis of `shape` goes.
    """
    if order == "K" and axes is not None:
        array = _array(shape, kind, values, "C")
        _expect(type(axes) is tuple and _are_whole(axes), "an order of axes")
        _expect(sorted(axes) == list(range(array.ndim)), "an order of axes")
        return array.transpose(axes)
    _expect(order in ("C", "F", "K") and type(order) is str and axes is None, "an array's order")
    return _array(shape, kind, values, "F" if order == "F" else "C")


def scalar(kind: Any, value: Any) -> np.generic:
    """Returns the one value of a dtype that the bytes hold."""
    _expect(isinstance(kind, np.dtype) and not kind.hasobject, "the dtype of a number")
    array: Any = _array((), kind, value, "C")
    return array[()]


def _array(shape: Any, kind: Any, values: Any, order: Any) -> np.ndarray:
    _expect(isinstance(kind, np.dtype), "an array's dtype")
    _expect(type(shape) is tuple and len(shape) <= _MOST_DIMENSIONS, "an array's shape")
    _expect(_are_whole(shape) and all(0 <= n < 2**48 for n in shape), "an array's shape")
    count = math.prod(shape)
    # Nothing may stand for 2**31 rows of no columns.
    _expect(count > 0 or max(shape) <= _LONGEST_EMPTY_AXIS, "an array's shape")
    if kind.hasobject:
        _expect(type(values) is list and len(values) == count, f"the {count} objects of an array")
        # Not by assignment, which takes lists inside for further axes. Lists are in C order always.
        return np.fromiter(values, object, count).reshape(shape)
    _expect(
        type(values) is bytes and len(values) == count * kind.itemsize,
        f"{count * kind.itemsize} bytes of an array",
    )
    array = np.frombuffer(values, kind, count)
    if kind.kind == "b":
        _expect(not count or int(array.view(np.uint8).max()) <= 1, "bytes of truth values")
    elif kind.kind == "U":
        codes = array.view(np.dtype(np.uint32).newbyteorder(kind.byteorder))
        _expect(not count or int(codes.max()) <= _LAST_CHARACTER, "characters of Unicode")
    return array.astype(kind.newbyteorder("="), copy=False).reshape(shape, order=order)


def encode(text: Any, encoding: Any) -> bytes:
    """Returns bytes from the text as which protocol 2 keeps them."""
    _expect(type(text) is str and encoding in ("latin1", "latin-1"), "bytes written as latin1")
    return text.encode("latin1")


def byte_string(*content: Any) -> bytes:
    """Returns the bytes of a `bytes` or `bytearray`."""
    if len(content) == 2:
        return encode(*content)
    _expect(not content or (len(content) == 1 and type(content[0]) is bytes), "bytes")
    return content[0] if content else b""


def dictionary(*factory: Any) -> dict:
    """Returns the empty dict of a defaultdict or OrderedDict."""
    _expect(len(factory) <= 1 and all(f is None or f in FACTORIES for f in factory), "a plain dict")
    return {}


def slice_of(*bounds: Any) -> slice:
    """Returns a slice of whole numbers."""
    _expect(all(n is None or (type(n) is int and abs(n) < 2**62) for n in bounds), "a slice")
    return slice(*bounds)


def _name(value: Any) -> Any:
    _expect(value is None or type(value) in (str, int), "a name as text or number")
    return value


def index(kind: Any, about: Any) -> pd.Index:
    """Returns an index of numbers, text or objects, or a range."""
    _expect(type(about) is dict, "the description of an index")
    name = _name(about.get("name"))
    if kind is RANGE_INDEX:
        bounds = [about.get("start"), about.get("stop"), about.get("step")]
        _expect(_are_whole(bounds) and all(abs(n) < 2**62 for n in bounds), "the range of an index")
        _expect(bounds[2] != 0 and len(range(*bounds)) <= _LONGEST_RANGE, "the range of an index")
        return pd.RangeIndex(*bounds, name=name)
    _expect(kind is INDEX, "an index of pandas")
    values = about.get("data")
    _expect(isinstance(values, np.ndarray) and values.ndim == 1, "the values of an index")
    assert isinstance(values, np.ndarray)
    # pandas knows no index of half precision.
    _expect(values.dtype.kind in "biufOMm" and values.dtype != np.float16, "the values of an index")
    if values.dtype == object:
        _expect({*map(type, values)} <= {str, int, float, bool, type(None)}, "plain index values")
    return pd.Index(values, dtype=values.dtype, name=name)


def block(values: Any, places: Any, dimensions: Any) -> Block:
    """Returns columns of one dtype."""
    _expect(isinstance(values, np.ndarray) and values.ndim == dimensions, "the values of columns")
    _expect(dimensions in (1, 2) and values.dtype.kind in "biufOMm", "the values of columns")
    _expect(isinstance(places, slice | np.ndarray), "the places of columns")
    return Block(values, places)


def manager(blocks: Any, axes: Any) -> Manager:
    """Returns the blocks and axes of a frame, or the one block and axis of a series."""
    blocks, axes = (
        tuple(each) if type(each) in (tuple, list) else (each,) for each in (blocks, axes)
    )
    _expect(all(isinstance(each, Block) for each in blocks), "blocks of columns")
    _expect(all(isinstance(each, pd.Index) for each in axes), "axes of a frame")
    return Manager(blocks, axes)


def new_manager() -> Unfinished:
    """Begins a manager as pandas up to 1.2 wrote it."""
    return Unfinished(_finished_manager)


def _finished_manager(state: Any) -> Manager:
    _expect(type(state) is tuple and len(state) >= 4 and type(state[3]) is dict, "a frame's blocks")
    described = state[3].get(_OLD_STATE)
    _expect(type(described) is dict, "a frame's blocks")
    axes, parts = described.get("axes"), described.get("blocks")
    _expect(type(axes) is list and type(parts) is list, "a frame's blocks")
    _expect(all(type(part) is dict for part in parts), "a frame's blocks")
    blocks = [block(part.get("values"), part.get("mgr_locs"), len(axes)) for part in parts]
    return manager(blocks, axes)


def new_frame() -> Unfinished:
    """Begins a frame."""
    return Unfinished(_finished_frame)


def new_series() -> Unfinished:
    """Begins a series."""
    return Unfinished(_finished_series)


def _parts(state: Any, dimensions: int) -> Manager:
    _expect(type(state) is dict, "the state of a frame")
    contents = state.get("_mgr", state.get("_data"))
    _expect(isinstance(contents, Manager) and len(contents.axes) == dimensions, "a frame's blocks")
    return contents


def _column(values: np.ndarray) -> pd.Series:
    """Keeps objects what they are: pandas would take some for text of its own kind."""
    return pd.Series(values, dtype=values.dtype if values.dtype == object else None)


def _finished_frame(state: Any) -> pd.DataFrame:
    blocks, (columns, rows) = _parts(state, 2)
    width = len(columns)
    _expect(width <= _MOST_COLUMNS and columns.is_unique, "different names of columns")
    by_place: dict[int, pd.Series] = {}
    for values, places in blocks:
        numbers = _places(places, width)
        _expect(values.shape == (len(numbers), len(rows)), "one value a row and column")
        for place, column in zip(numbers, values, strict=True):
            _expect(place not in by_place, "one block a column")
            by_place[place] = _column(column)
    _expect(len(by_place) == width, "every column in a block")
    frame = pd.DataFrame({place: by_place[place] for place in range(width)})
    if not width:
        return pd.DataFrame(index=rows, columns=columns)
    frame.columns, frame.index = columns, rows
    return frame


def _places(places: Any, width: int) -> list[int]:
    if isinstance(places, slice):
        return list(range(*places.indices(width)))
    _expect(places.ndim == 1 and places.dtype.kind in "iu", "the places of columns")
    _expect(len(places) <= width, "the places of columns")
    numbers = places.tolist()
    _expect(all(0 <= place < width for place in numbers), "the places of columns")
    return numbers


def _finished_series(state: Any) -> pd.Series:
    blocks, (rows,) = _parts(state, 1)
    _expect(len(blocks) == 1 and blocks[0].values.shape == (len(rows),), "one value a row")
    series = _column(blocks[0].values)
    series.index, series.name = rows, _name(state.get("name", state.get("_name")))
    return series


def _named(names: Mapping[str, tuple[tuple[str, ...], Any]]) -> dict[tuple[str, str], Any]:
    return {(module, name): value for name, (homes, value) in names.items() for module in homes}


_ARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_BUILTINS = ("builtins", "__builtin__")
_INDEXES = ("pandas.core.indexes.base", "pandas.core.index", "pandas.indexes.base")
_MANAGERS = ("pandas.core.internals", "pandas.core.internals.managers")
_RANGES = ("pandas", "pandas.core.indexes.range", "pandas.indexes.range")
_NUMBER_INDEXES = ("pandas.core.indexes.numeric", "pandas.indexes.numeric")

# What a pickle may name, by every module where NumPy and pandas had it: what it stands for.
CALLED: dict[tuple[str, str], Any] = _named(
    {
        "dtype": (("numpy",), dtype),
        "_reconstruct": (_ARRAYS, reconstruct),
        "scalar": (_ARRAYS, scalar),
        "_frombuffer": (_NUMERIC, from_buffer),
        "encode": (("_codecs",), encode),
        "bytes": (_BUILTINS, byte_string),
        "bytearray": (_BUILTINS, byte_string),
        "slice": (_BUILTINS, slice_of),
        "defaultdict": (("collections",), dictionary),
        "OrderedDict": (("collections",), dictionary),
        "_new_Index": (_INDEXES, index),
        "_unpickle_block": (("pandas._libs.internals",), block),
        "BlockManager": (_MANAGERS, manager),
        "SingleBlockManager": (_MANAGERS, manager),
    }
)
# Likewise the classes that are made empty and then given a state.
MADE: dict[tuple[str, str], Any] = _named(
    {
        "DataFrame": (("pandas", "pandas.core.frame"), new_frame),
        "Series": (("pandas", "pandas.core.series"), new_series),
        "BlockManager": (_MANAGERS, new_manager),
        "SingleBlockManager": (_MANAGERS, new_manager),
    }
)
MARKERS: dict[tuple[str, str], Marker] = _named(
    {
        "ndarray": (("numpy",), ARRAY),
        "dict": (_BUILTINS, FACTORIES[0]),
        "list": (_BUILTINS, FACTORIES[1]),
        "Index": (("pandas", *_INDEXES), INDEX),
        "RangeIndex": (_RANGES, RANGE_INDEX),
        **{f"{kind}Index": (_NUMBER_INDEXES, INDEX) for kind in ("Int64", "UInt64", "Float64")},
    }
)
