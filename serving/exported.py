"""Opens an export with JAX, NumPy and safetensors alone, and answers with it.

An export is data of others: every file is compared with its SHA-256 in the manifest before it is
used, nothing of it is a pickle, and a file that was cut, changed or is missing, or a format of a
newer library, is told in one line.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jax import export as jax_export

from core.errors import UserError
from core.files import load_npy, read_json
from input_pipelines import segmenters
from serving.answering import Answering
from serving.asking import Asking
from serving.histories import History, HistoryReader
from serving.item_descriptions import NewItem, known_words, parse, vectors_of
from serving.requests import SEARCH, Request

# Raised where files come to hold something else.
FORMAT = 2
MANIFEST, WEIGHTS, VECTORS = "manifest.json", "weights.safetensors", "item_vectors.npy"
ITEMS, USERS, WORDS = "items.json", "users.json", "words.json"
FUNCTION = ".stablehlo"
ITEM_ROWS, WORD_ROWS = "tables/item", "tables/word"
_FILES = frozenset(
    [WEIGHTS, VECTORS, ITEMS, USERS, WORDS]
    + [
        name + FUNCTION
        for name in ("represent", "score", "catalogue", "vector", "every_k", "search")
    ]
)
_NEEDED = _FILES - {name + FUNCTION for name in ("vector", "every_k", "search")} - {VECTORS}
# Requests scored at once; fewer are filled up to the next size.
SIZES = (1, 4, 16, 64)
_JSON_BYTES = 2**31
_KINDS: dict[str, type | tuple[type, ...]] = {
    "method": str,
    "data": str,
    "segmenter": str,
    "splits_queries": bool,
    "use_search": bool,
    "gives_probabilities": bool,
    "dot_product": bool,
    "time_unit": str,
    "tasks": list,
    "max_steps": (int, type(None)),
    "active_steps": (int, type(None)),
    "new_items": (dict, type(None)),
    "sizes": dict,
    "files": dict,
}
_SIZES = (
    "items",
    "users",
    "words",
    "rec_length",
    "search_length",
    "words_of_query",
    "clicks_of_search",
)


def is_export(folder: str) -> bool:
    """Tells whether a folder has the manifest of an export."""
    return os.path.isfile(os.path.join(folder, MANIFEST))


def _again(folder: str) -> str:
    return f"copy {folder} again, or export the run again with launch.export"


def _digest_of(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def described(path: str) -> dict[str, Any]:
    """Returns what a manifest says of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": os.path.getsize(path), "sha256": digest}


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a manifest with the SHA-256 of its own content."""
    values = json.loads(json.dumps(dict(manifest)))
    return values | {"sha256": _digest_of(values)}


def read_manifest(folder: str) -> dict[str, Any]:
    """Reads the manifest of an export, and compares every file with it.

    Raises:
      UserError: no export there, one of a newer format, or a file is missing, cut or changed.
    """
    path, again = os.path.join(folder, MANIFEST), _again(folder)
    manifest = read_json(path, "the manifest of an export", again)
    number = manifest.get("format")
    if isinstance(number, int) and number != FORMAT:
        newer = number > FORMAT
        raise UserError(
            f"expected an export of format {FORMAT} in {folder}, found {number}, of "
            f"{'a newer' if newer else 'an older'} library "
            f"({str(manifest.get('library'))[:20]}); "
            f"{'update the library' if newer else 'export the run again with launch.export'}"
        )
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    if number != FORMAT or manifest.get("sha256") != _digest_of(content):
        raise UserError(
            f"expected the manifest as it was written in {path}, found another; {again}"
        )
    for key, kind in _KINDS.items():
        if not isinstance(manifest.get(key), kind):
            raise UserError(f"expected the key {key} in {path}, found none that fits; {again}")
    sizes = manifest["sizes"]
    if any(not isinstance(sizes.get(name), int) or sizes[name] < 0 for name in _SIZES):
        raise UserError(f"expected whole numbers as sizes in {path}, found others; {again}")
    files = manifest["files"]
    needed = _NEEDED | ({"vector" + FUNCTION, VECTORS} if manifest["dot_product"] else set())
    if not needed <= set(files) <= _FILES:
        odd = sorted(set(files) ^ needed)
        raise UserError(f"expected the files of an export in {path}, found {odd[:3]}; {again}")
    for name, described in files.items():
        _check_file(folder, name, described)
    return manifest


def _check_file(folder: str, name: str, described: Any) -> None:
    path, again = os.path.join(folder, name), _again(folder)
    wanted = described if isinstance(described, dict) else {}
    try:
        size = os.path.getsize(path)
        if size != wanted.get("bytes"):
            raise UserError(
                f"expected {wanted.get('bytes')} bytes in {path}, found {size}; {again}"
            )
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"expected {path}, found {error.strerror or error}; {again}") from None
    if digest != wanted.get("sha256"):
        raise UserError(f"expected {path} as it was exported, found it changed; {again}")


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Holds how many events, words and clicks a history has."""

    rec_length: int
    search_length: int
    words: int
    clicks: int


