"""Defines the folder in which GenSAR's examples go to T5X: written by launch.export_t5x, read by
SeqIO.

export.json                     sizes, lengths and rates (`Export`)
vocabulary/                     of `gensar_jax.vocabulary.Vocabulary.save`
identifiers.npz                 tokens of the items, by kind
items.txt                       the items' ids as in the raw data, one a line
TASK-SPLIT.tfrecord-I-of-N      tf.train.Example: inputs, targets; user, item, seen
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from core import checksums
from core.errors import UserError
from core.files import load_npz, save_npz, scratch_folder, write_atomically
from gensar_jax.prompts import Example
from gensar_jax.vocabulary import Vocabulary

_DESCRIPTION, _VOCABULARY, _IDENTIFIERS, _ITEMS = (
    "export.json",
    "vocabulary",
    "identifiers.npz",
    "items.txt",
)
_EXPORT = "pass a folder of launch.export_t5x as --gin.EXPORT"
# Files of a split, so that as many hosts read apart.
_FILES = 16


class Record(NamedTuple):
    """Holds an example of a split.

    Attributes:
      task, split: 'nrip' and 'train', for instance.
      example: tokens.
      user: their id; empty in training.
      item: number of the target; 0 in training.
      seen: numbers of items that do not count in a ranking.
    """

    task: str
    split: str
    example: Example
    user: str = ""
    item: int = 0
    seen: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Export:
    """Holds what T5X must know of an exported folder.

    Attributes:
      vocab_size: W.
      inputs, targets: T and S, tokens of a packed row.
      rates: of the mixture, examples an epoch by task.
      sizes: examples by task and split.
      forced: decoder tokens before an identifier, by task 'recommendation' or 'search'.
      data: what the log is called; the embedded sample says so.
      data_hash, table_hash: of the log and the identifiers.
      files: sizes and checksums of identifiers.npz and items.txt; the other files carry their own
        (TFRecords by record, the vocabulary in its folder).
    """

    vocab_size: int
    inputs: int
    targets: int
    rates: dict[str, int]
    sizes: dict[str, dict[str, int]]
    forced: dict[str, list[int]]
    data: str
    data_hash: str
    table_hash: str
    files: dict[str, dict[str, Any]]


def check_place(folder: str) -> None:
    """Refuses a folder that holds something.

    Raises:
      UserError: it exists and is not empty, or the folder above it does not exist.
    """
    above = os.path.dirname(os.path.abspath(folder))
    if not os.path.isdir(above):
        raise UserError(f"expected --out=FOLDER in a folder that exists, found no {above}")
    if os.path.exists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise UserError(f"expected --out=FOLDER that is new, found {folder}; pass another name")


def write(
    folder: str,
    records: Iterable[Record],
    *,
    vocabulary: Vocabulary,
    identifiers: Mapping[str, np.ndarray],
    items: Sequence[str],
    splits: Mapping[str, Sequence[str]],
    description: Mapping[str, Any],
) -> Export:
    """Writes a folder, whole or not at all.

    Args:
      folder: a new one.
      records: every example; a task's and split's order is kept.
      vocabulary, identifiers: as `GenSARExamples` has them; identifiers int32 [V+1, L].
      items: ids of the items 1..V.
      splits: of each task.
      description: the other attributes of `Export`.

    Raises:
      UserError: as `check_place`.
    """
    check_place(folder)
    with scratch_folder(folder.rstrip("/")) as partial:
        vocabulary.save(os.path.join(partial, _VOCABULARY))
        sizes = _write_records(partial, records, splits)
        save_npz(os.path.join(partial, _IDENTIFIERS), identifiers)
        write_atomically(os.path.join(partial, _ITEMS), "".join(f"{item}\n" for item in items))
        export = Export(
            vocab_size=vocabulary.size,
            sizes=sizes,
            files=checksums.describe(partial, [_IDENTIFIERS, _ITEMS]),
            **description,
        )
        checksums.write_sealed(os.path.join(partial, _DESCRIPTION), dataclasses.asdict(export))
        if os.path.isdir(folder):
            os.rmdir(folder)
        os.rename(partial, folder)
    return export


def _write_records(
    folder: str, records: Iterable[Record], splits: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, int]]:
    import tensorflow as tf

    def feature(values: Sequence[int]) -> Any:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    sizes = {task: dict.fromkeys(names, 0) for task, names in splits.items()}
    with contextlib.ExitStack() as opened:
        writers = {
            (task, split): [
                opened.enter_context(tf.io.TFRecordWriter(path))
                for path in _paths(folder, task, split)
            ]
            for task, names in splits.items()
            for split in names
        }
        for record in records:
            number = sizes[record.task][record.split]
            features = {
                "inputs": feature(record.example.inputs),
                "targets": feature(record.example.targets),
                "user": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[record.user.encode()])
                ),
                "item": feature([record.item]),
                "seen": feature(record.seen),
            }
            proto = tf.train.Example(features=tf.train.Features(feature=features))
            writers[record.task, record.split][number % _FILES].write(proto.SerializeToString())
            sizes[record.task][record.split] += 1
    return sizes


def _paths(folder: str, task: str, split: str) -> Iterator[str]:
    for number in range(_FILES):
        yield os.path.join(folder, f"{task}-{split}.tfrecord-{number:05d}-of-{_FILES:05d}")


def pattern(folder: str, task: str, split: str) -> str:
    """Returns what matches the files of a task's split."""
    return os.path.join(folder, f"{task}-{split}.tfrecord-*")


def read(folder: str) -> Export:
    """Reads a folder's description, and holds its identifiers and items to their checksums.

    Raises:
      UserError: no folder that `write` wrote, or one that has changed since.
    """
    path = os.path.join(folder, _DESCRIPTION)
    description = checksums.read_sealed(path, "the description of an export", _EXPORT)
    kinds = {
        **dict.fromkeys(("vocab_size", "inputs", "targets"), int),
        **dict.fromkeys(("rates", "sizes", "forced", "files"), dict),
        **dict.fromkeys(("data", "data_hash", "table_hash"), str),
    }
    wrong = [name for name, kind in kinds.items() if type(description.get(name)) is not kind]
    wrong += sorted(description.keys() - kinds.keys())
    if wrong:
        raise UserError(
            f"expected a folder of launch.export_t5x, found no fitting {', '.join(wrong)} in "
            f"{path}; {_EXPORT}"
        )
    checksums.check(folder, description["files"], _EXPORT)
    return Export(**description)


def vocabulary(folder: str) -> Vocabulary:
    """Reads the tokens of a folder."""
    return Vocabulary.load(os.path.join(folder, _VOCABULARY))


def identifiers(folder: str, kind: str) -> np.ndarray:
    """Reads the tokens int32 [V+1, L] of the 'semantic' or 'collaborative' identifiers.

    Raises:
      UserError: as `read`, or there are none of the kind.
    """
    read(folder)
    path = os.path.join(folder, _IDENTIFIERS)
    arrays = load_npz(path, "the identifiers of an export", _EXPORT)
    if kind not in arrays or arrays[kind].dtype.kind not in "iu" or arrays[kind].ndim != 2:
        raise UserError(f"expected {kind} identifiers in {path}, found none; {_EXPORT}")
    return arrays[kind]


def items(folder: str) -> list[str]:
    """Reads the ids of the items 1..V. Raises UserError as `read`."""
    read(folder)
    path = os.path.join(folder, _ITEMS)
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            return [line.removesuffix("\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"expected the items of an export at {path}, found {type(error).__name__}; {_EXPORT}"
        ) from None
