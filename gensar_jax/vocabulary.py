"""Defines the tokens of GenSAR: SentencePiece pieces, then behaviour tokens, then code tokens.

Ids: 0 padding (also the decoder's start), 1 end, 2 unknown and further text pieces up to P; then
<R_I>, <S_Q>, <S_I>; then <M1_0>, <M1_1>, ..., <M2_0>, ..., <S1_0>, ..., <R1_0>, .... The ids of a
codebook are consecutive (paper, Eq. 5 and 11).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import sentencepiece

from core import checksums
from core.errors import UserError
from core.files import open_atomically

PADDING, END = 0, 1
BEHAVIOURS = ("<R_I>", "<S_Q>", "<S_I>")
_MODEL, _CODES = "pieces.model", "codes.json"
# Bytes of a line: the trainer leaves out longer ones, and lines with its own mark for unknown
# pieces, without a word.
MOST_LINE_BYTES = 4192
_TRAINERS_MARK = "\u2585"
_MODEL_BYTES = 256 * 2**20


def read_pieces(path: str | pathlib.Path) -> bytes:
    """Reads a SentencePiece model, such as T5's spiece.model or what `train_pieces` made.

    Raises:
      UserError: no such file, no model, or one whose ids of padding and end are not 0 and 1.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"expected a SentencePiece model, found no {file}; correct the path")
    if file.stat().st_size > _MODEL_BYTES:
        raise UserError(
            f"expected a SentencePiece model of at most {_MODEL_BYTES:,} bytes, found "
            f"{file.stat().st_size:,} in {file}; pass another file"
        )
    model = file.read_bytes()
    processor_of(model, str(file))
    return model


def processor_of(model: bytes, source: str) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError:
        raise UserError(
            f"expected a SentencePiece model, found {source}, which is none; pass another file"
        ) from None
    special_ids = processor.pad_id(), processor.eos_id()
    if special_ids != (PADDING, END):
        raise UserError(
            f"expected a SentencePiece model with padding 0 and end 1, found {special_ids[0]} and "
            f"{special_ids[1]} in {source}; train it with pad_id=0, eos_id=1, unk_id=2, bos_id=-1"
        )
    return processor


def lines_of(text: str) -> Iterator[str]:
    """Yields a text as lines that the trainer reads, cut at white space, a long word inside it."""
    line: list[str] = []
    room = MOST_LINE_BYTES
    for word in text.replace(_TRAINERS_MARK, " ").split():
        for part in _parts(word):
            size = len(part.encode()) + 1
            if size > room and line:
                yield " ".join(line)
                line, room = [], MOST_LINE_BYTES
            line.append(part)
            room -= size
    if line:
        yield " ".join(line)


def _parts(word: str) -> list[str]:
    if len(word.encode()) < MOST_LINE_BYTES:
        return [word]
    step = MOST_LINE_BYTES // 4 - 1  # a character takes four bytes at most
    return [word[start : start + step] for start in range(0, len(word), step)]


def train_pieces(texts: Iterable[str], size: int) -> bytes:
    """Trains a SentencePiece unigram model on a catalogue's own text and queries.

    Rare characters are spelt in bytes, so that no text is unknown.

    Args:
      texts: one text an item or query, of any length; empty ones do not count.
      size: pieces at most, the 256 bytes and 3 control pieces included; small text has fewer.

    Raises:
      UserError: no text, or a size too small for the bytes and characters.
    """
    lines = [line for text in texts for line in lines_of(text)]
    if not lines:
        raise UserError(
            "expected text of items or queries, found none; pass a SentencePiece model by path or "
            "a catalogue with titles"
        )
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(lines),
            model_writer=out,
            vocab_size=size,
            model_type="unigram",
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=0.9995,
            pad_id=PADDING,
            eos_id=END,
            unk_id=2,
            bos_id=-1,
            # One thread, so that the same text gives the same pieces.
            num_threads=1,
            minloglevel=3,
        )
    except RuntimeError:
        raise UserError(
            f"expected more pieces than the text's characters and 259, found size={size}; raise it"
        ) from None
    return out.getvalue()


