"""Finds the identifiers of a GenSAR run: a table that its config names, or one that it trains
itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import re
from collections.abc import Iterator

import numpy as np
from ml_collections import config_dict

from core import distributed, vectors
from core.errors import UserError
from core.mirrors import copied_run
from core.workdir import open_workdir
from gensar_jax import identifier_methods
from gensar_jax.identifiers import IdentifierTable, load_table
from gensar_jax.rqvae import SOURCES
from input_pipelines.dataset import Dataset

_LOG = logging.getLogger(__name__)
# Not the config's own: what is looked at and how often a run writes make no other identifiers.
_NOT_OWN = {
    "eval": {"selection": "explained/catalogue"},
    "loop": {"checkpoint_every": 500, "log_every": 20},
}


def given_table(config: config_dict.ConfigDict, data: Dataset) -> IdentifierTable | None:
    """Returns the table of `config.identifiers`, or the one that was trained with its settings.

    Raises:
      UserError: as `load_table`, or identifiers of another method or split.
    """
    if config.identifiers:
        table = load_table(table_folder(config), data_hash=data.log.hash)
        if table.method != (wanted := identifier_methods.method_of(config)):
            raise UserError(
                f"expected identifiers of {wanted} in {config.identifiers}, found those of "
                f"{table.method}; pass the folder that configs/{wanted}.py leaves, or none"
            )
        data.check_training_split(table.training_split, f"identifiers in {config.identifiers}")
        return table
    folder, _ = own_identifiers(config, data)
    if not _seen_by_all(folder, "results.json"):
        return None
    with _kept_in_cache(folder):
        return load_table(folder, data_hash=data.log.hash, remedy=_again(folder))


def table_folder(config: config_dict.ConfigDict) -> str:
    """Returns the folder of this machine with the table of `config.identifiers`; '' names none."""
    return copied_run(config.identifiers, "config.identifiers")


def _seen_by_all(folder: str, name: str) -> bool:
    """Tells whether process 0 finds a file in a folder of the cache.

    Raises:
      UserError: it does, and another process does not.
    """
    seen = distributed.of_all(os.path.exists(os.path.join(folder, name)))
    if seen[0] and not all(seen):
        raise UserError(
            f"expected all {len(seen)} processes to share the identifiers in {folder}, found "
            f"process {seen.index(False)} without them; pass a --config.cache_dir that all hosts "
            "share, or --config.identifiers"
        )
    return seen[0]


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
      UserError: as `given_table`, or as the experiment that makes the identifiers; or processes do
        not share the cache.
    """
    if (table := given_table(config, data)) is not None:
        return table
    folder, own = own_identifiers(config, data)
    _LOG.info("no config.identifiers given: training identifiers in %s", folder)
    with _kept_in_cache(folder):
        maker = identifier_methods.own_experiment(own, data)
        with open_workdir(folder, own.to_dict(), data.log.hash) as workdir:
            _seen_by_all(folder, "config.json")
            maker.run(workdir)
        data.share()  # the run that needs them goes on for long, and other runs need them too
        return load_table(folder, data_hash=data.log.hash, remedy=_again(folder))


def own_identifiers(
    config: config_dict.ConfigDict, data: Dataset
) -> tuple[str, config_dict.ConfigDict]:
    """Returns where identifiers of these settings are kept, and the config of their training."""
    maker = identifier_methods.experiment_class(config)
    sections = {name: config[f"identifier_{name}"].to_dict() for name in maker.own_sections}
    sections |= {name: config[name].to_dict() for name in maker.shared_sections}
    own = config_dict.ConfigDict(
        {
            "method": identifier_methods.method_of(config),
            "dataset": config.dataset,
            "seed": config.seed,
            "data": {"segmenter": config.data.segmenter, "split": config.data.split},
            **sections,
            **_NOT_OWN,
        }
    )
    content = own.to_json_best_effort(sort_keys=True)
    for source in _sources(own):
        content += vectors.source_hash(source)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return data.beside(f"identifiers-{digest}"), own


def _sources(own: config_dict.ConfigDict) -> list[str]:
    """Returns the files and folders whose contents make the identifiers too."""
    sections = [own.get(name, {}) for name in ("vectors", "vocabulary", "prompts", "model")]
    keys = ("semantic", "collaborative", "pieces_model", "pseudo_queries", "checkpoint")
    return [section[key] for section in sections for key in keys if section.get(key)]


def check_own(config: config_dict.ConfigDict, data: Dataset) -> None:
    """Raises UserError where identifiers cannot be made from the data; names keys as `config`."""
    sections = "|".join(identifier_methods.experiment_class(config).own_sections)
    try:
        identifier_methods.own_experiment(own_identifiers(config, data)[1], data).check_data()
    except UserError as error:
        text = re.sub(rf"config\.({sections})\b", r"config.identifier_\1", str(error))
        raise UserError(text) from error


def stand_in(data: Dataset) -> IdentifierTable:
    """Returns two codes an item that mean nothing, to check all else that a run reads with them."""
    items = data.log.num_items
    codes = math.isqrt(items) + 1
    pairs = np.stack(np.divmod(np.arange(items), codes), 1).astype(np.int32)
    own = dict.fromkeys(SOURCES, pairs)
    return IdentifierTable(own, 2, codes, data.log.hash, data.training_split)
