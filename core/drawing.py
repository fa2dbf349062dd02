"""Draws pictures without a display, written whole or not at all."""

from __future__ import annotations

from typing import Any

from core.files import open_atomically


def pyplot() -> Any:
    """Returns matplotlib's pyplot, which draws into files alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as module

    return module


def save(figure: Any, path: str, dpi: int) -> None:
    """Writes a figure as PNG, whatever the name ends with, and closes it.

    Raises:
      core.files.WriteError: it cannot be written.
    """
    try:
        with open_atomically(path) as file:
            figure.savefig(file, format="png", dpi=dpi)
    finally:
        pyplot().close(figure)