class ExportedLog:
    """Holds the names of an export as `input_pipelines.log.Log` does, and no events."""

    def __init__(self, users: Sequence[str], items: Sequence[str], words: Sequence[str]):
        self.user_ids, self.item_ids, self.words = (["", *names] for names in (users, items, words))
        self.num_items = len(items)
        self.rec_offsets = self.search_offsets = np.zeros(len(users) + 2, np.int64)
        self.rec_items = self.click_items = np.zeros(0, np.int32)
        self.rec_times = np.zeros(0, np.int64)


class ExportedData:
    """Holds what reading a history needs, as `input_pipelines.dataset.Dataset` does."""

    def __init__(
        self, log: ExportedLog, segmenter: str, splits_queries: bool, sizes: Mapping[str, int]
    ):
        self.log = log
        self._lengths = Lengths(
            sizes["rec_length"],
            sizes["search_length"],
            sizes["words_of_query"],
            sizes["clicks_of_search"],
        )
        self._split = segmenters.segmenter(segmenter)
        self._known = None if splits_queries else frozenset(log.words)

    def shape(self, candidates: int) -> Lengths:
        """Returns the lengths of histories."""
        del candidates
        return self._lengths

    def query_words(self, query: str) -> list[str]:
        """Splits what a user types into words, as those of the training log were split."""
        return segmenters.typed_words(query, self._split, self._known)


def history_arrays(
    histories: Sequence[History], lengths: Lengths, rows: int
) -> dict[str, np.ndarray]:
    """Returns what a model reads of histories, as `input_pipelines.batches.BATCH_FIELDS` has it.

    The users are left out. Rows beyond the histories are padding.
    """
    arrays = {
        "rec_items": np.zeros((rows, lengths.rec_length), np.int32),
        "query_words": np.zeros((rows, lengths.search_length, lengths.words), np.int32),
        "clicked_items": np.zeros((rows, lengths.search_length, lengths.clicks), np.int32),
        "rec_order": np.zeros((rows, lengths.rec_length), np.int32),
        "search_order": np.zeros((rows, lengths.search_length), np.int32),
    }
    for row, history in enumerate(histories):
        clicks = history.clicks[max(0, len(history.clicks) - lengths.rec_length) :]
        searches = [one for one in history.searches if one.words or one.clicked]
        searches = searches[max(0, len(searches) - lengths.search_length) :]
        # Equal times: clicks first.
        order = sorted(
            [(one.time, 0, place) for place, one in enumerate(clicks)]
            + [(one.time, 1, place) for place, one in enumerate(searches)]
        )
        for number, (_, kind, place) in enumerate(order):
            arrays["search_order" if kind else "rec_order"][row, place] = number
        for place, click in enumerate(clicks):
            arrays["rec_items"][row, place] = click.item
        for place, search in enumerate(searches):
            for name, values, most in (
                ("query_words", search.words, lengths.words),
                ("clicked_items", search.clicked, lengths.clicks),
            ):
                values = values[:most]
                arrays[name][row, place, : len(values)] = values
    return arrays


