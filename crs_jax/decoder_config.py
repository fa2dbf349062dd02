"""Sizes of Qwen3 (arXiv 2505.09388, Table 1), and a tiny one for tests and the sample."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax.numpy as jnp

from core.errors import UserError
from core.settings import Count, CountOrNone, Positive, Settings, Weight, one_of

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(Settings):
    """Holds the shapes of a network; the defaults are Qwen3-0.6B's.

    Attributes:
      text_rows: rows of the vocabulary that a checkpoint has.
      new_rows: further rows, of the id tokens.
      width, layers, heads, kv_heads, head_dim, mlp_dim: D, layers, H, K, E, F; each of the K key
        and value heads serves H / K query heads.
      rope_theta: base of the rotary positions.
      norm_epsilon: of the root mean squares.
      lora_rank: rank of LoRA's addition to every kernel of a layer; 0 for none.
      lora_alpha: the addition is scaled by lora_alpha / lora_rank.
      dtype: of the computation, 'float32' or 'bfloat16'; parameters, norms, softmax and logits
        stay float32.
      remat: compute a layer's activations again in the backward pass instead of keeping them.
    """

    text_rows: int
    new_rows: int
    width: Count = 1024
    layers: CountOrNone = 28
    heads: Count = 16
    kv_heads: Count = 8
    head_dim: Count = 128
    mlp_dim: Count = 3072
    rope_theta: Positive = 1e6
    norm_epsilon: Weight = 1e-6
    lora_rank: CountOrNone = 0
    lora_alpha: Weight = 16.0
    dtype: Annotated[str, one_of(*_DTYPES)] = "float32"
    remat: bool = False

    def check(self) -> None:
        self.check_divisible("heads", by="kv_heads")
        if self.head_dim % 2:
            raise ValueError(f"expected an even head_dim, found {self.head_dim}")

    @property
    def compute_dtype(self):
        """Returns the dtype of activations."""
        return _DTYPES[self.dtype]


SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "width": 64,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "mlp_dim": 192,
    },
    "0.6b": {},
    "1.7b": {"width": 2048, "mlp_dim": 6144},
    "4b": {"width": 2560, "layers": 36, "heads": 32, "mlp_dim": 9728},
}
# Rows of the embedding in the published checkpoints of all three.
QWEN3_ROWS = 151_936


def of_size(size: str, text_rows: int, new_rows: int, **settings) -> DecoderConfig:
    """Returns the configuration called `size`, with any of its attributes set otherwise.

    Raises:
      UserError: no size has that name.
    """
    if size not in SIZES:
        raise UserError(
            f"expected a decoder size of {', '.join(SIZES)}, found {size!r}; correct the name"
        )
    return DecoderConfig(text_rows=text_rows, new_rows=new_rows, **{**SIZES[size], **settings})
