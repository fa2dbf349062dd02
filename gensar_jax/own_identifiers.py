"""Finds the identifiers of a GenSAR run: a table that its config names, or one that it trains
itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterator

from ml_collections import config_dict

from core import vectors
from core.errors import UserError
from core.workdir import open_workdir
from gensar_jax.identifier_experiment import IdentifierExperiment
from gensar_jax.identifiers import IdentifierTable, load_table
from input_pipelines.dataset import Dataset

_LOG = logging.getLogger(__name__)
# Not the config's own: how often a run writes does not make other identifiers.
_IDENTIFIER_LOOP = {"checkpoint_every": 500, "log_every": 20}


def given_table(config: config_dict.ConfigDict, data: Dataset) -> IdentifierTable | None:
    """Returns the table of `config.identifiers`, or the one that was trained with its settings.

    Raises:
      UserError: as `load_table`, or identifiers of another split.
    """
    if config.identifiers:
        table = load_table(config.identifiers, data_hash=data.log.hash)
        data.check_training_split(table.training_split, f"identifiers in {config.identifiers}")
        return table
    folder, _ = own_identifiers(config, data)
    if not os.path.exists(os.path.join(folder, "results.json")):
        return None
    with _kept_in_cache(folder):
        return load_table(folder, data_hash=data.log.hash, remedy=_again(folder))


def _again(folder: str) -> str:
    return f"remove {folder}, and its identifiers are trained again"


@contextlib.contextmanager
def _kept_in_cache(folder: str) -> Iterator[None]:
    """Says of a folder in the cache what to do about it: no --workdir has led there."""
    try:
        yield
    except UserError as error:
        text = re.sub(r"train (again )?in another --workdir", _again(folder), str(error))
        text = text.replace("another --workdir", "another --config.cache_dir")
        raise type(error)(text) from error


def train_table(config: config_dict.ConfigDict, data: Dataset) -> IdentifierTable:
    """Trains identifiers with the config's own settings, or returns the ones it has.

    They are kept beside the prepared data, so that ablations share them.

    Raises:
      UserError: as `given_table`, or as `IdentifierExperiment`.
    """
    if (table := given_table(config, data)) is not None:
        return table
    folder, own = own_identifiers(config, data)
    _LOG.info("no config.identifiers given: training identifiers in %s", folder)
    with _kept_in_cache(folder):
        IdentifierExperiment(own, data).run(open_workdir(folder, own.to_dict(), data.log.hash))
        return load_table(folder, data_hash=data.log.hash, remedy=_again(folder))


def own_identifiers(
    config: config_dict.ConfigDict, data: Dataset
) -> tuple[str, config_dict.ConfigDict]:
    """Returns where identifiers of these settings are kept, and the config of their training."""
    own = config_dict.ConfigDict(
        {
            "method": "gensar_identifiers",
            "dataset": config.dataset,
            "seed": config.seed,
            "data": {"segmenter": config.data.segmenter, "split": config.data.split},
            "vectors": config.identifier_vectors.to_dict(),
            "model": config.identifier_model.to_dict(),
            "train": config.identifier_train.to_dict(),
            "eval": {"selection": "explained/catalogue"},
            "loop": _IDENTIFIER_LOOP,
        }
    )
    content = own.to_json_best_effort(sort_keys=True)
    for source in (own.vectors.semantic, own.vectors.collaborative):
        content += vectors.source_hash(source)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return data.beside(f"identifiers-{digest}"), own