class ExportedModel(Answering, Asking):
    """Answers requests with an export: `requests.Answers`.

    Users of the training log are known by their own row; what they did then is not in an export.

    Args:
      folder: of launch.export.
      items: that joined after training, described as `item_descriptions.NewItem`, for an export of
        a model whose items have words.

    Attributes:
      manifest: what the export is.
      vectors: float32 [V, D] of the items, in the order of `data.log.item_ids[1:]`; D is 0 of a
        method without vectors.

    Raises:
      UserError: no export there, one of a newer format, or a file is missing, cut or changed; or it
        cannot score new items.
    """

    def __init__(self, folder: str, items: Iterable[Any] | None = None):
        folder = os.path.abspath(folder)
        self.manifest = manifest = read_manifest(folder)
        again = _again(folder)

        def path(name: str) -> str:
            return os.path.join(folder, name)

        def names(file: str, *keys: str) -> list[Any]:
            content = read_json(path(file), "the names of an export", again, max_bytes=_JSON_BYTES)
            return [content[key] for key in keys]

        sizes = manifest["sizes"]
        try:
            ids, titles = names(ITEMS, "ids", "titles")
            users, trained = names(USERS, "ids", "trained")
            (words,) = names(WORDS, "words")
            counts = (len(ids), len(titles), len(users), len(trained), len(words))
            wanted = tuple(sizes[n] for n in ("items", "items", "users", "users", "words"))
            if counts != wanted:
                raise ValueError(f"{counts} names where {wanted} are told")
            weights = safetensors.numpy.load_file(path(WEIGHTS))
            functions = {}
            for file in manifest["files"]:
                if file.endswith(FUNCTION):
                    with open(path(file), "rb") as opened:
                        content = bytearray(opened.read())
                    functions[file.removesuffix(FUNCTION)] = jax_export.deserialize(content)
        # What deserialize raises depends on the versions of JAX.
        except Exception as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"expected an export that JAX {jax.__version__} can run in {folder}, found one of "
                f"JAX {str(manifest.get('jax'))[:20]} ({type(error).__name__}); {again}"
            ) from error
        self.data = ExportedData(
            ExportedLog(users, ids, words), manifest["segmenter"], manifest["splits_queries"], sizes
        )
        self.vectors = np.zeros((len(ids), 0), np.float32)
        if VECTORS in manifest["files"]:
            what = "the vectors of an export"
            self.vectors = load_npy(path(VECTORS), what, again, memory_map=True)
        if items is not None:
            new, rows = self._joining(items, weights)
            weights[ITEM_ROWS] = np.concatenate([weights[ITEM_ROWS], rows])
            self.vectors = weights[ITEM_ROWS][1:]
            ids, titles = ids + [one.item for one in new], titles + [one.title for one in new]
            self.data.log = ExportedLog(users, ids, words)
        self.name = f"{manifest['method']} on {manifest['data']}"
        self.tasks = tuple(manifest["tasks"])
        self.max_steps = manifest["max_steps"]
        self.time_unit = manifest["time_unit"]
        self.gives_probabilities = manifest["gives_probabilities"]
        self.catalogue_size = len(ids)
        self.titles = dict(zip(ids, titles, strict=True))
        self.reader = HistoryReader(cast(Any, self.data))
        self._trained = np.array([False, *trained], bool)
        self._weights = jax.device_put(weights)
        self._functions = functions
        self._own_steps = manifest["active_steps"]

    def _joining(
        self, items: Iterable[Any], weights: Mapping[str, np.ndarray]
    ) -> tuple[list[NewItem], np.ndarray]:
        """Returns the items that join the catalogue, and their vectors."""
        known, words = self.manifest["new_items"], self.data.log.words
        if known is None:
            raise UserError(
                "expected the export of a run whose items have words (config.data.item_words) to "
                f"add items to, found one of {self.manifest['method']} that knows items by their "
                "ids alone; train with item words, or on data with these items (launch.train "
                "--from)"
            )
        new, of_items = known_words(
            parse(items),
            set(self.data.log.item_ids),
            self.data.query_words,
            {word: row for row, word in enumerate(words) if row},
            known["words"],
        )
        return new, vectors_of(of_items, np.array(known["mean_row"]), weights[WORD_ROWS])

    @classmethod
    def load(cls, folder: str) -> ExportedModel:
        """Opens an export; as the constructor."""
        return cls(folder)

    def refusal(self, request: Request) -> UserError | None:
        if request.query is not None and SEARCH not in self.tasks:
            return UserError(
                f"expected a question without a query for {self.name}, found one with it; only "
                "models that search answer it"
            )
        return super().refusal(request)

    def arrays(self, histories: Sequence[History]) -> tuple[dict[str, np.ndarray], int]:
        """Returns what the model reads of at most 64 histories, and how many rows that has."""
        rows = next(size for size in SIZES if len(histories) <= size)
        lengths = self.data.shape(1)
        if not self.manifest["use_search"]:
            histories = [dataclasses.replace(one, searches=()) for one in histories]
        users = np.zeros(rows, np.int32)
        shared = len(self._trained)
        for row, history in enumerate(histories):
            users[row] = history.user if self._trained[history.user] else shared
        return history_arrays(histories, lengths, rows) | {"user": users}, rows

    def steps(self, wanted: Sequence[int | None], rows: int) -> np.ndarray:
        """Returns K of every row, int32 [rows, 1]; None is the run's own."""
        own = self._own_steps or 0
        steps = np.full((rows, 1), own, np.int32)
        for row, k in enumerate(wanted):
            steps[row] = own if k is None else k
        return steps

    def scores(
        self,
        histories: Sequence[History],
        steps: Sequence[int | None] | None = None,
        queries: Sequence[Sequence[int]] | None = None,
    ) -> np.ndarray:
        parts = []
        for start in range(0, len(histories), SIZES[-1]):
            part = histories[start : start + SIZES[-1]]
            arrays, rows = self.arrays(part)
            if queries is None:
                wanted = self.steps((steps or [])[start : start + len(part)], rows)
                scores = self._catalogue(self._weights, arrays, wanted)
            else:
                query = np.zeros((rows, self.data.shape(1).words), np.int32)
                for row, words in enumerate(queries[start : start + len(part)]):
                    first_words = words[: query.shape[1]]
                    query[row, : len(first_words)] = first_words
                scores = self._search(self._weights, arrays, query)
            parts.append(np.asarray(scores)[: len(part)])
        return np.concatenate(parts)

    def scores_of_every_k(self, history: History) -> np.ndarray:
        arrays, _ = self.arrays([history])
        return np.asarray(self._every_k(self._weights, arrays))[:, 0]

    def user_vectors(self, histories: Sequence[History]) -> np.ndarray:
        """Returns float32 [n, D], whose product with an item's vector is the score.

        The manifest of such a model has `dot_product`.
        """
        parts = []
        for start in range(0, len(histories), SIZES[-1]):
            part = histories[start : start + SIZES[-1]]
            arrays, rows = self.arrays(part)
            vectors = self._vector(self._weights, arrays, self.steps([], rows))
            parts.append(np.asarray(vectors)[: len(part)])
        return np.concatenate(parts)

    def scores_among(
        self,
        histories: Sequence[History],
        items: np.ndarray,
        steps: Sequence[int | None] | None = None,
    ) -> np.ndarray:
        """Scores each history's own items, float32 [n, N], -inf for padding.

        Args:
          items: numbers int32 [n, N], 0 for padding.
        """
        parts = []
        for start in range(0, len(histories), SIZES[-1]):
            part = slice(start, start + SIZES[-1])
            arrays, rows = self.arrays(histories[part])
            wanted = self.steps((steps or [])[part], rows)
            own = np.zeros((rows, items.shape[1]), np.int32)
            own[: len(histories[part])] = items[part]
            scores = self._score(self._weights, arrays, own, wanted)
            parts.append(np.asarray(scores)[: len(histories[part])])
        return np.where(items > 0, np.concatenate(parts), -np.inf).astype(np.float32)

    @functools.cached_property
    def _vector(self) -> Any:
        represent, vector = (self._functions[name].call for name in ("represent", "vector"))
        return jax.jit(
            lambda weights, arrays, steps: vector(weights, represent(weights, arrays), steps)
        )

    @functools.cached_property
    def _catalogue(self) -> Any:
        represent, catalogue = (self._functions[n].call for n in ("represent", "catalogue"))
        return jax.jit(
            lambda weights, arrays, steps: catalogue(weights, represent(weights, arrays), steps)
        )

    @functools.cached_property
    def _search(self) -> Any:
        return jax.jit(self._functions["search"].call)

    @functools.cached_property
    def _score(self) -> Any:
        represent, score = (self._functions[name].call for name in ("represent", "score"))
        return jax.jit(
            lambda weights, arrays, items, steps: score(
                weights, represent(weights, arrays), items, steps
            )
        )

    @functools.cached_property
    def _every_k(self) -> Any:
        represent, every_k = (self._functions[name].call for name in ("represent", "every_k"))
        return jax.jit(lambda weights, arrays: every_k(weights, represent(weights, arrays)))
