"""Programs: flags and one call each. `lcrsr NAME` or `python -m launch.NAME` runs one."""

import importlib.util
import os
import sys

_HERE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
# The library's packages with names that a user's own folder is likely to have.
_SIBLINGS = ("core", "configs", "experiments", "input_pipelines", "serving", "studies")


def _check_siblings() -> None:
    """Refuses packages of the same names that do not belong to the library.

    `python -m` looks for them in the current folder first. The check comes before anything of them
    is imported, so it uses none of the library's own functions.
    """
    for name in _SIBLINGS:
        spec = importlib.util.find_spec(name)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        if [os.path.realpath(folder) for folder in folders] == [os.path.join(_HERE, name)]:
            continue
        place = next(iter(folders), spec.origin if spec else "none")
        line = (
            f"expected the library's own package {name} beside {os.path.join(_HERE, 'launch')}, "
            f"found {place}; run lcrsr NAME instead of python -m launch.NAME, or do so in another "
            "folder"
        )
        # How the interpreter calls itself while `python -m` looks for the program.
        if sys.argv[:1] == ["-m"]:
            print(f"error: {line}", file=sys.stderr)
            sys.exit(2)
        raise ImportError(line)


_check_siblings()
