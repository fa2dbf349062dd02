"""Prompts and targets of GenSAR's six tasks as tokens (paper, 3.3).

An event is (behaviour, item or query text), Eq. 1; its tokens are Eq. 11's: the behaviour token and
the identifier, or the words. A prompt that is too long loses its oldest events, whole; an over-long
query is cut, so that it does not take the place of all others.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from core.errors import UserError
from gensar_jax.phrasings import TASKS, phrasings
from gensar_jax.vocabulary import END, PADDING, Vocabulary

Event = tuple[str, int | str]
BEHAVIOUR_TOKENS = ("decoder", "encoder", "none")
# A query of more than a quarter of a prompt's tokens is over-long: other events need room too.
_LONG_SHARE = 4
_LETTER = re.compile(r"\w")
_PLACE = re.compile(r"(\{[a-z]+\})")


class Example(NamedTuple):
    """Holds encoder tokens, and decoder targets with an end."""

    inputs: list[int]
    targets: list[int]


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Holds what prompts know of the items; row 0 is padding.

    Attributes:
      semantic, collaborative: int32 [V, L], the tokens of both identifiers, from
        `Vocabulary.identifiers` or `Vocabulary.sequences`.
    """

    semantic: np.ndarray
    collaborative: np.ndarray

    def identifier(self, item: int, kind: str) -> list[int]:
        """Tokens of an item's 'semantic' or 'collaborative' identifier, without an end.

        Raises:
          UserError: no such item.
        """
        table = {"semantic": self.semantic, "collaborative": self.collaborative}[kind]
        if not 0 < item < len(table):
            raise UserError(
                f"expected an item in 1..{len(table) - 1}, found {item}; use the catalogue that "
                "the identifier table was made for"
            )
        return [token for token in table[item].tolist() if token not in (PADDING, END)]


