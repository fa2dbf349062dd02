"""What a run of CRS keeps beside its checkpoints: ids, tokenizer, notes on its stages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from core.errors import UserError
from core.workdir import Workdir, is_writer, write_atomically
from crs_jax import semantic_ids
from launch.crs_examples import CRSExamples

_TOKENIZER = "tokenizer.json"


def check_ids(examples: CRSExamples, tables: Mapping[str, Any]) -> None:
    """Raises UserError where a stage was trained with other ids than the examples have."""
    _check(examples, bytes(np.asarray(tables["identifiers"])).hex())


def _check(examples: CRSExamples, trained: str) -> None:
    if trained != examples.ids.hash:
        raise UserError(
            f"expected the semantic ids {trained} that this run was trained with, found "
            f"{examples.ids.hash}; bring its config.cache_dir back, or train in another --workdir"
        )


def keep(workdir: Workdir, examples: CRSExamples) -> None:
    """Writes ids and tokenizer of a new run; holds one that continues to those that it has.

    Raises:
      UserError: these are others.
    """
    if os.path.exists(os.path.join(workdir.path, semantic_ids.FILE)):
        _check(examples, semantic_ids.load(workdir.path).hash)
    elif is_writer():
        examples.ids.save(workdir.path)
    text, path = examples.vocabulary.to_json(), workdir.file(_TOKENIZER)
    if not os.path.exists(path):
        if is_writer():
            write_atomically(path, text)
        return
    with open(path, encoding="utf-8") as file:
        if file.read() != text:
            raise UserError(
                f"expected the tokenizer that this run has in {path}, found another; bring its "
                "config.cache_dir back, or train in another --workdir"
            )


def note(
    workdir: Workdir, subsets: Mapping[str, dict[str, Any]], early: Mapping[str, str | None]
) -> None:
    """Adds to the row of each stage what it was trained on, and why its loop has ended early.

    Args:
      subsets: `Subsets.hashes`.
      early: by how the names of a loop's stages begin; the last that fits counts.
    """
    for row in workdir.read_results()["rows"]:
        stage = row["stage"]
        ended = [reason for start, reason in early.items() if stage.startswith(start)][-1]
        workdir.write_result_row(row | {"subset": subsets.get(stage), "ended_early": ended})
