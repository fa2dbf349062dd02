"""Keeps in a run's folder what scoring needs of its data, so that the data need not be there.

`serving/` of the folder holds `log/`, a prepared log (`prepared_log`) with all names, texts and
facts and as many of each user's latest events as the run's config asks for
(`config.data.kept_events`), `arrays.npz`, and `kept.json`, which is sealed and has the checksums of
both. The folder is renamed into place when training begins: a killed run leaves a whole one or
none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import scipy.sparse
from ml_collections import config_dict

from core import checksums
from core.errors import UserError
from core.files import load_npz, save_npz, scratch_folder
from input_pipelines import prepared_log, splits
from input_pipelines.dataset import Batch, Dataset, search_filter
from input_pipelines.log import Log, take_ragged

FOLDER = "serving"
# Raised where folders come to hold something else.
FORMAT = 1
EVERY = -1
_LOG, _ARRAYS, _RECORD = "log", "arrays.npz", "kept.json"
_WHAT = "what a run keeps of its data"
_FITTED = "fitted/"
_NO_EXAMPLES = splits.Examples(np.zeros(0, np.int32), *(np.zeros(0, np.int64) for _ in range(3)))


def _remedy(folder: str) -> str:
    return f"remove {folder} and run launch.train with this --workdir and its data again"


def latest_events(log: Log, most: int) -> Log:
    """Returns the log with each user's latest events alone; names, texts and facts stay.

    What is told of searches and users beside words and clicks goes, as does a published split.

    Args:
      most: clicks, and searches, of a user; -1 returns the log itself.
    """
    if most == EVERY:
        return log

    def latest(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        offsets = np.asarray(offsets)
        counts = np.minimum(np.diff(offsets), most)
        ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return ends, np.repeat(offsets[1:] - ends[1:], counts) + np.arange(ends[-1])

    rec_offsets, clicks = latest(log.rec_offsets)
    search_offsets, searches = latest(log.search_offsets)
    word_offsets, words = take_ragged(np.asarray(log.word_offsets), searches)
    click_offsets, clicked = take_ragged(np.asarray(log.click_offsets), searches)
    return Log(
        name=log.name,
        is_sample=log.is_sample,
        **{
            name: getattr(log, name)
            for kind in ("user_id", "item_id", "word_text", "text", "fact")
            for name in (f"{kind}_offsets", f"{kind}_bytes")
        },
        rec_offsets=rec_offsets,
        rec_items=np.asarray(log.rec_items)[clicks],
        rec_times=np.asarray(log.rec_times)[clicks],
        search_offsets=search_offsets,
        search_times=np.asarray(log.search_times)[searches],
        word_offsets=word_offsets,
        word_ids=np.asarray(log.word_ids)[words],
        click_offsets=click_offsets,
        click_items=np.asarray(log.click_items)[clicked],
        hash=log.hash,
        time_unit=log.time_unit,
    )


def keep(
    data: Dataset, workdir: str, most: int, fitted: Mapping[str, np.ndarray] | None = None
) -> None:
    """Writes `serving/` of a run's folder, unless it holds this already.

    Args:
      workdir: the run's folder.
      most: events of each kind and user; -1 keeps the log as it is.
      fitted: arrays of a method that is fitted at once, by name.

    Raises:
      UserError: it cannot be written.
    """
    folder = os.path.join(workdir, FOLDER)
    if is_kept(workdir):
        with contextlib.suppress(UserError):
            before = _record(folder)
            if (before["hash"], before["events"]) == (data.log.hash, most):
                return
    item_words = data.item_words()
    arrays = {"trained_users": data.trained_users}
    arrays |= {} if item_words is None else {"item_words": item_words}
    arrays |= {_FITTED + name: array for name, array in (fitted or {}).items()}
    with scratch_folder(folder) as temporary:
        log = os.path.join(temporary, _LOG)
        prepared_log.save_log(latest_events(data.log, most), log)
        save_npz(os.path.join(temporary, _ARRAYS), arrays)
        record = {
            "format": FORMAT,
            "events": most,
            "hash": data.log.hash,
            "training_split": data.training_split,
            "files": checksums.describe(temporary, [_ARRAYS]),
        }
        checksums.write_sealed(os.path.join(temporary, _RECORD), record)
        if os.path.isdir(folder):
            # Of other events or damaged: the same command makes it anew if it is killed here.
            shutil.rmtree(folder)
        os.replace(temporary, folder)


def is_kept(workdir: str) -> bool:
    """Tells whether a run's folder has what `keep` writes."""
    return os.path.isfile(os.path.join(workdir, FOLDER, _RECORD))


