"""Sizes of T5."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax.numpy as jnp

from core.errors import UserError
from core.settings import Count, CountOrNone, Rate, Rule, Settings, one_of

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_ACTIVATIONS = (("relu",), ("gelu", "linear"))
_ACTIVATION = Rule(f"in {_ACTIVATIONS}", lambda names: tuple(names) in _ACTIVATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(Settings):
    """Shapes of a network; names and defaults (t5-small, version 1.0) are T5X's.

    Attributes:
      vocab_size: W, rows of the embedding.
      emb_dim, num_heads, head_dim, mlp_dim: D, H, E, F.
      num_encoder_layers, num_decoder_layers: layers.
      mlp_activations: ('relu',) in version 1.0; ('gelu', 'linear') is 1.1's gated unit, with the
        tanh form of GELU.
      logits_via_embedding: True in 1.0: the output layer is the embedding, its inputs scaled by
        D^-1/2. False in 1.1: a kernel of its own.
      dropout_rate: in training only.
      num_buckets, max_distance: of the relative positions.
      dtype: of the computation, 'float32' or 'bfloat16'; parameters, softmax and logits stay
        float32.
    """

    vocab_size: Count
    emb_dim: Count = 512
    num_heads: Count = 8
    head_dim: Count = 64
    mlp_dim: Count = 2048
    num_encoder_layers: CountOrNone = 6
    num_decoder_layers: CountOrNone = 6
    mlp_activations: Annotated[tuple[str, ...], _ACTIVATION] = ("relu",)
    logits_via_embedding: bool = True
    dropout_rate: Rate = 0.1
    num_buckets: Count = 32
    max_distance: Count = 128
    dtype: Annotated[str, one_of(*_DTYPES)] = "float32"

    @property
    def compute_dtype(self):
        """Returns the dtype of activations."""
        return _DTYPES[self.dtype]


_V1_1: dict[str, object] = {"mlp_activations": ("gelu", "linear"), "logits_via_embedding": False}
_TINY: dict[str, object] = {
    "emb_dim": 16,
    "num_heads": 2,
    "head_dim": 8,
    "mlp_dim": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
}
# What two CPU cores train in hours (docs/decisions.md): 2 + 2 layers of width 128.
_CPU: dict[str, object] = {
    "emb_dim": 128,
    "num_heads": 4,
    "head_dim": 32,
    "mlp_dim": 512,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
}
# A quarter of its work, so that the embedded sample takes minutes.
_SAMPLE: dict[str, object] = {**_CPU, "emb_dim": 64, "head_dim": 16, "mlp_dim": 256}
# t5-small: Raffel et al., JMLR 2020, 3.1.2 and 3.7; version 1.1: T5X's t5_1_1/small.gin.
SIZES: dict[str, dict[str, object]] = {
    "tiny": _TINY,
    "tiny-v1_1": {**_TINY, **_V1_1},
    "sample": _SAMPLE,
    "cpu": _CPU,
    "t5-small": {},
    "t5-v1_1-small": {
        **_V1_1,
        "num_heads": 6,
        "mlp_dim": 1024,
        "num_encoder_layers": 8,
        "num_decoder_layers": 8,
    },
}


def of_size(size: str, vocab_size: int, **settings) -> T5Config:
    """Returns the configuration called `size`, with any of its attributes set otherwise.

    Raises:
      UserError: no size has that name.
    """
    if size not in SIZES:
        raise UserError(
            f"expected a T5 size of {', '.join(SIZES)}, found {size!r}; correct the name"
        )
    return T5Config(vocab_size=vocab_size, **{**SIZES[size], **settings})  # type: ignore[arg-type]
