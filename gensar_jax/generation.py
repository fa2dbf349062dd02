"""Items for prompts: T5 under the beam search of `core.beam_search`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from core import beam_search
from core.beam_search import Beams
from core.trie import Trie
from gensar_jax.t5.network import Transformer
from gensar_jax.vocabulary import PADDING


def generate(
    network: Transformer,
    params: Any,
    inputs: jax.Array,
    forced: jax.Array,
    trie: Trie,
    width: int,
    *,
    renormalise: bool = False,
    length_penalty: float = 0.0,
) -> Beams:
    """Returns the items whose identifiers are likeliest after a prompt; runs inside jit.

    The encoder runs once, its keys and values are shared by the beams, and the tokens before the
    identifier are read by one beam.

    Args:
      network, params: T5 and its parameters.
      inputs: int32 [B, T], prompts; 0 is padding.
      forced: int32 [B, P], decoder tokens before the identifier, after the start token 0: the
        behaviour token (paper, 3.4.2; as the decoder's first, READINGS), or none at P = 0. They are
        not scored.
      trie: of the catalogue, or one a user: their candidates. With a width of at least the number
        of candidates every one of them is scored (neg99/exact), else what the beam drops is a miss
        (neg99/beam30).
      width, renormalise: see `core.beam_search.search`.
      length_penalty: power of an identifier's tokens, its end included, by which its log-likelihood
        is divided once the beam has ended; 0 divides by nothing.

    Returns:
      Beams; raw scores are log-likelihoods of the L codes, in nats. Of identifiers of any length
      (`Vocabulary.sequences`) they count the end, and nothing after it.
    """
    variables = {"params": params}
    encoded: Any = network.apply(variables, inputs, enable_dropout=False, method="encode")
    contexts: Any = network.apply(variables, encoded, method="contexts")

    def step(level, tokens, cache):
        del level
        return network.apply(variables, tokens, cache, contexts, inputs, method="step")

    batch = inputs.shape[0]
    read = jnp.concatenate([jnp.zeros((batch, 1), jnp.int32), forced.astype(jnp.int32)], 1)
    cache: Any = network.empty_cache(batch)
    for place in range(read.shape[1] - 1):
        _, cache = step(0, read[:, place, None], cache)
    beams = beam_search.search(
        step, cache, read[:, -1], trie, width, renormalise=renormalise, padding=PADDING
    )
    return beams if not length_penalty else _divided(beams, length_penalty)


def _divided(beams: Beams, power: float) -> Beams:
    """Returns beams in the order of their scores over a power of their lengths."""
    lengths = jnp.maximum((beams.tokens != PADDING).sum(-1), 1)
    scores = beams.scores / lengths**power
    order = jnp.argsort(scores, axis=1, descending=True)
    return Beams(
        jnp.take_along_axis(beams.items, order, 1),
        jnp.take_along_axis(scores, order, 1),
        jnp.take_along_axis(beams.tokens, order[..., None], 1),
    )
