"""Generates items for users, or for a query, with a trained GenSAR."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from core.trie import Trie
from gensar_jax.examples import GenSARExamples, padded
from gensar_jax.generation import generate
from gensar_jax.t5.network import Transformer
from input_pipelines.candidates import TouchedItems
from input_pipelines.dataset import Dataset
from input_pipelines.splits import Examples

# Compiled once for each network, width, and shape of the prompts.
_generate = jax.jit(generate, static_argnames=("network", "width", "length_penalty"))


class Generated(NamedTuple):
    """Holds the number of an item, and the log-likelihood of its identifier in nats."""

    item: int
    score: float


def top_items(
    network: Transformer,
    params: Any,
    written: GenSARExamples,
    trie: Trie,
    data: Dataset,
    examples: Examples,
    top_k: int,
    query: str | None,
    *,
    beam: int,
    batch_size: int,
    length_penalty: float = 0.0,
    left_out: Sequence[Collection[int]] | None = None,
) -> Iterator[list[Generated]]:
    """Yields the likeliest items of each example, best first, without what its user has touched.

    The beam holds as many identifiers as are wanted and may have to be left out.

    Args:
      network, params: a trained model.
      written: how examples are written as tokens.
      trie: of the identifiers that are decoded, for a query or for recommendations.
      examples: [E]; their users' histories. User 0 has none.
      top_k: items at most.
      query: for the items of a search, as a user types it; None for recommendations.
      beam: the beam's width is a multiple of it.
      batch_size: examples at once.
      length_penalty: as in `generation.generate`.
      left_out: items of each example that are no answer; None: those that its user has touched.

    Raises:
      UserError: more items than there are, a task that the run has not learnt, or a query without
        words or of only unknown characters.
    """
    known = data.log.num_items
    if top_k > known:
        raise UserError(f"expected top_k of at most {known} items, found {top_k}; lower --top_k")
    task = "recommendation" if query is None else "search"
    learnt, wanted = written.mixture.tasks, "nrip" if query is None else "nsip"
    if wanted not in learnt:
        asked, remedy = ("without", "pass a query") if query is None else ("with", "leave it out")
        raise UserError(
            f"expected a run whose mixture holds {wanted} {asked} --query, found one of "
            f"{', '.join(learnt)}; {remedy}"
        )
    if query is not None:
        typed, query = query, data.query_text(query)
        if not query:
            raise UserError(f"expected a query with words, found {typed[:60]!r}; rephrase it")
        written.vocabulary.check_query(query)
    # Any item: only the prompt is used.
    inputs = padded(
        [
            written.prompts.next_item(written.history(examples, row), 1).inputs
            if query is None
            else written.search(examples, row, query, 1).inputs
            for row in range(len(examples))
        ]
    )
    if left_out is None:
        index = TouchedItems(data.log)
        left_out = [set(index.of_user(int(user)).tolist()) for user in examples.user]
    longest = max(map(len, left_out))
    # In steps of the beam: a width is a compilation.
    width = -(-(top_k + longest) // beam) * beam
    forced = written.forced(task)
    size = min(batch_size, len(examples))
    for start in range(0, len(examples), size):
        rows = np.minimum(np.arange(start, start + size), len(examples) - 1)
        prefix = jnp.broadcast_to(jnp.array(forced, jnp.int32), (size, len(forced)))
        beams = _generate(
            network, params, inputs[rows], prefix, trie, width=width, length_penalty=length_penalty
        )
        items, scores = np.asarray(beams.items), np.asarray(beams.scores)
        for row in range(min(size, len(examples) - start)):
            ranked = map(Generated, items[row].tolist(), scores[row].tolist())
            gone = left_out[start + row]
            yield [f for f in ranked if f.item > 0 and f.item not in gone][:top_k]
