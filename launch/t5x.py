"""T5X's own programs, with this library's compatibility first.

    python -m launch.t5x train --gin_file=gensar_jax/t5x_bridge/gin/train.gin ...
    python -m launch.t5x infer --gin_file=gensar_jax/t5x_bridge/gin/infer.gin ...

All further arguments are T5X's (docs/gensar.md).
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Sequence

from core import cli, signals
from core.errors import CANNOT_RUN, UserError, line_of
from gensar_jax.t5x_bridge import installation

_PROGRAMS = ("train", "infer")
# Where the gin files' own paths begin.
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(arguments: Sequence[str]) -> None:
    """Runs `python -m t5x.PROGRAM` of the words PROGRAM, ARGUMENT, ...; --help prints the usage.

    Raises:
      UserError: no such program, or T5X is not installed.
    """
    if arguments and arguments[0] in cli.HELP:
        print((__doc__ or "").strip())
        return
    if not arguments or arguments[0] not in _PROGRAMS:
        raise UserError(
            f"expected {' or '.join(_PROGRAMS)}, found {' '.join(arguments[:1]) or 'nothing'}; "
            "name the program first"
        )
    installation.prepare()
    sys.argv = [f"t5x.{arguments[0]}", f"--gin_search_paths={_ROOT}", *arguments[1:]]
    # The gin files' `import __main__` must find it.
    runpy.run_module(f"t5x.{arguments[0]}", run_name="__main__", alter_sys=True)


def main() -> None:
    """Runs the command line's program, and ends the process."""
    try:
        run(sys.argv[1:])
        code = 0
    except UserError as error:
        print(line_of(error), file=sys.stderr)
        code = CANNOT_RUN
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        print("interrupted; the same command begins again", file=sys.stderr)
        code = signals.INTERRUPTED
    except BaseException:
        traceback.print_exc()
        code = 1
    # An endless dataset that is alive when the interpreter ends waits for Python for ever.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
