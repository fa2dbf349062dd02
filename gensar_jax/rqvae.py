"""Defines the joint RQ-VAE of GenSAR (RecSys 2025) 3.2: encoders, quantiser, decoders, Eq. 2 and
7-10.

With one source it is the ordinary RQ-VAE of L_m + L_n levels, for "Only Semantic" and "Only
Collaborative" of Figures 4 and 5. Axis letters as in `gensar_jax.quantizer`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.settings import (
    Count,
    CountOrNone,
    NamesOnce,
    Settings,
    Weight,
    Widths,
    at_least,
    one_of,
)
from gensar_jax import quantizer

SOURCES = ("semantic", "collaborative")
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RQVAEConfig(Settings):
    """Holds shape and loss of the model.

    Attributes:
      sources: of the vectors, in the order of [z_s; z_c]; one or both of SOURCES.
      widths: of the encoder's hidden layers; the decoder's are the same backwards.
      latent_width: d.
      shared_levels, specific_levels: L_m and L_n; at least one level in all.
      codes: K, of every codebook.
      alpha: weight of the commitment in Eq. 9.
      reduction: 'mean' (the released code) or 'sum' (Eq. 8 and 9 as printed).
      residual_gradient: 'every_level' or 'as_released'; see `quantizer.quantize_levels`.
      sinkhorn_epsilon, sinkhorn_iterations: of the last specific level in training; epsilon 0
        takes the nearest code there too.
    """

    sources: Annotated[tuple[Annotated[str, one_of(*SOURCES)], ...], NamesOnce(least=1)] = SOURCES
    widths: Widths = (512, 256, 128, 64)
    latent_width: Count = 32
    shared_levels: CountOrNone = 2
    specific_levels: CountOrNone = 2
    codes: Annotated[int, at_least(2)] = 256
    alpha: Weight = 0.25
    reduction: Annotated[str, one_of(*quantizer.REDUCTIONS)] = "mean"
    residual_gradient: Annotated[str, one_of(*quantizer.RESIDUAL_GRADIENTS)] = "every_level"
    sinkhorn_epsilon: Weight = 0.003
    sinkhorn_iterations: CountOrNone = 50

    def check(self) -> None:
        if self.levels < 1:
            raise ValueError(
                "expected at least one level of shared_levels and specific_levels, found 0 and 0"
            )

    @property
    def levels(self) -> int:
        return self.shared_levels + self.specific_levels

    @property
    def balance(self) -> quantizer.Balance | None:
        if self.sinkhorn_epsilon <= 0:
            return None
        return quantizer.Balance(self.sinkhorn_epsilon, self.sinkhorn_iterations)


class MLP(nn.Module):
    """Applies dense layers with a ReLU between two; Xavier-normal weights, as in the released
    code.
    """

    widths: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for number, width in enumerate(self.widths):
            x = nn.relu(x) if number else x
            x = nn.Dense(width, kernel_init=nn.initializers.xavier_normal())(x)
        return x


class Network(nn.Module):
    """Computes the encoders of Eq. 2 and the decoders of Eq. 7; `input_widths` in the order of
    sources.
    """

    config: RQVAEConfig
    input_widths: tuple[int, ...]

    def setup(self) -> None:
        hidden, latent = self.config.widths, self.config.latent_width
        self.encoders = [MLP((*hidden, latent)) for _ in self.input_widths]
        self.decoders = [MLP((*hidden[::-1], width)) for width in self.input_widths]

    def encode(self, vectors: Mapping[str, jax.Array]) -> jax.Array:
        """Returns [z_s; z_c], float32 [B, N*d], from each source's vectors [B, D]."""
        parts = zip(self.encoders, self.config.sources, strict=True)
        return jnp.concatenate([encoder(vectors[source]) for encoder, source in parts], axis=1)

    def decode(self, latents: jax.Array) -> dict[str, jax.Array]:
        """Reconstructs the vectors of each source from [B, N*d]."""
        parts = jnp.split(latents, len(self.decoders), axis=1)
        return {
            source: decoder(part)
            for source, decoder, part in zip(self.config.sources, self.decoders, parts, strict=True)
        }

    def __call__(self, vectors: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return self.decode(self.encode(vectors))


class Output(NamedTuple):
    """Loss of Eq. 10 with its two terms, all scalars, and the assignment behind it."""

    loss: jax.Array
    reconstruction: jax.Array
    rq: jax.Array
    levels: dict[str, quantizer.Levels]


def reconstruction_loss(
    vectors: Mapping[str, jax.Array], reconstructed: Mapping[str, jax.Array], reduction: str
) -> jax.Array:
    """Returns Eq. 8, the mean over the batch: over a vector's dimensions 'sum' (printed) or
    'mean'.
    """
    reduce = jnp.sum if reduction == "sum" else jnp.mean
    errors = [
        reduce(jnp.square(vectors[source] - decoded), axis=-1).mean()
        for source, decoded in reconstructed.items()
    ]
    return jnp.stack(errors).sum()


class RQVAE:
    """Computes pure functions over parameters {'network': ..., 'codebooks': ...}.

    Args:
      input_widths: of each source's vectors, in the order of `config.sources`.
    """

    def __init__(self, config: RQVAEConfig, input_widths: tuple[int, ...]):
        self.config = config
        self.network = Network(config, input_widths)

    def init_network(self, key: jax.Array) -> Params:
        """Draws random encoders and decoders."""
        shapes = zip(self.config.sources, self.network.input_widths, strict=True)
        example = {source: jnp.zeros((1, width)) for source, width in shapes}
        return dict(self.network.init(key, example))

    def encode(self, network: Params, vectors: Mapping[str, jax.Array]) -> jax.Array:
        """Latents float32 [B, N*d]."""
        latents: Any = self.network.apply(network, vectors, method="encode")
        return latents

    def loss(self, params: Params, vectors: Mapping[str, jax.Array], *, balanced: bool) -> Output:
        """Computes Eq. 10 on a batch; decoders read z + sg(z_hat - z) (straight-through).

        Args:
          balanced: Sinkhorn on the last specific level, as in training.
        """
        config = self.config
        latents = self.encode(params["network"], vectors)
        levels = quantizer.quantize(
            latents,
            params["codebooks"],
            config.sources,
            residual_gradient=config.residual_gradient,
            balance_last=config.balance if balanced else None,
        )
        quantized = quantizer.quantized_latents(levels, config.sources)
        passed = latents + jax.lax.stop_gradient(quantized - latents)
        decoded: Any = self.network.apply(params["network"], passed, method="decode")
        reconstruction = reconstruction_loss(vectors, decoded, config.reduction)
        rq = quantizer.rq_loss(levels, alpha=config.alpha, reduction=config.reduction)
        return Output(reconstruction + rq, reconstruction, rq, levels)
