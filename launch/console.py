"""Runs the programs of this folder as subcommands of `lcrsr`.

    lcrsr train --config=lcr_ser_qilin

`lcrsr NAME` is `python -m launch.NAME`, also in a folder that has a `core` or `configs` of its own.
"""

from __future__ import annotations

import ast
import difflib
import os
import pkgutil
import runpy
import sys

_FOLDER = os.path.dirname(os.path.abspath(__file__))
# In the order of their use; others follow by name.
_FIRST = ("prepare_data", "train", "evaluate", "predict", "compare", "report", "ablate")


def programs() -> dict[str, str]:
    """Returns the programs by name with the first sentence of what each says of itself."""
    names = {module.name for module in pkgutil.iter_modules([_FOLDER])} - {"console"}
    ordered = [*(name for name in _FIRST if name in names), *sorted(names - {*_FIRST})]
    return {name: _first_sentence(name) for name in ordered}


def _first_sentence(name: str) -> str:
    """Reads it without importing the program, which takes seconds."""
    with open(os.path.join(_FOLDER, f"{name}.py"), encoding="utf-8") as file:
        text = ast.get_docstring(ast.parse(file.read())) or ""
    return " ".join(text.split("\n\n")[0].split())


def _help() -> str:
    listed = programs()
    width = max(map(len, listed))
    lines = [f"  {name.replace('_', '-'):{width}}  {text}" for name, text in listed.items()]
    return "\n".join(
        [
            "Trains and evaluates models for joint search and recommendation.",
            "",
            "    lcrsr train --config=lcr_ser_qilin",
            "",
            "Programs (lcrsr NAME --help shows the flags of one):",
            *lines,
        ]
    )


def _refuse(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Runs the program that the first word names, with the other words as its flags."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return
    if words[0] == "--version":
        from lcrsr import __version__

        print(f"lcrsr {__version__}")
        return
    name = words[0].replace("-", "_")
    known = programs()
    if name not in known:
        like = difflib.get_close_matches(name, known, 1)
        meant = f" did you mean {like[0].replace('_', '-')}?" if like else ""
        _refuse(f"expected a program, found {words[0][:100]!r};{meant} lcrsr --help lists them")
    sys.argv = [f"lcrsr {words[0]}", *words[1:]]
    runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)