class Prompts:
    """Writes examples.

    Args:
      vocabulary: tokens.
      catalogue: identifiers.
      max_inputs, max_targets: T and S, tokens at most, the end included.
      behaviour_tokens: 'decoder' starts the target with the behaviour token; 'encoder' ends the
        prompt with it (the words of 3.4.2); 'none' has none anywhere (the ablation of Table 5).

    Raises:
      UserError: an unknown `behaviour_tokens`, or lengths that not every phrasing or identifier
        fits.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        catalogue: Catalogue,
        *,
        max_inputs: int,
        max_targets: int,
        behaviour_tokens: str = "decoder",
    ):
        if behaviour_tokens not in BEHAVIOUR_TOKENS:
            raise UserError(
                f"expected behaviour_tokens of {', '.join(BEHAVIOUR_TOKENS)}, found "
                f"{behaviour_tokens!r}; correct the setting"
            )
        longest = 2 + max(catalogue.semantic.shape[1], catalogue.collaborative.shape[1])
        if max_targets < longest:
            raise UserError(
                f"expected max_targets of at least {longest} (behaviour, codes, end), found "
                f"{max_targets}; raise it"
            )
        self.vocabulary, self.catalogue = vocabulary, catalogue
        self.max_inputs, self.max_targets = max_inputs, max_targets
        self.behaviour_tokens = behaviour_tokens
        # Texts repeat: phrasings always, queries and titles over epochs.
        self._encode = functools.lru_cache(1 << 18)(lambda t: tuple(vocabulary.encode_text(t)))
        needed, task = max((self._least(template), t) for t in TASKS for template in phrasings(t))
        if max_inputs < needed:
            raise UserError(
                f"expected max_inputs of at least {needed} for every phrasing (the longest is of "
                f"{task}), found {max_inputs}; raise it"
            )

    def _least(self, template: str) -> int:
        """Tokens that a prompt of a template has at least, without history."""
        codes = max(self.catalogue.semantic.shape[1], self.catalogue.collaborative.shape[1])
        # A query is a behaviour token and a word.
        places = {"{history}": 0, "{query}": 2, "{text}": 2, "{identifier}": codes}
        parts = _PLACE.split(template)
        words = sum(places[p] if p in places else len(self._encode(p)) for p in parts)
        return words + 1 + (self.behaviour_tokens == "encoder")

    def has_pieces(self, text: str) -> bool:
        """Tells whether a text is any tokens: a zero-width space is none."""
        # A letter always is one, and a catalogue's texts are too many to encode them all for this.
        return bool(_LETTER.search(text) or self._encode(text))

    def event(self, behaviour: str, what: int | str) -> list[int]:
        """Writes ID(b, x) of Eq. 11: <R_I> with the collaborative identifier, <S_I> with the
        semantic one, <S_Q> with the words.
        """
        if isinstance(what, str):
            return [*self._behaviour("<S_Q>"), *self._encode(what)]
        kind = {"<R_I>": "collaborative", "<S_I>": "semantic"}[behaviour]
        return [*self._behaviour(behaviour), *self.catalogue.identifier(what, kind)]

    def next_item(self, history: Sequence[Event], item: int, phrasing: int = 0) -> Example:
        """Makes NRIP, 3.3.1: `history`, oldest first, to the next recommended item."""
        inputs = self._inputs("nrip", phrasing, history, behaviour="<R_I>")
        return self._item(inputs, "<R_I>", item)

    def next_text(self, history: Sequence[Event], text: str, phrasing: int = 0) -> Example:
        """Makes a half of LC-Rec's fusion: `history` to the text of the next item; a long one is
        cut.
        """
        inputs = self._inputs("next_text", phrasing, history)
        return self._text(inputs, self._encode(text))

    def told_history(self, texts: Sequence[str], item: int, phrasing: int = 0) -> Example:
        """Makes the other half: the texts of a history, oldest first, to the next item."""
        history = [("<S_Q>", text) for text in texts]
        inputs = self._inputs("told_history", phrasing, history, behaviour="<R_I>")
        return self._item(inputs, "<R_I>", item)

    def next_query(self, history: Sequence[Event], query: str, phrasing: int = 0) -> Example:
        """Makes NSQP, 3.3.2: `history` to the next query; a long one is cut."""
        inputs = self._inputs("nsqp", phrasing, history, behaviour="<S_Q>")
        target = [*self._start("<S_Q>"), *self._encode(query)]
        return self._text(inputs, target)

    def next_searched_item(
        self, history: Sequence[Event], query: str | None, item: int, phrasing: int = 0
    ) -> Example:
        """Makes NSIP, 3.3.3: `history` and the query to the item clicked; None writes no query."""
        words = [*self._behaviour("<S_Q>"), *self._encode(query or "")]
        inputs = self._inputs("nsip", phrasing, history, words, behaviour="<S_I>")
        return self._item(inputs, "<S_I>", item)

    def description_to_item(self, text: str, item: int, kind: str, phrasing: int = 0) -> Example:
        """Makes Desc2ID, 3.3.4: without behaviour tokens, to the 'semantic' or 'collaborative' one.

        Raises:
          UserError: an item without text.
        """
        inputs = self._inputs("desc2id", phrasing, cut=self._described(text, item))
        return Example(inputs, [*self.catalogue.identifier(item, kind), END])

    def document(self, text: str) -> list[int]:
        """Writes the prompt of Desc2ID alone, of a text that may be empty."""
        return self._inputs("desc2id", 0, cut=self._encode(text))

    def item_to_description(self, text: str, item: int, kind: str, phrasing: int = 0) -> Example:
        """Makes ID2Desc, 3.3.4; a long description is cut.

        Raises:
          UserError: an item without text.
        """
        identifier = self.catalogue.identifier(item, kind)
        inputs = self._inputs("id2desc", phrasing, whole=identifier)
        return self._text(inputs, self._described(text, item))

    def pseudo_query(self, query: str, item: int, phrasing: int = 0) -> Example:
        """Makes a pseudo-query alone to the item's semantic identifier (READINGS)."""
        words = [*self._behaviour("<S_Q>"), *self._encode(query)]
        inputs = self._inputs("pseudo_query", phrasing, cut=words, behaviour="<S_I>")
        return self._item(inputs, "<S_I>", item)

    def forced(self, behaviour: str) -> list[int]:
        """Returns the decoder tokens that generation forces, unscored: of '<R_I>' or '<S_I>'."""
        return self._start(behaviour)

    def _behaviour(self, behaviour: str) -> list[int]:
        if self.behaviour_tokens == "none":
            return []
        return [self.vocabulary.behaviours[behaviour]]

    def _start(self, behaviour: str) -> list[int]:
        return self._behaviour(behaviour) if self.behaviour_tokens == "decoder" else []

    def _item(self, inputs: list[int], behaviour: str, item: int) -> Example:
        kind = "collaborative" if behaviour == "<R_I>" else "semantic"
        identifier = self.catalogue.identifier(item, kind)
        return Example(inputs, [*self._start(behaviour), *identifier, END])

    def _text(self, inputs: list[int], target: Sequence[int]) -> Example:
        return Example(inputs, [*target[: self.max_targets - 1], END])

    def _described(self, text: str, item: int) -> list[int]:
        pieces = list(self._encode(text))
        if not pieces:
            raise UserError(
                f"expected text of item {item}, found none; leave items without text out of "
                "Desc2ID and ID2Desc"
            )
        return pieces

    def _inputs(
        self,
        task: str,
        phrasing: int,
        history: Sequence[Event] = (),
        cut: Sequence[int] = (),
        *,
        whole: Sequence[int] = (),
        behaviour: str | None = None,
    ) -> list[int]:
        """Fills a template's places; gives at most max_inputs tokens with the end.

        Room goes to the template and `whole` first, then to `cut` (from its start; where it is
        long, half of the room or what `history` leaves), then to the latest events that fit.
        """
        suffix = [END]
        if behaviour is not None and self.behaviour_tokens == "encoder":
            suffix = [*self._behaviour(behaviour), END]
        parts = _PLACE.split(phrasings(task)[phrasing])
        fixed = sum(len(self._encode(p)) for p in parts if not _PLACE.fullmatch(p))
        room = self.max_inputs - fixed - len(suffix) - len(whole)
        least = max(room // 2, self.max_inputs // _LONG_SHARE)
        events = self._latest(history, room - min(len(cut), least))
        cut = list(cut)[: room - len(events)]
        filled = {
            "{history}": events,
            "{query}": cut,
            "{text}": cut,
            "{identifier}": list(whole),
        }
        inputs = [t for p in parts for t in (filled[p] if p in filled else self._encode(p))]
        return inputs + suffix

    def _latest(self, history: Sequence[Event], room: int) -> list[int]:
        """Returns the latest events that fit, separated, in order of time."""
        separator = self.vocabulary.separator()
        latest: list[int] = []
        for behaviour, what in reversed(history):
            tokens = self.event(behaviour, what)
            if isinstance(what, str):
                tokens = tokens[: self.max_inputs // _LONG_SHARE]
            joined = [*tokens, *separator, *latest] if latest else tokens
            if len(joined) > room:
                break
            latest = joined
        return latest


def to_batch(examples: Sequence[Example], max_inputs: int, max_targets: int) -> dict:
    """Examples as arrays int32, padded with 0.

    Returns:
      T5X's names: encoder_input_tokens [B, T], decoder_target_tokens [B, S], and
      decoder_input_tokens [B, S], the targets shifted right by one, 0 first.
    """
    inputs = np.full((len(examples), max_inputs), PADDING, np.int32)
    targets = np.full((len(examples), max_targets), PADDING, np.int32)
    for row, example in enumerate(examples):
        inputs[row, : len(example.inputs)] = example.inputs
        targets[row, : len(example.targets)] = example.targets
    shifted = np.concatenate([np.zeros_like(targets[:, :1]), targets[:, :-1]], 1)
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
    }
