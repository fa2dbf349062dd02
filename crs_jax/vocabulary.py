"""Defines the tokens of CRS: a tokenizer's own, then one token for each code of each level.

<a_0> <a_1> ... are the first level's codes, <b_0> ... the second's, and so on (paper, 3.1.1); their
ids follow the rows that a checkpoint has.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers

from core.errors import UserError

START, END, THINK, END_THINK = "<|im_start|>", "<|im_end|>", "<think>", "</think>"
_CONTROLS = ("<|endoftext|>", START, END, THINK, END_THINK)
_CODE = re.compile(r"<([a-z])_(\d+)>")


def train_tokenizer(texts: Iterable[str], size: int) -> tokenizers.Tokenizer:
    """Trains a byte-level BPE on a catalogue's own texts and queries, with Qwen3's controls.

    Args:
      size: tokens at most, the 256 bytes and 5 controls included.

    Raises:
      UserError: a size too small for the bytes.
    """
    if size < 256 + len(_CONTROLS):
        raise UserError(
            f"expected a vocabulary of at least {256 + len(_CONTROLS)} tokens, found {size}; "
            "raise config.vocabulary.size"
        )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_CONTROLS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Vocabulary:
    """Joins text and codes in one range of ids.

    Args:
      tokenizer: from `text_encoders.tokenizing.read_tokenizer` or `train_tokenizer`.
      levels: codes of each level of the identifiers.
      text_rows: rows of the network's embedding before the codes' rows, a checkpoint's; None
        takes as many as the tokenizer has tokens.

    Raises:
      UserError: a tokenizer without the control tokens, without room for the codes, or with one of
        their names already taken.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        levels: Sequence[int],
        text_rows: int | None = None,
    ):
        self._tokenizer = tokenizer
        self.levels = tuple(int(size) for size in levels)
        if not 1 <= len(self.levels) <= len(string.ascii_lowercase) or min(self.levels) < 1:
            raise UserError(f"expected code levels of 1 or more codes, found {self.levels}")
        names = tokenizer.get_vocab(with_added_tokens=True)
        missing = [name for name in _CONTROLS[1:] if name not in names]
        if missing:
            raise UserError(
                f"expected a tokenizer with {', '.join(_CONTROLS[1:])}, found none of "
                f"{missing[0]}; pass Qwen3's tokenizer.json"
            )
        needed = max(names.values()) + 1
        self.text_rows = needed if text_rows is None else text_rows
        if needed > self.text_rows:
            raise UserError(
                f"expected a tokenizer of at most {self.text_rows} tokens, the checkpoint's rows, "
                f"so that the id tokens have room after them, found {needed}; pass the "
                "checkpoint's own tokenizer.json"
            )
        taken = sorted(name for name in names if _CODE.fullmatch(name))
        if taken:
            raise UserError(
                f"expected a tokenizer with room for the id tokens, found {taken[0]} among its "
                "own; pass the checkpoint's own tokenizer.json"
            )
        self.end, self.think, self.end_think = (names[n] for n in (END, THINK, END_THINK))
        ends = list(itertools.accumulate(self.levels, initial=self.text_rows))
        self._starts, self.size = np.array(ends[:-1]), ends[-1]

    @property
    def new_rows(self) -> int:
        """Tokens of codes."""
        return self.size - self.text_rows

    def identifiers(self, codes: np.ndarray) -> np.ndarray:
        """Tokens int32 [..., L] of codes [..., L].

        Raises:
          ValueError: a code beyond its level.
        """
        codes = np.asarray(codes)
        if codes.shape[-1] != len(self.levels) or (codes >= self.levels).any() or codes.min() < 0:
            raise ValueError(f"expected codes below {self.levels}, found {codes.max(0)}")
        return (codes + self._starts).astype(np.int32)

    def encode(self, text: str) -> list[int]:
        """Returns token ids; names of codes, such as <a_23>, are one token each.

        Raises:
          ValueError: a code beyond its level.
        """
        tokens: list[int] = []
        start = 0
        for match in _CODE.finditer(text):
            tokens += self._text(text[start : match.start()])
            level, code = string.ascii_lowercase.index(match[1]), int(match[2])
            if level >= len(self.levels) or code >= self.levels[level]:
                raise ValueError(f"expected codes of {self.levels}, found {match[0]}")
            tokens.append(int(self._starts[level]) + code)
            start = match.end()
        return tokens + self._text(text[start:])

    def _text(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids if text else []

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of token ids; rows of a checkpoint without a token are left out."""
        parts = []
        codes = lambda token: token >= self.text_rows  # noqa: E731 - a key of groupby
        for is_code, group in itertools.groupby(map(int, tokens), codes):
            if is_code:
                parts += [self.code_name(token) for token in group]
            else:
                parts.append(self._tokenizer.decode(list(group), skip_special_tokens=False))
        return "".join(parts)

    def code_name(self, token: int) -> str:
        """Writes a code's token as <a_23>."""
        level = int(np.searchsorted(self._starts, token, side="right")) - 1
        return code_name(level, token - int(self._starts[level]))

    def to_json(self) -> str:
        """Returns the tokenizer's own tokenizer.json."""
        return self._tokenizer.to_str()


def code_name(level: int, code: int) -> str:
    """Writes code 23 of level 0 as <a_23>."""
    return f"<{string.ascii_lowercase[level]}_{code}>"
