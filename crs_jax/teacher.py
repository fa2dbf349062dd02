"""Asks a Qwen3 checkpoint, the teacher, why a user chose what training shows (CRS 3.2).

A folder as Hugging Face has it: config.json, tokenizer.json and safetensors. The teacher is told
the target's title, which no student is at inference; what names it is dropped (`traces.leaks`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from core import tensor_files
from core.errors import UserError
from crs_jax import generation, sharding
from crs_jax.contexts import greatest_fitting
from crs_jax.decoder import Decoder
from crs_jax.decoder_checkpoints import (
    NUMBERS,
    SIZES,
    from_hugging_face,
    read_about,
)
from crs_jax.decoder_config import DecoderConfig
from crs_jax.generation import Sampling
from crs_jax.packing import prompt_array
from crs_jax.vocabulary import END, START, THINK, Vocabulary
from text_encoders.tokenizing import read_tokenizer

# Qwen3's own settings for thinking.
_TEMPERATURE, _TOP_P = 0.6, 0.95
_ASK = "Explain in a sentence or two which need leads to this choice. Do not name the item."


def read_config(folder: str, dtype: str = "float32") -> DecoderConfig:
    """Reads the network of a checkpoint's folder; it gets one new row, since none has fewer.

    Raises:
      UserError: no config.json, or not that of a Qwen3 whose output layer is its embedding.
    """
    path, values = read_about(folder)
    try:
        numbers = {ours: values[theirs] for ours, theirs in NUMBERS.items()}
        tied = values["tie_word_embeddings"]
    except KeyError as error:
        raise UserError(
            f"expected the config.json of a Qwen3 checkpoint at {path}, found no such file or none "
            f"with {error}; correct config.distill.teacher"
        ) from None
    if values.get("model_type") != "qwen3" or not tied:
        raise UserError(
            f"expected a Qwen3 whose output layer is its embedding, as of 0.6B to 4B, found "
            f"model_type {values.get('model_type')!r} with tie_word_embeddings {tied} in {path}; "
            "pass another config.distill.teacher"
        )
    sizes: dict[str, Any] = tensor_files.sizes_of(values, SIZES, path)
    try:
        return DecoderConfig(new_rows=1, dtype=dtype, **sizes, **numbers)
    except ValueError as error:
        raise UserError(
            f"expected the sizes of a Qwen3 in {path}, found others ({error}); pass another "
            "config.distill.teacher"
        ) from None


def read_vocabulary(folder: str, config: DecoderConfig) -> Vocabulary:
    """Reads the teacher's own tokens. Raises UserError as `read_tokenizer` and `Vocabulary`."""
    return Vocabulary(read_tokenizer(folder), (1,), config.text_rows)


def prompt(
    vocabulary: Vocabulary, query: str, events: Sequence[str], title: str, *, limit: int
) -> list[int]:
    """Returns the tokens of a prompt, which ends in <think>:

        <|im_start|>user
        Earlier this user searched for "pan" and chose "Iron pan"; chose "Blue tent".
        Now the user searches for "stove" and chooses "Gas stove".
        Explain in a sentence or two which need leads to this choice. Do not name the item.
        <|im_end|>
        <|im_start|>assistant
        <think>

    The oldest events that do not fit are dropped, then the ends of the query and the title: both
    are cut to one length, the greatest that fits. Texts lose their <, so that none is a control.

    Args:
      events: what the user did before, in such words, oldest first.
      title: the target's.
      limit: tokens at most.

    Raises:
      UserError: the limit holds nothing of a query.
    """

    def written(first: int, length: int) -> list[int]:
        asked, chosen = quoted(query[:length]), quoted(title[:length])
        now = f"Now the user searches for {asked} and chooses {chosen}."
        history = "; ".join(events[first:]).replace("<", "(")
        lines = [f"Earlier this user {history}."] if history else []
        text = "\n".join([f"{START}user", *lines, now, _ASK, END, f"{START}assistant", THINK, ""])
        return vocabulary.encode(text)

    whole, none = max(len(query), len(title)), len(events)
    # From all events to none: a prompt is written anew, since tokens may join at their ends.
    for first in range(none + 1):
        tokens = written(first, whole)
        if len(tokens) <= limit:
            return tokens
    length = greatest_fitting(whole, lambda length: len(written(none, length)) <= limit)
    if length == 0:
        raise UserError(
            f"expected room for a teacher's prompt in {limit} tokens, found "
            f"{len(written(none, 0))} without its history and texts; raise "
            "config.prompts.max_prompt"
        )
    return written(none, length)


def quoted(text: str) -> str:
    """Puts a text in quotation marks, without the marks and the < that it has."""
    return '"' + text.replace('"', "'").replace("<", "(") + '"'


class Teacher:
    """Draws reasoning from a checkpoint.

    Args:
      folder: of the checkpoint.
      limit: T, tokens of a prompt.
      max_reasoning: tokens of the reasoning at most, </think> included.
      batch_size: B, prompts at once.
      dtype: of the computation.
      mesh: the parameters lie on it as a stage's do, and prompts are cut over it.
      seed: of the draws.

    Raises:
      UserError: no checkpoint of Qwen3 there.
    """

    def __init__(
        self,
        folder: str,
        *,
        limit: int,
        max_reasoning: int,
        batch_size: int,
        dtype: str,
        mesh: Mesh,
        seed: int,
    ):
        config = read_config(folder, dtype)
        self.vocabulary = read_vocabulary(folder, config)
        self._limit, self._batch_size = limit, batch_size
        self._partition = sharding.partition_of(config, mesh)
        self._params = from_hugging_face(folder, config, jax.random.key(0), self._partition)
        network, words = Decoder(config), self.vocabulary
        sampling = Sampling(max_tokens=max_reasoning, temperature=_TEMPERATURE, top_p=_TOP_P)
        stops = (words.end_think, words.end)

        # Every process reads all that is said.
        whole = None if self._partition is None else self._partition.replicated

        @functools.partial(jax.jit, out_shardings=whole)
        def draw(params, tokens, lengths, number, start):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), start)
            prompted = generation.read_prompts(network, params, tokens, lengths)
            samples = generation.sample(network, params, prompted, key, 1, sampling, stops)
            return samples.tokens[:, 0], samples.lengths[:, 0]

        self._draw = functools.partial(draw, self._params)

    def __call__(self, prompts: Sequence[Sequence[int]], number: int) -> list[str | None]:
        """Returns what the teacher thinks of each prompt; None where </think> never came.

        Args:
          prompts: token ids, at most T each.
          number: of these prompts, so that each set has draws of its own.
        """
        texts: list[str | None] = []
        for start in range(0, len(prompts), self._batch_size):
            chosen = list(prompts[start : start + self._batch_size])
            spare = self._batch_size - len(chosen)
            batch = prompt_array(chosen + chosen[:1] * spare, self._limit)
            if self._partition is not None:
                batch = self._partition.put_batch(batch)
            tokens, lengths = map(np.asarray, self._draw(*batch, number, start))
            rows = zip(tokens[: len(chosen)], lengths[: len(chosen)], strict=True)
            texts += [self._said(said[:length].tolist()) for said, length in rows]
        return texts

    def _said(self, tokens: list[int]) -> str | None:
        if tokens[-1] != self.vocabulary.end_think:
            return None
        return self.vocabulary.decode(tokens[:-1]).strip()
