"""Encodes texts with Qwen3-Embedding (arXiv 2506.05176), the decoder of CRS without its head.

A text's vector is the state after the final norm at its last token, which the tokenizer adds, cut
to its first dimensions where that is asked for, and brought to length 1. Axis letters: B texts, L
tokens, D width.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from core import tensor_files
from core.errors import UserError
from crs_jax import decoder_checkpoints
from crs_jax.decoder import Decoder
from crs_jax.decoder_config import DecoderConfig
from text_encoders import named
from text_encoders.encoder import TextEncoder, check_dimensions
from text_encoders.running import pooled
from text_encoders.sentence_settings import LAST, EncoderSettings, read_sentence_settings
from text_encoders.tokenizing import TextTokenizer

MODEL = "qwen3"
END = "<|endoftext|>"
# Texts of its examples.
_MOST_TOKENS = 8192


def open_encoder(name: str, settings: EncoderSettings, *, key: str) -> named.Encoder:
    """Opens the folder of a Qwen3-Embedding, or what `text_encoders.named.open_named` opens.

    Args:
      name, settings, key: as of `open_named`.

    Raises:
      UserError: as `open_qwen3` and `open_named`.
    """
    folder = pathlib.Path(name)
    if folder.is_dir() and decoder_checkpoints.read_about(folder)[1].get("model_type") == MODEL:
        return open_qwen3(folder, settings, key=key)
    return named.open_named(name, settings, key=key)


def open_qwen3(folder: pathlib.Path, settings: EncoderSettings, *, key: str) -> TextEncoder:
    """Opens a checkpoint of Qwen3-Embedding, whose tensors may be named with or without 'model.'.

    Args:
      folder: with config.json, safetensors in one file or shards, and tokenizer.json.
      settings, key: as of `text_encoders.named.open_named`.

    Raises:
      UserError: a file is missing or of another network, names the first tensor that differs; the
        pooling is another than of the last token; or as `read_sentence_settings` and
        `TextTokenizer`.
    """
    said = read_sentence_settings(folder, settings, key=key.rpartition(".")[0])
    if said.pooling != LAST:
        raise UserError(
            f"expected a pooling of the {LAST} token for a Qwen3 in {folder}, found "
            f"{said.pooling!r}; set {key.rpartition('.')[0]}.pooling to {LAST!r}"
        )
    config = _config(said.folder)
    tokenizer = TextTokenizer(
        said.folder,
        rows=config.text_rows,
        most_tokens=min(_MOST_TOKENS, said.most_tokens or _MOST_TOKENS),
        first=(),
        last=(END,),
        adds_last=True,
        lowercase=said.lowercase,
    )
    check_dimensions(settings.dimensions, config.width, key=key)
    params = decoder_checkpoints.from_hugging_face(
        said.folder, config, jax.random.key(0), reads_output=False
    )
    network = Decoder(config)

    @functools.partial(jax.jit)
    def encode(params: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("float32"):
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
            segments = (positions < lengths[:, None]).astype(jnp.int32)
            rows = (part[:, None] for part in (tokens, positions, segments))
            states, _ = network.apply({"params": params}, *rows)
            return pooled(states[:, 0], lengths, LAST)

    return TextEncoder(
        said, tokenizer, functools.partial(encode, params), dimensions=settings.dimensions
    )


def _config(folder: pathlib.Path) -> DecoderConfig:
    about, values = decoder_checkpoints.read_about(folder)
    sizes: dict[str, Any] = tensor_files.sizes_of(values, decoder_checkpoints.SIZES, about)
    try:
        return DecoderConfig(
            # The network has rows of ids; an encoder never reads one.
            new_rows=1,
            rope_theta=values.get("rope_theta", 1e6),
            norm_epsilon=values.get("rms_norm_eps", 1e-6),
            **sizes,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{error} in {about}; download the whole folder again") from None
