"""Turns texts into tokens with a checkpoint's tokenizer.json: cuts long texts, and counts them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers

from core.errors import UserError, reason_of

TOKENIZER = "tokenizer.json"
# No text, and one with a sign that few vocabularies have.
_PROBES = ("", "a \u2603\ufe0e\U0010fffd")
# Rows that an embedding may have more than there are tokens: checkpoints fill it up to multiples of
# powers of two, Qwen3's by 267 rows.
_SPARE_ROWS = 512


def read_tokenizer(path: str | pathlib.Path) -> tokenizers.Tokenizer:
    """Reads a tokenizer.json, from a file or from the folder that holds it.

    Raises:
      UserError: no such file, or it is none.
    """
    file = pathlib.Path(path)
    if file.is_dir():
        file = file / TOKENIZER
    if not file.is_file():
        raise UserError(f"expected a tokenizer.json, found no {file}; correct the path")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
        # Some mistakes show where a text is read, such as no token for what is unknown.
        tokenizer.encode_batch(_PROBES)
    except BaseException as error:
        # The library raises bare Exception; where it panics, what it raises is not even one.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"expected a tokenizer.json, found {file}, which is none ({reason_of(error, 100)}); "
            "download it again"
        ) from error
    return tokenizer


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """Holds the tokens of texts.

    Attributes:
      rows: int32 [L] of each text, with the special tokens.
      cut: how many of the texts were longer than allowed.
    """

    rows: list[np.ndarray]
    cut: int


class TextTokenizer:
    """Tokenizes whole texts for an encoder.

    Args:
      path: of tokenizer.json, or its folder.
      rows: of the network's word embedding.
      most_tokens: of a text, its special tokens among them; what is longer is cut at its end.
      first, last: the names that the first and the last token of every text may have; where `first`
        is empty any may be first.
      adds_last: whether the last token is added where the file does not add it.
      lowercase: texts before they are split, as some checkpoints' own settings say.

    Raises:
      UserError: as `read_tokenizer`; a vocabulary that is not the network's; or no such tokens
        around a text.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        *,
        rows: int,
        most_tokens: int,
        first: tuple[str, ...],
        last: tuple[str, ...],
        adds_last: bool = False,
        lowercase: bool = False,
    ):
        self._tokenizer = read_tokenizer(path)
        self._lowercase = lowercase
        # A file may say that every text is cut and padded to one length.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        names = self._tokenizer.get_vocab(with_added_tokens=True)
        needed = max(names.values(), default=-1) + 1
        own = "pass the encoder's own tokenizer.json"
        if not rows - _SPARE_ROWS < needed <= rows:
            raise UserError(
                f"expected a tokenizer of {rows} tokens, the rows of the encoder, found {needed} "
                f"in {path}; {own}"
            )
        around = self._tokenizer.encode("").tokens
        self._added: list[int] = []
        if adds_last and around[-1:] != [last[0]] and last[0] in names:
            self._added, around = [names[last[0]]], [*around, last[0]]
        for wanted, found, place in (
            (first, around[:1], "before"),
            (last, around[-1:], "after"),
        ):
            if wanted and not (found and found[0] in wanted):
                raise UserError(
                    f"expected {' or '.join(wanted)} {place} every text, found "
                    f"{found[0] if found else 'no token'} in {path}; {own}"
                )
        if most_tokens <= len(around):
            raise UserError(
                f"expected texts of more than {len(around)} tokens, found a limit of "
                f"{most_tokens} beside {path}; download the whole folder again"
            )
        self._tokenizer.enable_truncation(most_tokens - len(self._added))

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """Returns the tokens of each text."""
        asked = [text.lower() for text in texts] if self._lowercase else list(texts)
        encodings = self._tokenizer.encode_batch(asked)
        return Tokenized(
            [np.array(encoding.ids + self._added, np.int32) for encoding in encodings],
            sum(bool(encoding.overflowing) for encoding in encodings),
        )
