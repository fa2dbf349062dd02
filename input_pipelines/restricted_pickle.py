"""Pickles of plain values, NumPy arrays and pandas frames; any other pickle is refused.

A pickle may name any function of any module and have it called while it loads. Here only the names
below are admitted, each a constructor of data, so that nothing else can run.
"""

from __future__ import annotations

import importlib
import pathlib
import pickle
from typing import Any

from core.errors import UserError

# Where NumPy and pandas have kept what their pickles name; older names still occur in files.
_NUMPY_ARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMPY_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_PANDAS_INDEXES = ("pandas.core.indexes.base", "pandas.core.index", "pandas.indexes.base")
_PANDAS_HOMES = {
    "DataFrame": "pandas.core.frame",
    "Series": "pandas.core.series",
    "RangeIndex": "pandas.core.indexes.range",
    "Index": "pandas.core.indexes.base",
}
_OLD_NUMBER_INDEXES = ("Int64Index", "UInt64Index", "Float64Index")
_ADMITTED: dict[tuple[str, str], tuple[str, str]] = {
    ("numpy", "ndarray"): ("numpy", "ndarray"),
    ("numpy", "dtype"): ("numpy", "dtype"),
    ("collections", "defaultdict"): ("collections", "defaultdict"),
    ("collections", "OrderedDict"): ("collections", "OrderedDict"),
    ("_codecs", "encode"): (__name__, "_latin1"),  # how protocol 2 writes bytes
    ("pandas._libs.internals", "_unpickle_block"): ("pandas._libs.internals", "_unpickle_block"),
}
_ADMITTED |= {
    (module, name): ("builtins", name)
    for module in ("builtins", "__builtin__")
    for name in ("bytearray", "dict", "list", "set", "slice")
}
_ADMITTED |= {
    (module, name): ("pandas", name)
    for name, home in _PANDAS_HOMES.items()
    for module in ("pandas", home)
}
_ADMITTED |= {
    (module, name): ("numpy._core.multiarray", name)
    for module in _NUMPY_ARRAYS
    for name in ("_reconstruct", "scalar")
}
_ADMITTED |= {
    (module, "_frombuffer"): ("numpy._core.numeric", "_frombuffer") for module in _NUMPY_NUMERIC
}
_ADMITTED |= {
    (f"pandas.core.internals{part}", name): ("pandas.core.internals.managers", name)
    for part in ("", ".managers")
    for name in ("BlockManager", "SingleBlockManager")
}
_ADMITTED |= {
    (module, name): ("pandas.core.indexes.base", name)
    for module in _PANDAS_INDEXES
    for name in ("_new_Index", "Index")
}
_ADMITTED |= {
    ("pandas.core.indexes.numeric", name): ("pandas.core.indexes.base", "Index")
    for name in _OLD_NUMBER_INDEXES
}


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding!r}")
    return text.encode("latin1")


class _Refused(Exception):
    """The pickle names something that is no constructor of data."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise _Refused(f"{module}.{name}")
        home, attribute = _ADMITTED[module, name]
        return getattr(importlib.import_module(home), attribute)


def load_pickle(path: pathlib.Path) -> Any:
    """The value pickled in a file.

    Raises:
      UserError: no such file, a file cut short, a pickle that names anything but data.
    """
    try:
        with open(path, "rb") as file:
            return _Unpickler(file).load()
    except FileNotFoundError:
        raise UserError(f"expected a pickle at {path}, found no file; see the reader") from None
    except _Refused as error:
        raise UserError(
            f"expected numbers, NumPy arrays and pandas frames alone in {path}, found a call of "
            f"{error}; nothing of it was run: use the file as published"
        ) from None
    except Exception as error:  # a broken pickle raises nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"expected a whole pickle at {path}, found one that does not load ({reason}); "
            "download it again"
        ) from error