def keeps_every_event(workdir: str) -> bool:
    """Tells whether a run's folder has the whole log.

    Raises:
      UserError: the record of what it has is damaged.
    """
    return is_kept(workdir) and _record(os.path.join(workdir, FOLDER))["events"] == EVERY


def _record(folder: str) -> dict[str, Any]:
    path, remedy = os.path.join(folder, _RECORD), _remedy(folder)
    record = checksums.read_sealed(path, _WHAT, remedy)
    if record.get("format") != FORMAT:
        raise UserError(
            f"expected format {FORMAT} in {path}, found {record.get('format')!r}; {remedy}"
        )
    return record


def open_kept(config: config_dict.ConfigDict, workdir: str) -> Dataset:
    """Opens the data that a run's folder has kept: whole where it has every event.

    Raises:
      UserError: it has kept none, or a file is missing, cut or changed.
    """
    folder = os.path.join(workdir, FOLDER)
    if not is_kept(workdir):
        raise UserError(
            f"expected {_WHAT} in {folder}, found none; run launch.train with this --workdir and "
            "its data again"
        )
    record = _record(folder)
    remedy = _remedy(folder)
    checksums.check(folder, record["files"], remedy)
    arrays = load_npz(os.path.join(folder, _ARRAYS), _WHAT, remedy)
    if record["events"] == EVERY:
        return _WholeKeptData(config, workdir)
    return KeptData(config, folder, record, arrays)


class _WholeKeptData(Dataset):
    """Reads the whole log from a run's folder instead of from `config.data_dir`."""

    def __init__(self, config: config_dict.ConfigDict, workdir: str):
        self._folder = os.path.join(workdir, FOLDER)
        super().__init__(config, workdir)

    def _open(self, config: config_dict.ConfigDict) -> None:
        self.cache_dir = ""
        self.raw_dir = self._folder
        self.directory = os.path.join(self._folder, _LOG)
        self.log = prepared_log.load_log(self.directory)


class KeptData(Dataset):
    """Opens a run's experiment for scoring, without the examples that it trained on.

    The log has all names, and as many events as were kept; the splits are empty.

    Attributes:
      fitted: arrays of a method that is fitted at once, by name.
    """

    def __init__(
        self,
        config: config_dict.ConfigDict,
        folder: str,
        record: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
    ):
        self._config = config
        self.cache_dir = ""
        self.raw_dir = folder
        self.directory = os.path.join(folder, _LOG)
        self.log = prepared_log.load_log(self.directory)
        self.splits = splits.Splits(
            config.data.split, np.zeros(0, np.int64), _NO_EXAMPLES, _NO_EXAMPLES, _NO_EXAMPLES
        )
        self.label = f"{self.log.name} (sample data)" if self.log.is_sample else self.log.name
        self.trained_users = arrays["trained_users"]
        self._item_words = arrays.get("item_words")
        self.fitted = {
            name.removeprefix(_FITTED): array
            for name, array in arrays.items()
            if name.startswith(_FITTED)
        }
        self._training_split = record["training_split"]
        self._filter = search_filter(config, os.path.dirname(folder))
        self._said: set[str] = set()

    def _absent(self) -> UserError:
        return UserError(
            f"expected the data of the run in {os.path.dirname(self.raw_dir)} for this, found what "
            "it has kept to recommend; bring the data back, or train with "
            "--config.data.kept_events=-1"
        )

    @property
    def training_split(self) -> str:  # type: ignore[override]
        return self._training_split

    def item_words(self) -> np.ndarray | None:
        return self._item_words

    def training_clicks(self) -> scipy.sparse.csr_array:
        raise self._absent()

    def training(self, **settings: Any) -> NoReturn:
        del settings
        raise self._absent()

    def selection(self, task: str = "recommendation") -> str:
        return self._config.eval.selection

    def sampled(self, split: str, protocol: str) -> Iterator[Batch]:
        """Yields one batch of padding, for its shapes."""
        del split, protocol
        yield self._padding(2, self._config.eval.batch_size)

    def full(self, split: str) -> Iterator[tuple[Batch, np.ndarray]]:
        """Yields one batch of padding, for its shapes."""
        del split
        size = self._config.eval.full_batch_size
        yield self._padding(1, size), np.zeros((size, 1), np.int32)

    def _padding(self, candidates: int, size: int) -> Batch:
        shape = self.shape(candidates)
        sizes = shape.sizes(size)
        return {
            name: np.zeros([sizes[axis] for axis in axes.split()], dtype)
            for name, (axes, dtype, _) in shape.fields().items()
        }
