"""Records what a run of CRS is trained with beside its checkpoints: ids, tokenizer, notes on
stages.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import config_dict

from core import checksums
from core.errors import UserError
from core.files import read_json, write_atomically
from core.workdir import Workdir, is_writer
from crs_jax import decoder_checkpoints, semantic_ids
from crs_jax.examples import CRSExamples

# The tokenizer's own, and the rows of text that a checkpoint's embedding has beyond its tokens.
_TOKENIZER, _ROWS = "tokenizer.json", "text_rows.json"
_INPUTS = "inputs.json"
_MEND = "restore the file, or train again in another --workdir"


def reopened(
    config: config_dict.ConfigDict, folder: str, *, training: bool
) -> config_dict.ConfigDict:
    """Points the config of a run that is opened again to the ids and tokenizer that it keeps.

    So it is read with its own ids and tokenizer, even if its checkpoint and cache are gone. A run
    that was stopped before it had written them takes them from where its config says.

    Args:
      folder: of the run; without one the config stays as it is.
      training: whether the run goes on training; else what it distils from need not be there.
    """
    config = config_dict.ConfigDict(config.to_dict())
    if not training and "distill" in config:
        config.distill.teacher = ""
    folder = os.path.abspath(folder)
    if os.path.exists(os.path.join(folder, semantic_ids.LIST)):
        config.semantic_ids.extend = folder
    tokenizer, rows = (os.path.join(folder, name) for name in (_TOKENIZER, _ROWS))
    if os.path.exists(tokenizer):
        config.vocabulary.tokenizer = tokenizer
    if os.path.exists(rows):
        config.vocabulary.text_rows = read_json(rows, "a run's rows of text", _MEND, kind=int)
    return config


def text_rows(config: config_dict.ConfigDict) -> int | None:
    """Returns the rows of text of a run's embedding; None for as many as its tokenizer has tokens.

    Raises:
      UserError: as `decoder_checkpoints.checkpoint_rows`.
    """
    rows = config.vocabulary.get("text_rows")  # only `reopened` sets it
    if rows is not None or not config.model.checkpoint:
        return rows
    return decoder_checkpoints.checkpoint_rows(config.model.checkpoint)


def check_ids(examples: CRSExamples, tables: Mapping[str, Any]) -> None:
    """Raises UserError where a stage was trained with other ids than the examples have."""
    _check(examples, bytes(np.asarray(tables["identifiers"])).hex())


def _check(examples: CRSExamples, trained: str) -> None:
    if trained != examples.ids.hash:
        raise UserError(
            f"expected the semantic ids {trained} that this run was trained with, found "
            f"{examples.ids.hash}; bring its config.cache_dir back, or train in another --workdir"
        )


def record(workdir: Workdir, examples: CRSExamples) -> None:
    """Writes what a new run is trained with; holds one that continues to what it has.

    Raises:
      UserError: ids, tokenizer, training searches, or the items' texts or facts are others; or the
        run has trained and its record of these is missing.
    """
    _hold_inputs(workdir, examples.inputs_hash())
    if os.path.exists(workdir.file(semantic_ids.FILE)):
        _check(examples, semantic_ids.load(workdir.path).hash)
    if is_writer() and not os.path.exists(workdir.file(semantic_ids.LIST)):
        examples.save_ids(workdir.path)
    rows = workdir.file(_ROWS)
    if is_writer() and not os.path.exists(rows):
        write_atomically(rows, f"{examples.vocabulary.text_rows}\n")
    text, path = examples.vocabulary.to_json(), workdir.file(_TOKENIZER)
    if not os.path.exists(path):
        if is_writer():
            write_atomically(path, text)
        return
    checksums.check_readable(path)
    with open(path, "rb") as file:
        if file.read() != text.encode():
            raise UserError(
                f"expected the tokenizer that this run has in {path}, found another; bring its "
                "config.cache_dir back, or train in another --workdir"
            )


def _hold_inputs(workdir: Workdir, digest: str) -> None:
    path = workdir.file(_INPUTS)
    if not os.path.exists(path):
        if workdir.has_trained():
            raise UserError(
                f"expected the record of the items that the run in {workdir.path} was trained with "
                f"as {_INPUTS}, found none; {_MEND}"
            )
        if is_writer():
            write_atomically(path, json.dumps({"items": digest}) + "\n")
        return
    before = read_json(path, "the record of a run's items", _MEND).get("items")
    if before != digest:
        raise UserError(
            f"expected the training searches, items' texts and facts {before} that the run in "
            f"{workdir.path} was trained with, found {digest}; bring the data with these back, or "
            "train in another --workdir"
        )


def note(
    workdir: Workdir, subsets: Mapping[str, dict[str, Any]], early: Mapping[str, str | None]
) -> None:
    """Adds to the row of each stage what it was trained on, and why its loop has ended early.

    Args:
      subsets: `Subsets.hashes`.
      early: by how the names of a loop's stages begin; the last that fits counts.
    """

    def noted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | note_of(row["stage"]) for row in rows]

    def note_of(stage: str) -> dict[str, Any]:
        ended = [reason for start, reason in early.items() if stage.startswith(start)][-1]
        return {"subset": subsets.get(stage), "ended_early": ended}

    workdir.change_results(noted)