class Vocabulary:
    """Turns text and codes into one range of ids, and back.

    Args:
      model: a SentencePiece model, from `read_pieces` or `train_pieces`.
      shared, semantic, collaborative: codes of each level of the three kinds of codebooks
        (M, S, R). One of the specific kinds may be empty (single-source identifiers).
      of_pieces: whether identifiers are text pieces, so that there are no codebooks at all.

    Raises:
      UserError: no code tokens, or no SentencePiece model.
    """

    def __init__(
        self,
        model: bytes,
        *,
        shared: Sequence[int],
        semantic: Sequence[int],
        collaborative: Sequence[int],
        of_pieces: bool = False,
    ):
        self._model, self._of_pieces = model, of_pieces
        self._pieces = processor_of(model, "what was passed")
        self._sizes = {"M": tuple(shared), "S": tuple(semantic), "R": tuple(collaborative)}
        every = sum(self._sizes.values(), ())
        if bool(every) is of_pieces or min(every, default=1) < 1:
            raise UserError(
                f"expected code tokens in the vocabulary, found codebooks of {self._sizes}; make "
                "it from an identifier table"
            )
        self.text_rows = len(self._pieces)
        self.behaviours = {b: self.text_rows + i for i, b in enumerate(BEHAVIOURS)}
        start = self.text_rows + len(BEHAVIOURS)
        self._starts: dict[str, tuple[int, ...]] = {}
        for letter, sizes in self._sizes.items():
            ends = list(itertools.accumulate(sizes, initial=start))
            self._starts[letter], start = tuple(ends[:-1]), ends[-1]
        self.size = start

    @property
    def digest(self) -> str:
        """Returns a digest that is equal where every token is."""
        return hashlib.sha256(self._model + json.dumps(self._sizes).encode()).hexdigest()

    def code_token(self, letter: str, level: int, code: int) -> int:
        """Returns the id of <M1_k>: letter 'M', 'S' or 'R', level from 1."""
        if not 0 <= code < self._sizes[letter][level - 1]:
            raise IndexError(f"expected a code below {self._sizes[letter][level - 1]}: {code}")
        return self._starts[letter][level - 1] + code

    def identifiers(self, codes: np.ndarray, kind: str) -> np.ndarray:
        """Tokens int32 [V, L_m + L_n] of codes [V, L_m + L_n], shared levels first, Eq. 5.

        Args:
          codes: integers; row 0 is padding's.
          kind: 'semantic' or 'collaborative'.

        Raises:
          UserError: another number of levels, or a code beyond its codebook.
        """
        letter = {"semantic": "S", "collaborative": "R"}[kind]
        sizes = np.array(self._sizes["M"] + self._sizes[letter])
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != len(sizes):
            raise UserError(
                f"expected {kind} identifiers of {len(sizes)} codes, found shape {codes.shape}; "
                "use the identifier table that the vocabulary was made from"
            )
        wrong = (codes < 0) | (codes >= sizes)
        if wrong.any():
            item, level = (int(place[0]) for place in np.nonzero(wrong))
            raise UserError(
                f"expected {kind} codes below {sizes.tolist()}, found {codes[item, level]} at "
                f"level {level + 1} of item {item}; use the table that the vocabulary was made from"
            )
        starts = np.array(self._starts["M"] + self._starts[letter])
        return (codes + starts).astype(np.int32)

    def sequences(self, codes: np.ndarray) -> np.ndarray:
        """Tokens int32 [V, L+1] of identifiers [V, L] of any length: codes, an end, padding.

        Args:
          codes: integers, text pieces or codes of the shared codebook; `identifiers.NO_CODE` after
            the last of an identifier.
        """
        start = 0 if self._of_pieces else self._starts["M"][0]
        lengths = (codes >= 0).sum(1, keepdims=True)
        tokens: np.ndarray = np.full((len(codes), codes.shape[1] + 1), PADDING, np.int32)
        tokens[:, :-1] = np.where(codes >= 0, codes + start, PADDING)
        np.put_along_axis(tokens, lengths, END, 1)
        return tokens

    def encode_text(self, text: str) -> list[int]:
        """Pieces of a text, without an end; empty for an empty text."""
        return self._pieces.EncodeAsIds(text)

    def check_query(self, text: str) -> None:
        """Refuses a query that a user types and that the model could not tell from others.

        In a log one such query must not end a run: there it is read as the unknown piece.

        Raises:
          UserError: no piece of it is known (a model without bytes, another language).
        """
        space = self._pieces.PieceToId("▁")
        if not set(self.encode_text(text)) - {self._pieces.unk_id(), space}:
            raise UserError(
                f"expected a query in characters that the SentencePiece model knows, found "
                f"{text[:60]!r}; rephrase it, or use a model of that language"
            )

    def separator(self) -> list[int]:
        """Returns what stands between two events of a history: ';'."""
        piece = self._pieces.PieceToId(";")
        return [piece] if piece != self._pieces.unk_id() else self.encode_text(";")

    def text_of(self, tokens: Iterable[int]) -> str:
        """Returns the text up to the end; behaviour and code tokens appear by name."""
        words: list[str] = []
        run: list[int] = []
        for token in (*itertools.takewhile(lambda t: t != END, map(int, tokens)), -1):
            if 0 <= token < self.text_rows:
                run += [token] * (token != PADDING)
                continue
            if run:
                words.append(self._pieces.DecodeIds(run))
                run = []
            if token >= 0:
                words.append(self.name(token))
        return " ".join(words)

    def name(self, token: int) -> str:
        """Returns the piece, '<R_I>' or '<M1_k>' of an id in [0, size)."""
        if token < self.text_rows:
            return self._pieces.IdToPiece(token)
        for behaviour, number in self.behaviours.items():
            if token == number:
                return behaviour
        for letter, starts in self._starts.items():
            for level, (start, size) in enumerate(zip(starts, self._sizes[letter]), 1):
                if start <= token < start + size:
                    return f"<{letter}{level}_{token - start}>"
        raise IndexError(f"expected a token below {self.size}, found {token}")

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes pieces.model and codes.json, the latter with the checksums of both, last."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with open_atomically(str(folder / _MODEL)) as file:
            file.write(self._model)
        sizes = {letter: list(sizes) for letter, sizes in self._sizes.items()}
        files = checksums.describe(str(folder), [_MODEL])
        content = {"sizes": sizes, "of_pieces": self._of_pieces, "files": files}
        checksums.write_sealed(str(folder / _CODES), content)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> Vocabulary:
        """Reads the vocabulary that `save` wrote.

        Raises:
          UserError: a file is missing or malformed, or there are no code tokens.
        """
        file, again = pathlib.Path(folder) / _CODES, "save the vocabulary again"
        described = checksums.read_sealed(str(file), "code tokens beside the pieces", again)
        checksums.check(str(folder), described.get("files"), again)
        model = read_pieces(pathlib.Path(folder) / _MODEL)
        try:
            sizes = described["sizes"]
            shared, semantic, collaborative = ([int(n) for n in sizes[c]] for c in "MSR")
        except (ValueError, KeyError, TypeError, OverflowError):
            raise UserError(
                f"expected the codebooks M, S and R in {file}, found something else; save the "
                "vocabulary again"
            ) from None
        return cls(
            model,
            shared=shared,
            semantic=semantic,
            collaborative=collaborative,
            of_pieces=described.get("of_pieces") is True,
        )
