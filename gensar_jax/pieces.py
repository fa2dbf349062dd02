"""Reads the SentencePiece model of a run, or trains it on a catalogue's texts and queries."""

from __future__ import annotations

import hashlib
import os

import numpy as np
from ml_collections import config_dict

from core import checksums
from core.errors import UserError
from gensar_jax import phrasings, vocabulary
from input_pipelines import histories
from input_pipelines.dataset import Dataset
from input_pipelines.search_task import SearchExamples

# Copies of the templates among the texts that pieces are trained on: see `phrasings.texts`.
_TEMPLATE_COPIES = 50


def completed(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Takes the pieces of `config.model.checkpoint`, whose rows mean nothing with others.

    Raises:
      UserError: the checkpoint has none, and the config names none.
    """
    checkpoint = config.model.checkpoint
    if checkpoint and not config.vocabulary.pieces_model:
        path = os.path.join(checkpoint, "spiece.model")
        if not os.path.isfile(path):
            raise UserError(
                f"expected the checkpoint's SentencePiece model, found no {path}; put it "
                "there, or pass its path as --config.vocabulary.pieces_model"
            )
        config.vocabulary.pieces_model = path
    return config


def each_once(searches: SearchExamples) -> SearchExamples:
    """Returns each of the searches once, whatever the number of its clicks."""
    _, first = np.unique(searches.target_row, return_index=True)
    return searches.take(first)


def of_catalogue(
    settings: config_dict.ConfigDict, data: Dataset, searches: SearchExamples
) -> bytes:
    """Reads the SentencePiece model, or trains one on catalogue and training queries once.

    Args:
      settings: `config.vocabulary`.
      searches: the training searches, each once.

    Raises:
      UserError: as `vocabulary.read_pieces` or `vocabulary.train_pieces`.
    """
    if settings.pieces_model:
        return vocabulary.read_pieces(settings.pieces_model)
    queries = sorted({histories.query_text(data.log, row) for row in searches.target_row})
    texts = [*data.log.item_texts(), *queries, *phrasings.texts() * _TEMPLATE_COPIES]
    # The limit is part of the name: pieces made before it existed had not seen longer texts.
    content = [str(vocabulary.MOST_LINE_BYTES), *texts]
    digest = hashlib.sha256("\n".join(content).encode()).hexdigest()[:12]
    path = data.beside(f"pieces-{settings.pieces}-{digest}.model")
    if checksums.is_saved(path):
        checksums.verify(path, f"remove {path} and the file of its checksum")
        return vocabulary.read_pieces(path)
    model = vocabulary.train_pieces(texts, settings.pieces)
    checksums.save(path, model)
    return model


def digest(model: bytes) -> str:
    """Returns 16 hex digits over a SentencePiece model."""
    return hashlib.sha256(model).hexdigest()[:16]
