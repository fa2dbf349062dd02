"""Reads pickles of plain values, NumPy arrays and pandas frames; any other pickle is refused.

A pickle is a program for a machine inside Python that looks up any function of any module and calls
it. Here it runs on a machine of our own, which knows the operations of binary pickles (protocols 2
to 5) and no others, looks up nothing, and has the names of NumPy's and pandas' pickles stand for
functions of `pickled_arrays`, which take plain values alone. Python's own unpickler is given
nothing but runs of numbers and flat lists of them, checked to be that and rebuilt, because it reads
these fast; a name, a length or a reference never reaches it.

Depth, number of values, memory and work are bounded: a length or a place in a table is only a
number here, and what is shared counts as often as it occurs, and as often as something is made of
it: a call takes a few bytes of the file, and copies an array of any size.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from core.errors import UserError, reason_of
from input_pipelines.readers.pickled_arrays import (
    CALLED,
    MADE,
    MARKERS,
    Block,
    Manager,
    Marker,
    Unfinished,
)

_MOST_BYTES = 4 * 2**30
# Values of a whole pickle; the values of a shared list count each time.
_MOST_VALUES = 2**27
# Lists, dicts, tuples and places of the memo made.
_MOST_OBJECTS = 2**25
_MOST_STEPS = 2**27
# Values of the arguments of all calls; a frame of the published data is handed on some four times.
_MOST_HANDED = 2**29
# Bytes that all calls may make, of any file and for each byte of it.
_FREE_MADE, _MADE_A_BYTE = 2**28, 8
_DEPTH = 32
_LONGEST_NAME = 100
_TEXT_A_VALUE = 64  # so many characters or bytes count as one value

# Whole numbers, None, True, False and floats, each with its operation; the most frequent first, and
# at last whole numbers of any size up to nine bytes.
_LONG = b"|".join(re.escape(bytes([size])) + b"." * size for size in range(10))
_VALUE = rb"(?:\x8a\x06......|J....|K.|M..|G........|[N\x88\x89]|\x8a(?:%b))" % _LONG
_VALUES = re.compile(_VALUE + rb"{1,65536}+", re.DOTALL)
_MEMO = rb"(?:\x94|q.|r....)?"
_FILLED = rb"(?:\(%b{0,65536}+e|%ba)?" % (_VALUE, _VALUE)
_LISTS = re.compile(rb"(?:\]%b%b){1,4096}+" % (_MEMO, _FILLED), re.DOTALL)
_ONE_LIST = re.compile(rb"\](%b)(%b)" % (_MEMO, _FILLED), re.DOTALL)

_NUMBERS = frozenset({int, float, bool, type(None)})
_HOLDERS = (pd.DataFrame, pd.Series, pd.Index, Block, Manager)
_RESULTS = (*_NUMBERS, dict, list, tuple, str, bytes, np.ndarray, pd.DataFrame, pd.Series)


class _Refused(Exception):
    """Says that a pickle names something that is no constructor of data."""


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _bytes_of(made: Any) -> int:
    """Returns the memory that a call may have taken for what it made."""
    if isinstance(made, pd.DataFrame):
        return int(made.memory_usage().sum())
    if isinstance(made, np.ndarray | pd.Index | pd.Series):
        return made.nbytes
    return len(made) if type(made) is bytes else 0


class _Name:
    """Names what a pickle has looked up: the key of `CALLED` and `MADE`."""

    __slots__ = ("key",)

    def __init__(self, key: tuple[str, str]):
        self.key = key


class _Machine:
    """Runs one pickle.

    Args:
      content: the bytes of the file.
    """

    def __init__(self, content: bytes):
        self._content, self._at = content, 0
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # what lay on the stack below each mark
        self._memo: dict[int, Any] = {}
        self._objects = self._values_read = self._values_handed = 0
        self._bytes_left = _FREE_MADE + _MADE_A_BYTE * len(content)
        # Containers that were fetched from the memo: to fill one further could close a circle.
        self._shared: set[int] = set()
        # By id, of what holds more than numbers: (itself, depth, values in it).
        self._weights: dict[int, tuple[Any, int, int]] = {}

    def run(self) -> Any:
        """Returns the value. Raises _Refused, or ValueError, IndexError and the like."""
        content, steps = self._content, _OPERATIONS
        for _ in range(_MOST_STEPS):
            code = content[self._at]
            if code == _STOP:
                (value,) = self._stack
                if self._outer or not (type(value) in _RESULTS or isinstance(value, np.generic)):
                    raise ValueError("it holds no data")
                return value
            step = steps[code]
            if step is None:
                raise ValueError(f"operation {bytes([code])!r} at byte {self._at:,}")
            step(self)
        raise ValueError(f"more than {_MOST_STEPS:,} operations")

    # What the operations share.

    def _count(self, objects: int) -> None:
        self._objects += objects
        if self._objects > _MOST_OBJECTS:
            raise ValueError(f"more than {_MOST_OBJECTS:,} lists and dicts")

    def _count_values(self, values: int) -> None:
        self._values_read += values
        if self._values_read > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES:,} values")

    def _take(self, start: int, size: int) -> bytes:
        """Returns the `size` bytes from `start` and goes on after them."""
        if start + size > len(self._content):
            raise ValueError("it ends early")
        self._at = start + size
        return self._content[start : start + size]

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(self._at + 1, size), "little")

    def _weight(self, value: Any) -> tuple[int, int]:
        """Returns how deep a value is and how many values it holds."""
        known = self._weights.get(id(value))
        if known is not None:
            return known[1:]
        kind = type(value)
        if kind in (list, dict, tuple):
            return 1, 1 + len(value)
        if kind in (str, bytes):
            return 0, 1 + len(value) // _TEXT_A_VALUE
        if isinstance(value, Unfinished):
            raise ValueError("an object is used before it is finished")
        return 0, value.size if isinstance(value, np.ndarray) else 1

    def _weigh(self, holder: Any, content: Iterable[Any], before: tuple[int, int]) -> None:
        """Notes the weight of `holder`, which weighed `before` and now holds `content` too."""
        depth, values = before
        for value in content:
            inner, count = self._weight(value)
            depth, values = max(depth, inner + 1), values + count
        if depth > _DEPTH:
            raise ValueError(f"values nested more than {_DEPTH} deep")
        if values > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES:,} values")
        self._weights[id(holder)] = (holder, depth, values)

    def _push_tuple(self, items: list[Any]) -> None:
        made = tuple(items)
        self._count(1)
        if not {*map(type, items)} <= _NUMBERS:
            self._weigh(made, items, (1, 1))
        self._stack.append(made)

    def _hand(self, source: Any) -> None:
        """Counts what a call is handed, before it goes through it."""
        self._values_handed += self._weight(source)[1]
        if self._values_handed > _MOST_HANDED:
            raise ValueError(f"calls with more than {_MOST_HANDED:,} values")

    def _push_made(self, value: Any, source: Any) -> None:
        """Pushes what was made of `source`, whose weight it has where it can hold objects."""
        self._count(1)
        self._bytes_left -= _bytes_of(value)
        if self._bytes_left < 0:
            raise ValueError("values made of others that need far more memory than the file has")
        self._stack.append(value)
        if isinstance(value, _HOLDERS) or (isinstance(value, np.ndarray) and value.dtype.hasobject):
            self._weights[id(value)] = (value, *self._weight(source))

    def _after_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _fill_list(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list or id(target) in self._shared:
            raise ValueError("values are added to no list, or to one that is in use")
        if id(target) in self._weights or not {*map(type, items)} <= _NUMBERS:
            self._weigh(target, items, self._weight(target))
        target += items

    def _fill_dict(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or id(target) in self._shared or len(items) % 2:
            raise ValueError("pairs are added to no dict, or to one that is in use")
        keys, values = items[::2], items[1::2]
        for kind in {*map(type, keys)} - _NUMBERS:
            if kind not in (str, bytes) and not issubclass(kind, np.generic):
                raise ValueError(f"a key of a dict is a {kind.__name__}")
        if id(target) in self._weights or not {*map(type, items)} <= _NUMBERS:
            self._weigh(target, items, self._weight(target))
        target.update(zip(keys, values, strict=True))

    def _remember(self, place: int, value: Any) -> None:
        self._count(1)
        self._memo[place] = value

    def _fetch(self, place: int) -> None:
        if place not in self._memo:
            raise ValueError(f"no value at place {place} of the memo")
        value = self._memo[place]
        if type(value) is Unfinished:
            value = value.value
            if value is None:
                raise ValueError("an object is used before it is finished")
        elif type(value) in (list, dict):
            self._shared.add(id(value))
        self._stack.append(value)

    def _look_up(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name that is no text")
        key = module, name
        if key in MARKERS:
            self._stack.append(MARKERS[key])
        elif key in CALLED or key in MADE:
            self._stack.append(_Name(key))
        else:
            raise _Refused(_printable(f"{module}.{name}"[:_LONGEST_NAME]))

    def _call(self, functions: dict[tuple[str, str], Any]) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if type(name) is Marker:
            raise _Refused(name.name)
        if type(name) is not _Name or type(arguments) is not tuple:
            raise ValueError("a call of what is no function")
        if name.key not in functions:
            raise _Refused(".".join(name.key))
        self._hand(arguments)
        self._push_made(functions[name.key](*arguments), arguments)

    # Operations, in the order of the table below.

    def _read_values(self) -> None:
        run = _VALUES.match(self._content, self._at)
        if run is None:
            raise ValueError(f"it ends early or has a number of over 9 bytes at byte {self._at:,}")
        self._at = run.end()
        values = pickle.loads(b"(%bl." % run[0])
        self._count_values(len(values))
        self._stack += values

    def _read_lists(self) -> None:
        """Reads flat lists of numbers; what follows may fill the last further."""
        first = _ONE_LIST.match(self._content, self._at)
        assert first is not None  # an empty list matches
        if self._content[first.end() : first.end() + 1] == pickle.EMPTY_LIST:
            run = _LISTS.match(self._content, self._at)
            assert run is not None
            self._at = run.end()
            memos, contents = zip(*_ONE_LIST.findall(run[0]), strict=True)
        else:
            self._at = first.end()
            memos, contents = (first[1],), (first[2],)
        self._count(len(contents))
        lists = pickle.loads(b"(]%bl." % b"]".join(contents))
        self._count_values(sum(map(len, lists)))
        if any(memos):
            for memo, one in zip(memos, lists, strict=True):
                if len(memo) > 1:
                    self._memo[int.from_bytes(memo[1:], "little")] = one
                elif memo:
                    self._memo[len(self._memo)] = one
            self._count(len(lists))
        self._stack += lists

    def _read_text(self, size: int) -> None:
        content = self._take(self._at + 1 + size, self._number(size))
        self._stack.append(str(content, "utf-8", "surrogatepass"))

    def _read_bytes(self, size: int) -> None:
        self._stack.append(self._take(self._at + 1 + size, self._number(size)))

    def _next(self) -> None:
        self._at += 1

    def _mark(self) -> None:
        self._next()
        if len(self._outer) > _DEPTH * 2:
            raise ValueError("too many marks")
        self._outer.append(self._stack)
        self._stack = []

    def _append(self) -> None:
        self._next()
        self._fill_list([self._stack.pop()])

    def _appends(self) -> None:
        self._next()
        self._fill_list(self._after_mark())

    def _set_item(self) -> None:
        self._next()
        items = self._stack[-2:]
        del self._stack[-2:]
        self._fill_dict(items)

    def _set_items(self) -> None:
        self._next()
        self._fill_dict(self._after_mark())

    def _empty_dict(self) -> None:
        self._next()
        self._count(1)
        self._stack.append({})

    def _tuple(self) -> None:
        self._next()
        self._push_tuple(self._after_mark())

    def _tuple_of(self, size: int) -> None:
        self._next()
        if len(self._stack) < size:
            raise ValueError("a tuple of too few values")
        items = self._stack[len(self._stack) - size :]
        del self._stack[len(self._stack) - size :]
        self._push_tuple(items)

    def _memoize(self) -> None:
        self._next()
        self._remember(len(self._memo), self._stack[-1])

    def _put(self, size: int) -> None:
        self._remember(self._number(size), self._stack[-1])

    def _get(self, size: int) -> None:
        self._fetch(self._number(size))

    def _global(self) -> None:
        """Reads a name as text: two lines."""
        names = []
        for _ in range(2):
            end = self._content.find(b"\n", self._at + 1, self._at + 2 + _LONGEST_NAME)
            if end < 0:
                raise ValueError("a name without an end")
            names.append(str(self._content[self._at + 1 : end], "utf-8", "surrogatepass"))
            self._at = end
        self._next()
        self._look_up(*names)

    def _stack_global(self) -> None:
        self._next()
        name, module = self._stack.pop(), self._stack.pop()
        self._look_up(module, name)

    def _reduce(self) -> None:
        self._next()
        self._call(CALLED)

    def _new(self) -> None:
        self._next()
        self._call(MADE)

    def _build(self) -> None:
        self._next()
        state, begun = self._stack.pop(), self._stack.pop()
        if type(begun) is not Unfinished or begun.value is not None:
            raise ValueError("a state of what has none")
        self._hand(state)
        begun.value = begun.finish(state)
        self._push_made(begun.value, state)

    def _protocol(self) -> None:
        if self._number(1) > pickle.HIGHEST_PROTOCOL:
            raise ValueError("a protocol of later versions")

    def _frame(self) -> None:
        if self._number(8) > len(self._content) - self._at:
            raise ValueError("it ends early")


_STOP = pickle.STOP[0]
# By the byte of an operation; None where it is refused.
_OPERATIONS: list[Callable[[_Machine], None] | None] = [None] * 256


def _sized(method: Callable[[_Machine, int], None], size: int) -> Callable[[_Machine], None]:
    return lambda machine: method(machine, size)


def _fill_table() -> None:
    numbers = (pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT)
    table: dict[bytes, Callable[[_Machine], None]] = dict.fromkeys(
        (*numbers, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE), _Machine._read_values
    )
    table |= {
        pickle.EMPTY_LIST: _Machine._read_lists,
        pickle.SHORT_BINUNICODE: _sized(_Machine._read_text, 1),
        pickle.BINUNICODE: _sized(_Machine._read_text, 4),
        pickle.BINUNICODE8: _sized(_Machine._read_text, 8),
        pickle.SHORT_BINBYTES: _sized(_Machine._read_bytes, 1),
        pickle.BINBYTES: _sized(_Machine._read_bytes, 4),
        pickle.BINBYTES8: _sized(_Machine._read_bytes, 8),
        pickle.BYTEARRAY8: _sized(_Machine._read_bytes, 8),
        pickle.MARK: _Machine._mark,
        pickle.APPEND: _Machine._append,
        pickle.APPENDS: _Machine._appends,
        pickle.SETITEM: _Machine._set_item,
        pickle.SETITEMS: _Machine._set_items,
        pickle.EMPTY_DICT: _Machine._empty_dict,
        pickle.TUPLE: _Machine._tuple,
        pickle.EMPTY_TUPLE: _sized(_Machine._tuple_of, 0),
        pickle.TUPLE1: _sized(_Machine._tuple_of, 1),
        pickle.TUPLE2: _sized(_Machine._tuple_of, 2),
        pickle.TUPLE3: _sized(_Machine._tuple_of, 3),
        pickle.MEMOIZE: _Machine._memoize,
        pickle.BINPUT: _sized(_Machine._put, 1),
        pickle.LONG_BINPUT: _sized(_Machine._put, 4),
        pickle.BINGET: _sized(_Machine._get, 1),
        pickle.LONG_BINGET: _sized(_Machine._get, 4),
        pickle.GLOBAL: _Machine._global,
        pickle.STACK_GLOBAL: _Machine._stack_global,
        pickle.REDUCE: _Machine._reduce,
        pickle.NEWOBJ: _Machine._new,
        pickle.BUILD: _Machine._build,
        pickle.PROTO: _Machine._protocol,
        pickle.FRAME: _Machine._frame,
    }
    for code, step in table.items():
        _OPERATIONS[code[0]] = step


_fill_table()


def load_pickle(path: pathlib.Path) -> Any:
    """Reads the value pickled in a file.

    Arrays are read-only and in the machine's byte order; a defaultdict or OrderedDict is a dict.

    Raises:
      UserError: no such file, a file cut short, a pickle that names anything but data, one of
        protocol 0 or 1, or of more values, deeper or larger than this module allows.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MOST_BYTES:
                raise ValueError(f"{size:,} bytes, of at most {_MOST_BYTES:,}")
            content = file.read(size)
        return _Machine(content).run()
    except FileNotFoundError:
        raise UserError(f"expected a pickle at {path}, found no file; see the reader") from None
    except _Refused as error:
        raise UserError(
            f"expected numbers, NumPy arrays and pandas frames alone in {path}, found a call of "
            f"{error}; nothing of it was run: use the file as published"
        ) from None
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        OSError,
        TypeError,
        ValueError,
    ) as error:
        reason = _printable(reason_of(error))
        raise UserError(
            f"expected a whole pickle at {path}, found one that does not load ({reason}); "
            "download it again"
        ) from None
