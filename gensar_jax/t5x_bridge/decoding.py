"""Searches the identifiers of a trie by beams as T5X's `decode_fn`.

Two forms. `raw` is the search of `core.beam_search`, whose scores are log-likelihoods over the
whole vocabulary (READINGS: the default), with T5X's network and cache. `renormalised` is T5X's own
`decoding.beam_search`: it has no hook for logits, so its `tokens_to_logits` is wrapped, and since
it takes the softmax after that, its scores are renormalised to what the trie allows.

Axis letters: B batch, K beams, S tokens of the decoder, L codes, P tokens forced before them, W
words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from t5x import decoding

from core import beam_search
from core import trie as tries
from core.errors import UserError
from core.trie import Trie
from gensar_jax.t5x_bridge import exported
from gensar_jax.vocabulary import END

# decode_fn(inputs, cache, tokens_to_logits, eos_id, num_decodes, ...) -> (int32 [B, K, S], [B, K])
DecodeFn = Callable[..., tuple[jax.Array, jax.Array]]
_KINDS = {"recommendation": "collaborative", "search": "semantic"}
# What T5X keeps once for all beams: counters, and biases of positions.
_SHARED = ("cache_index", "cached_bias")


def constrained(folder: str, task: str, renormalise: bool = False) -> DecodeFn:
    """Makes the decoding of a task over the whole catalogue of a folder of launch.export_t5x.

    Args:
      folder: with the identifiers.
      task: 'recommendation' decodes collaborative identifiers, 'search' semantic ones.
      renormalise: False for `raw`, True for `renormalised`.

    Raises:
      UserError: no such folder or task.
    """
    trie, forced = catalogue(folder, task)
    form = renormalised if renormalise else raw

    def decode(**arguments: Any) -> tuple[jax.Array, jax.Array]:
        return form(**arguments, trie=trie, forced=forced)

    return decode


def catalogue(folder: str, task: str) -> tuple[Trie, tuple[int, ...]]:
    """Returns (trie of all items 1..V, tokens forced before their identifiers); see
    `constrained`.
    """
    if task not in _KINDS:
        raise UserError(f"expected task {' or '.join(_KINDS)}, found {task!r}; pass one of them")
    tokens = exported.identifiers(folder, _KINDS[task])
    trie = tries.build(tokens[1:], np.arange(1, len(tokens)))
    return trie, tuple(exported.read(folder).forced[task])


def items_of(sequences: jax.Array, trie: Trie, forced: int) -> jax.Array:
    """Returns the items int32 [B, K] of decoded sequences [B, K, S]; -1 where no item fits."""
    return tries.find(trie, sequences[:, :, forced : forced + trie.length])


def raw(
    inputs: jax.Array,
    cache: Mapping[str, Any],
    tokens_to_logits: Callable[..., tuple[jax.Array, Any]],
    eos_id: int,
    num_decodes: int,
    *,
    trie: Trie,
    forced: tuple[int, ...],
    **ignored: Any,
) -> tuple[jax.Array, jax.Array]:
    """Runs `core.beam_search.search` with T5X's network.

    Args:
      inputs: [B, S], for its shape; its tokens are not read.
      cache: T5X's, of B rows.
      tokens_to_logits: of B K rows, whatever the number of beams.
      eos_id: the end, written after an identifier, unscored.
      num_decodes: K; where items are fewer, the first places are left over.
      trie: of all users.
      forced: tokens before an identifier, unscored.
      **ignored: T5X's further arguments, which concern other searches.

    Returns:
      (sequences int32 [B, K, S], scores float32 [B, K] in nats), best LAST, as T5X has it. Places
      left over hold 0 and -inf.
    """
    del ignored
    batch, length = inputs.shape
    _check_length(length, trie, forced)
    flat = traverse_util.flatten_dict(dict(cache))
    shared = {path: leaf for path, leaf in flat.items() if path[-1] in _SHARED}
    own = {path: leaf[:, None] for path, leaf in flat.items() if path[-1] not in _SHARED}

    def step(read: int, tokens: jax.Array, rows: Any) -> tuple[jax.Array, Any]:
        """Reads a token a beam, [B, J] with J <= K, after `read` others."""
        beams = tokens.shape[1]

        def widened(array):
            padding = ((0, 0), (0, num_decodes - beams), *((0, 0),) * (array.ndim - 2))
            return jnp.pad(array, padding).reshape(batch * num_decodes, *array.shape[2:])

        counters = {
            path: jnp.full_like(leaf, read) if path[-1] == "cache_index" else leaf
            for path, leaf in shared.items()
        }
        state = decoding.DecodingState(
            cur_index=jnp.int32(read),
            sequences=jnp.zeros((batch * num_decodes, length + 1), jnp.int32),
            cur_token=widened(tokens)[:, None],
            cache=traverse_util.unflatten_dict(counters | jax.tree.map(widened, rows)),
        )
        logits, after = tokens_to_logits(state)

        def narrowed(array):
            return array.reshape(batch, num_decodes, *array.shape[1:])[:, :beams]

        cache = traverse_util.flatten_dict(dict(after))
        return narrowed(logits), {path: narrowed(cache[path]) for path in rows}

    start = (0, *forced)
    for read, token in enumerate(start[:-1]):
        _, own = step(read, jnp.full((batch, 1), token, jnp.int32), own)
    best = beam_search.search(
        lambda level, tokens, rows: step(len(forced) + level, tokens, rows),
        own,
        jnp.full(batch, start[-1], jnp.int32),
        trie,
        num_decodes,
    )
    valid = (best.items >= 0)[..., None]
    prefix = jnp.broadcast_to(jnp.array(forced, jnp.int32), (*valid.shape[:2], len(forced)))
    end = jnp.full_like(prefix, eos_id, shape=valid.shape)
    whole = jnp.where(valid, jnp.concatenate([prefix, best.tokens, end], -1), 0)
    missing = num_decodes - whole.shape[1]
    whole = jnp.pad(whole, ((0, 0), (0, missing), (0, length - whole.shape[2])))
    scores = jnp.pad(best.scores, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    return whole[:, ::-1], scores[:, ::-1]


def renormalised(
    inputs: jax.Array,
    cache: Mapping[str, Any],
    tokens_to_logits: Callable[..., tuple[jax.Array, Any]],
    eos_id: int,
    num_decodes: int,
    *,
    trie: Trie,
    forced: tuple[int, ...],
    **more: Any,
) -> tuple[jax.Array, jax.Array]:
    """Runs T5X's beam search with the logits of what the trie does not allow masked.

    Args, returns: as `raw`, but for the scores; **more goes to T5X. Its length penalty is off,
    since identifiers are equally long.
    """
    batch, length = inputs.shape
    _check_length(length, trie, forced)
    prompt = jnp.zeros((batch, length), jnp.int32)
    prompt = prompt.at[:, 1 : 1 + len(forced)].set(jnp.array(forced, jnp.int32))

    def constrained_logits(state):
        logits, after = tokens_to_logits(state)
        allowed = _allowed(state, trie, len(forced), logits.shape[-1], num_decodes)
        return jnp.where(allowed, logits, decoding.NEG_INF), after

    sequences, scores = decoding.beam_search(
        prompt, cache, constrained_logits, eos_id, num_decodes, alpha=0.0, **more
    )
    valid = items_of(sequences, trie, len(forced)) >= 0
    return jnp.where(valid[..., None], sequences, 0), jnp.where(valid, scores, -jnp.inf)


def _allowed(state: Any, trie: Trie, forced: int, vocab_size: int, num_decodes: int) -> jax.Array:
    """Tells which tokens may follow the live sequences, bool [B K, W]."""
    rows = state.sequences.shape[0]
    # sequences start with 0: the codes read so far are those after the forced tokens.
    codes = jax.lax.dynamic_slice_in_dim(state.sequences, 1 + forced, trie.length, 1)
    codes = codes.reshape(-1, num_decodes, trie.length)
    only_end = jnp.zeros((rows, vocab_size), bool).at[:, END].set(True)

    def after(level: int) -> jax.Array:
        nodes = jnp.zeros(codes.shape[:2], jnp.int32)
        for depth in range(level):
            below = tries.children(trie, depth, nodes)
            match = below.valid & (below.tokens == codes[:, :, depth, None])
            nodes = jnp.where(match, below.nodes, -1).max(-1)
        below = tries.children(trie, level, nodes)
        places = jnp.where(below.valid, below.tokens, vocab_size).reshape(rows, -1)
        mask = jnp.zeros((rows, vocab_size), bool)
        return mask.at[jnp.arange(rows)[:, None], places].set(True, mode="drop")

    branches = [functools.partial(after, level) for level in range(trie.length)]
    # Within the forced tokens nothing is chosen; after the codes there is only the end.
    level = jnp.clip(state.cur_index - forced, 0, trie.length)
    return jax.lax.switch(level, [*branches, lambda: only_end])


def _check_length(length: int, trie: Trie, forced: tuple[int, ...]) -> None:
    least = len(forced) + trie.length + 1
    if length < least:
        raise UserError(
            f"expected targets of at least {least} tokens (behaviour, codes, end), found "
            f"{length}; raise the feature length of targets"
        )
