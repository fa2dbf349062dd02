"""Records what a run of GenSAR is trained with beside its checkpoints: inputs that no log's hash
covers.
"""

from __future__ import annotations

import json
import os

from ml_collections import config_dict

from core.errors import UserError
from core.files import read_json, write_atomically
from core.workdir import Workdir, is_writer
from gensar_jax import identifier_network
from gensar_jax.examples import GenSARExamples
from gensar_jax.identifiers import IdentifierTable, is_saved, save_table

_FILE, _VOCABULARY, _IDENTIFIERS = "inputs.json", "vocabulary", "identifiers"
# Only read in training.
_PSEUDO_QUERIES = "pseudo-queries"
_MEND = "restore the file, or train in another --workdir"
_BRING_BACK = {
    "item texts": "the data with those texts",
    "identifier table": "the table at config.identifiers",
    "vocabulary": f"the pieces that are kept in {_VOCABULARY}/ of that workdir",
    _PSEUDO_QUERIES: "the file at config.prompts.pseudo_queries",
}


def _hashes(examples: GenSARExamples, table_hash: str) -> dict[str, str]:
    """Returns the inputs' hashes by name; what others follow from comes first."""
    return {
        "item texts": examples.texts_hash,
        "identifier table": table_hash,
        "vocabulary": examples.vocabulary.digest[:16],
        _PSEUDO_QUERIES: examples.pseudo_queries_hash,
    }


def check(
    workdir: Workdir, examples: GenSARExamples, table_hash: str, *, training: bool = False
) -> None:
    """Holds a run that is opened again to what it was trained with.

    A run that has not trained yet may have no record: it was stopped before it wrote one.

    Args:
      table_hash: of the identifier table that `examples` were made with.
      training: whether it goes on training, so that pseudo-queries count.

    Raises:
      UserError: texts, identifiers, vocabulary or pseudo-queries are others; or the run has trained
        and its record of these is missing.
    """
    path = os.path.join(workdir.path, _FILE)
    if not os.path.exists(path):
        if workdir.has_trained():
            raise UserError(
                f"expected the record of what the run in {workdir.path} was trained with as "
                f"{_FILE}, found none; {_MEND}"
            )
        return
    before = read_json(path, "the record of what a run was trained with", _MEND)
    for name, own_hash in _hashes(examples, table_hash).items():
        if not isinstance(before.get(name), str):
            raise UserError(f"expected the hash of the {name} in {path}, found none; {_MEND}")
        if before[name] != own_hash and (training or name != _PSEUDO_QUERIES):
            raise UserError(
                f"expected the {name} {before[name]} that the run in {workdir.path} was trained "
                f"with, found {own_hash}; bring {_BRING_BACK[name]} back, or train in another "
                "--workdir"
            )


def record(
    workdir: Workdir,
    examples: GenSARExamples,
    table: IdentifierTable,
    folder: str | None = None,
) -> None:
    """Writes the record of a new run; holds one that continues to its own, as `check`.

    Args:
      folder: of the table, with the network that learnt it where there is one; None has none.
    """
    check(workdir, examples, table.hash, training=True)
    path = workdir.file(_FILE)
    if is_writer() and not os.path.exists(path):
        examples.vocabulary.save(workdir.file(_VOCABULARY))
        own = workdir.file(_IDENTIFIERS, "")
        if folder is not None and identifier_network.is_saved(folder):
            identifier_network.copy(folder, own)
        save_table(own, table, {})
        write_atomically(path, json.dumps(_hashes(examples, table.hash), indent=2) + "\n")


def reopened(config: config_dict.ConfigDict, folder: str) -> config_dict.ConfigDict:
    """Points the config of a run that is opened again to the identifiers that it trained.

    So its cache need not be there. A run whose config names a table is held to that table.
    """
    own = os.path.join(os.path.abspath(folder), _IDENTIFIERS)
    if config.identifiers or not is_saved(own):
        return config
    config = config_dict.ConfigDict(config.to_dict())
    config.identifiers = own
    return config
