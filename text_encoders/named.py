"""Opens the text encoder that a setting names: MiniLM, a folder, or a sentence-transformers model.

Axis letters: E texts, V items, D width.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from core.errors import UserError, reason_of
from core.vectors import check_texts, unit_rows
from text_encoders import bert_checkpoints, encoder
from text_encoders.sentence_settings import EncoderSettings


class Encoder(Protocol):
    """Encodes texts as rows of length 1; a text without any sign that is no space has a row of 0.

    Attributes:
      source: the checkpoint's folder, or the name of a model.
    """

    source: str

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [E, D] of queries."""
        ...

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [E, D] of what is to be found."""
        ...


OpenEncoder = Callable[..., Encoder]


def open_named(name: str, settings: EncoderSettings, *, key: str) -> Encoder:
    """Opens MiniLM, the folder of a BERT, RoBERTa or XLM-R, or whatever sentence-transformers has.

    Args:
      name: `encoder.MINILM`, a folder, or a model's name for the package sentence-transformers,
        which also reads folders of other networks.
      settings: what the checkpoint's files may leave open.
      key: of the config, which names the encoder; for messages.

    Raises:
      UserError: as `encoder.open_bert` and `PackageEncoder`.
    """
    folder = pathlib.Path(name)
    # Old folders have the network apart.
    networks = (folder, folder / "0_Transformer")
    if name == encoder.MINILM or any(map(bert_checkpoints.is_bert, networks)):
        return encoder.open_bert(name, settings, key=key)
    return PackageEncoder(name, settings, key=key)


def item_vectors(
    texts: Sequence[str], name: str, *, key: str, open_one: OpenEncoder = open_named
) -> np.ndarray:
    """Returns the vectors float32 [V, D] of items' texts, by what the encoder's own files say.

    Args:
      open_one: as `open_named`.

    Raises:
      UserError: as `open_one`, or no item has text.
    """
    check_texts(texts)
    return open_one(name, EncoderSettings(), key=key).documents(texts)


class PackageEncoder:
    """Encodes texts with the package sentence-transformers.

    Args:
      name: of a model, or its folder.
      settings: of which prefixes alone are free.
      key: as of `open_named`.

    Raises:
      UserError: the package is absent, the model cannot be loaded, or a setting that only encoders
        of this library have.
    """

    def __init__(self, name: str, settings: EncoderSettings, *, key: str):
        self.source = name
        section = key.rpartition(".")[0]
        for own, empty in (("pooling", ""), ("dimensions", 0)):
            if (value := getattr(settings, own)) != empty:
                raise UserError(
                    f"expected {section}.{own} of {empty!r} for {key}={name}, which is no folder "
                    f"of an encoder that is read here, found {value!r}; pass a folder, or leave "
                    "it out"
                )
        self._settings, self._model = settings, _load(name, key)

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(texts, self._settings.query_prefix)

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(texts, self._settings.document_prefix)

    def _encode(self, texts: Sequence[str], prefix: str) -> np.ndarray:
        asked = [prefix + text for text in texts]
        vectors = np.asarray(self._model.encode(asked, show_progress_bar=False), np.float32)
        vectors[[not text.strip() for text in texts]] = 0.0
        return unit_rows(vectors)


def _load(name: str, key: str) -> Any:
    try:
        import sentence_transformers
    except ImportError:
        raise UserError(
            f"expected the package sentence-transformers for vectors from {key}={name}, found "
            f"none; install it, pass a folder of a BERT or XLM-R, or set {key} to 'tfidf_svd' or "
            f"{encoder.MINILM!r}"
        ) from None
    try:
        return sentence_transformers.SentenceTransformer(name)
    except Exception as error:  # missing files, no network, an unknown architecture
        reason = reason_of(error)
        raise UserError(
            f"expected a sentence-transformers model at {key}={name}, found none that "
            f"loads ({reason}); pass another name or folder"
        ) from error
