"""Writes the vectors a run has learnt, for instance of items as GenSAR's collaborative input."""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Any

import numpy as np

from core import checksums
from core.errors import UserError
from core.files import read_json, save_npy, write_atomically
from core.workdir import check_out, commit_id
from experiments.restored import Restored


def check_place(out: str) -> None:
    """Refuses an .npy file whose description would take the place of another file.

    Raises:
      UserError: `out` is no place for an .npy file, or the .json beside it describes no vectors.
    """
    check_out(out, "--out", ".npy")
    stem = out.removesuffix(".npy")
    path = stem + ".json"
    if not os.path.lexists(path):
        return
    description: dict[str, Any] = {}
    with contextlib.suppress(UserError):
        description = read_json(path, "a description of vectors", "")
    if description.get("ids_file") != _ids_file(stem):
        raise UserError(
            f"expected {path} to be free for the vectors' description, found another file; pass "
            "another --out"
        )


def _ids_file(stem: str) -> str:
    return os.path.basename(stem) + ".ids.txt"


def content_hash(rows: np.ndarray, names: list[str]) -> str:
    """Returns 16 hex digits over the vectors' bytes and the names, one a line."""
    digest = hashlib.sha256(np.ascontiguousarray(rows).data)
    digest.update("".join(f"{name}\n" for name in names).encode())
    return digest.hexdigest()[:16]


def export(restored: Restored, table: str, out: str) -> dict[str, Any]:
    """Writes the three files, the JSON last; returns what it holds.

    Raises:
      UserError: as `check_place`, or the method has no such table.
    """
    check_place(out)
    rows, names = restored.experiment.vectors(restored.tables, table)
    stem = out.removesuffix(".npy")
    save_npy(out, rows)
    write_atomically(stem + ".ids.txt", "".join(f"{name}\n" for name in names))
    folder = os.path.dirname(os.path.abspath(out))
    description = {
        "hash": content_hash(rows, names),
        "table": table,
        "shape": list(rows.shape),
        "ids_file": _ids_file(stem),
        "workdir": restored.workdir.path,
        "method": restored.experiment.config.method,
        "stage": restored.stage,
        "step": restored.step,
        "commit": commit_id(),
        "data": restored.data.label,
        "data_hash": restored.data.log.hash,
        "training_split": restored.data.training_split,
        "files": checksums.describe(folder, [os.path.basename(out), _ids_file(stem)]),
    }
    checksums.write_sealed(stem + ".json", description)
    return description
