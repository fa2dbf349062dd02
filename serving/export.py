"""Exports a ranker: what it computes, its weights and its names, without its training.

An export is a folder that `exported.ExportedModel` opens with JAX, NumPy and safetensors alone:

    manifest.json             what it is, of which versions, and the SHA-256 of every file
    weights.safetensors       the network's parameters and the tables, float32
    represent.stablehlo       (weights, histories) -> what scoring needs of them
    score.stablehlo           (weights, that, numbers [B, N]) -> scores [B, N]
    catalogue.stablehlo       (weights, that, K [B, 1]) -> scores [B, V+1]
    vector.stablehlo          (weights, that, K [B, 1]) -> the user's vector [B, D], of a model
                              whose score is the product of that and the item's
    every_k.stablehlo         (weights, that) -> scores [K+1, B, V+1], of a model that reasons
    search.stablehlo          (weights, histories, words [B, W]) -> scores [B, V+1], of one that
                              searches
    items.json, users.json, words.json   the names of rows 1, 2, ...; items with their titles
    item_vectors.npy          float32 [V, D], for an index, in the order of items.json; not of
                              popularity and item-kNN, which have none

The functions are `jax.export` artefacts (StableHLO) for any batch size, on CPU, CUDA and TPU; those
of trained models take an item table of any number of rows V+1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import export as jax_export

from core.errors import UserError
from core.files import save_npy, scratch_folder, write_atomically
from core.version import VERSION
from core.workdir import Workdir, commit_id
from experiments.restored import Restored
from input_pipelines.prepare import READERS
from lcrsr.embedding import TABLE_FIELDS
from lcrsr.ranker import is_dot_product, numbers_of
from serving import exported
from serving.fitted_functions import functions_of
from serving.histories import title_of
from serving.new_items import mean_row
from serving.recommender import restored_run
from serving.requests import RECOMMEND, SEARCH

PLATFORMS = ("cpu", "cuda", "tpu")
# Items of the catalogue that a network scores at once: more no longer fit the caches of a CPU.
_CHUNK = 256
_INPUTS = ("user", "rec_items", "query_words", "clicked_items", "rec_order", "search_order")


def check_place(out: str) -> None:
    """Raises UserError where an export would take the place of something else."""
    if (
        os.path.lexists(out)
        and not exported.is_export(out)
        and (not os.path.isdir(out) or os.listdir(out))
    ):
        raise UserError(
            f"expected a new folder or an export at --out={out}, found another; pass another --out"
        )


def export(workdir: str, out: str, stage: str | None = None) -> dict[str, Any]:
    """Exports the best state of a run's stage; returns the manifest.

    It is written to another folder, which then takes the place of `out`: a reader finds a whole
    export or none.

    Raises:
      UserError: no run there, it cannot be exported, or `out` is something else.
    """
    check_place(out)
    return export_run(restored_run(Workdir(workdir).path, stage), out)


def export_run(restored: Restored, out: str) -> dict[str, Any]:
    """Exports an opened run; otherwise as `export`."""
    out = os.path.abspath(out)
    check_place(out)
    ranker = restored.experiment.ranker
    if ranker is not None and "recommendation" not in ranker.tasks:
        raise UserError(
            f"expected a run of a method that recommends, found one of "
            f"{restored.experiment.config.method}, which cannot be exported yet; serve its "
            "--workdir"
        )
    if restored.experiment.config.data.get("search_filter"):
        raise UserError(
            f"expected a run that reads every search, found one with a filter in "
            f"{restored.workdir.path}, which "
            "cannot be exported yet; serve its --workdir"
        )
    weights, functions = _weights_and_functions(restored)
    with scratch_folder(out) as folder:
        _write(folder, restored, weights, functions)
        manifest = exported.sealed(_manifest(restored, folder))
        write_atomically(
            os.path.join(folder, exported.MANIFEST),
            json.dumps(manifest, indent=1, ensure_ascii=False) + "\n",
        )
        _rename(folder, out)
    return manifest


def _weights_and_functions(
    restored: Restored,
) -> tuple[dict[str, np.ndarray], dict[str, bytes]]:
    """Returns what an export holds of a model; refuses methods that cannot be exported."""
    experiment = restored.experiment
    if hasattr(experiment.ranker, "score_catalogue"):
        weights = _weights(restored)
        return weights, _functions(restored, weights)
    fitted = functions_of(
        experiment.config.method, experiment.fitted_arrays(), experiment.config.get("model")
    )
    (inputs, candidates, steps), _ = _inputs(restored)
    given = _shapes(fitted.weights)
    state = jax.eval_shape(fitted.represent, given, inputs)
    return fitted.weights, {
        "represent": _lowered(fitted.represent, given, inputs),
        "score": _lowered(fitted.score, given, state, candidates, steps),
        "catalogue": _lowered(fitted.catalogue, given, state, steps),
    }


def _inputs(restored: Restored) -> tuple[tuple[dict[str, Any], Any, Any], Any]:
    """Returns the shapes, for every batch size, of histories, candidates and numbers of steps; and
    the rows of an item table of any size.
    """
    shape = restored.data.shape(1)
    size, count, items = jax_export.symbolic_shape("b, n, v")
    axes = shape.sizes(0) | {"B": size}
    inputs = {
        name: jax.ShapeDtypeStruct(tuple(axes[axis] for axis in letters.split()), dtype)
        for name, (letters, dtype, _) in shape.fields().items()
        if name in _INPUTS
    }
    candidates = jax.ShapeDtypeStruct((size, count), jnp.int32)
    return (inputs, candidates, jax.ShapeDtypeStruct((size, 1), jnp.int32)), items


def _shapes(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {n: jax.ShapeDtypeStruct(value.shape, value.dtype) for n, value in weights.items()}


def _rename(folder: str, out: str) -> None:
    """Puts a folder in the place of an export, which is whole at every moment but one."""
    if not os.path.isdir(out):
        os.rename(folder, out)
        return
    with scratch_folder(out + ".old") as before:
        os.rename(out, os.path.join(before, "export"))
        os.rename(folder, out)


def _weights(restored: Restored) -> dict[str, np.ndarray]:
    """Returns the network's parameters and the scoring tables by their paths, float32."""
    trees = {"params": restored.params, "tables": restored.tables_with_words}
    leaves, _ = jax.tree_util.tree_flatten_with_path(trees)
    weights = {
        "/".join(str(getattr(key, "key", key)) for key in path): np.asarray(value, np.float32)
        for path, value in leaves
    }
    weights[exported.ITEM_ROWS] = weights[exported.ITEM_ROWS][: restored.data.log.num_items + 1]
    return weights


def _searches(ranker: Any) -> bool:
    """Tells whether a ranker was trained on searches and scores them."""
    return hasattr(ranker, "score_query") and "search" in ranker.tasks


def _nested(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tree that `_weights` has laid flat."""
    tree: dict[str, Any] = {}
    for path, value in weights.items():
        *folders, name = path.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = value
    return tree


def _functions(restored: Restored, weights: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Traces and lowers what is exported, for every batch size."""
    ranker, words = restored.experiment.ranker, restored.data.shape(1).words
    (inputs, candidates, steps), items = _inputs(restored)
    given = _shapes(weights)
    given[exported.ITEM_ROWS] = jax.ShapeDtypeStruct(
        (items, weights[exported.ITEM_ROWS].shape[1]), jnp.float32
    )
    table_of = {field: table for table in ranker.tables for field in TABLE_FIELDS[table]}
    numbers = numbers_of(ranker)
    reasons = "active_steps" in numbers
    # A product of two matrices needs no chunks.
    chunk = None if is_dot_product(ranker) else _CHUNK

    def rows_of(weights, batch):
        return {
            field: jnp.take(weights[f"tables/{table_of[field]}"], batch[field], 0, mode="clip")
            for field in batch
            if field in table_of
        }

    def users_of(weights, batch):
        # One candidate of padding: some networks look at their number, none at the item.
        batch = batch | {"candidates": jnp.zeros((batch["user"].shape[0], 1), jnp.int32)}
        rows = rows_of(weights, batch)
        params = _nested(weights)["params"]
        return ranker.represent(params, batch, rows), rows.get(
            "user", jnp.zeros((batch["user"].shape[0], 0))
        )

    # The users' tree is of types that only the library knows: arrays alone are exported.
    tree = jax.tree.structure(jax.eval_shape(users_of, given, inputs))

    def represent(weights, batch):
        return jax.tree.leaves(users_of(weights, batch))

    def score(weights, state, items, steps):
        users, user_rows = jax.tree.unflatten(tree, state)
        rows = {
            "user": user_rows,
            "candidates": jnp.take(weights[exported.ITEM_ROWS], items, 0, mode="clip"),
        }
        settings = {"active_steps": steps} if reasons else {}
        return ranker.score(_nested(weights)["params"], users, rows, **settings)

    def vector(weights, state, steps):
        users, user_rows = jax.tree.unflatten(tree, state)
        settings = {"active_steps": steps} if reasons else {}
        rows = {"user": user_rows}
        return ranker.user_vectors(_nested(weights)["params"], users, rows, **settings)

    def catalogue(weights, state, steps):
        users, user_rows = jax.tree.unflatten(tree, state)
        settings = {"active_steps": steps} if reasons else {}
        return by_chunks(
            weights[exported.ITEM_ROWS],
            lambda items: ranker.score_catalogue(
                _nested(weights)["params"], users, {"user": user_rows}, items, **settings
            ),
            chunk,
        )

    def search(weights, batch, query):
        # Some rankers read the query with the history.
        users, user_rows = users_of(weights, batch | {"query": query})
        words = jnp.take(weights[exported.WORD_ROWS], query, 0, mode="clip")
        return by_chunks(
            weights[exported.ITEM_ROWS],
            lambda items: ranker.score_query(
                _nested(weights)["params"],
                users,
                {"user": user_rows, "query": words},
                items,
                query=query,
            ),
            chunk,
        )

    def every_k(weights, state):
        users, user_rows = jax.tree.unflatten(tree, state)
        return by_chunks(
            weights[exported.ITEM_ROWS],
            lambda items: ranker.score_every_k(
                _nested(weights)["params"], users, {"user": user_rows}, items
            ),
            chunk,
        )

    state = jax.eval_shape(represent, given, inputs)
    lowered = {
        "represent": _lowered(represent, given, inputs),
        "score": _lowered(score, given, state, candidates, steps),
        "catalogue": _lowered(catalogue, given, state, steps),
    }
    if _searches(ranker):
        query = jax.ShapeDtypeStruct((steps.shape[0], words), jnp.int32)
        lowered["search"] = _lowered(search, given, inputs, query)
    if is_dot_product(ranker):
        lowered["vector"] = _lowered(vector, given, state, steps)
    if hasattr(ranker, "score_every_k"):
        lowered["every_k"] = _lowered(every_k, given, state)
    return lowered


def by_chunks(
    items: jax.Array, score: Callable[[jax.Array], jax.Array], size: int | None = _CHUNK
) -> jax.Array:
    """Scores a table [V+1, D] some rows at a time; returns float32 [..., V+1].

    Args:
      items: of any number of rows, which may be a symbol.
      score: of items [n, D], [..., n].
      size: n; None is all at once.
    """
    rows, width = items.shape
    if size is None:
        return score(items).astype(jnp.float32)
    count = (rows + size - 1) // size
    padded = jnp.pad(items, ((0, count * size - rows), (0, 0)))
    scores = jnp.moveaxis(jax.lax.map(score, padded.reshape(count, size, width)), 0, -2)
    flat = scores.reshape(*scores.shape[:-2], count * size)
    return flat[..., :rows].astype(jnp.float32)


def _lowered(function: Callable[..., Any], *arguments: Any) -> bytes:
    lowered = jax_export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    return bytes(lowered.serialize())


def _write(
    folder: str,
    restored: Restored,
    weights: Mapping[str, np.ndarray],
    functions: Mapping[str, bytes],
) -> None:
    log = restored.data.log

    def path(name: str) -> str:
        return os.path.join(folder, name)

    # Not `save_file`, whose file its owner alone may read.
    with open(path(exported.WEIGHTS), "wb") as file:
        file.write(safetensors.numpy.save(dict(weights)))
    for name, content in functions.items():
        with open(path(name + exported.FUNCTION), "wb") as file:
            file.write(content)
    items = [str(name) for name in log.item_ids.tolist()[1:]]
    trained = restored.data.trained_users[1:].tolist()
    names: dict[str, dict[str, Any]] = {
        exported.ITEMS: {
            "ids": items,
            "titles": [title_of(log, number) for number in range(1, len(items) + 1)],
        },
        exported.USERS: {
            "ids": [str(name) for name in log.user_ids.tolist()[1:]],
            "trained": trained,
        },
        exported.WORDS: {"words": [str(word) for word in log.words.tolist()[1:]]},
    }
    for name, of_rows in names.items():
        write_atomically(path(name), json.dumps(of_rows, ensure_ascii=False))
    if exported.ITEM_ROWS in weights:
        save_npy(path(exported.VECTORS), weights[exported.ITEM_ROWS][1 : len(items) + 1])


def _manifest(restored: Restored, folder: str) -> dict[str, Any]:
    experiment, data = restored.experiment, restored.data
    ranker, config = experiment.ranker, experiment.config
    shape = data.shape(1)
    numbers = numbers_of(ranker)
    return {
        "format": exported.FORMAT,
        "library": VERSION,
        "jax": jax.__version__,
        "commit": commit_id(),
        "method": config.method,
        "dataset": config.dataset,
        "data": data.label,
        "data_hash": data.log.hash,
        "training_split": data.training_split,
        "stage": restored.stage,
        "step": restored.step,
        "metrics": _metrics(restored.workdir, restored.stage),
        "tasks": [RECOMMEND, *([SEARCH] if _searches(ranker) else [])],
        "sizes": {
            "items": data.log.num_items,
            "users": data.log.num_users,
            "words": data.log.num_words,
            "rec_length": shape.rec_length,
            "search_length": shape.search_length,
            "words_of_query": shape.words,
            "clicks_of_search": shape.clicks,
        },
        "use_search": bool(config.data.use_search),
        "time_unit": data.log.time_unit,
        "segmenter": config.data.segmenter,
        # Whether the reader of the log had the segmenter split all queries.
        "splits_queries": "segmenter" in READERS[config.dataset].settings,
        "max_steps": getattr(ranker, "max_steps", None),
        "active_steps": numbers.get("active_steps"),
        "gives_probabilities": bool(getattr(ranker, "gives_probabilities", False)),
        # Whether a score is the product of the user's vector and the item's.
        "dot_product": is_dot_product(ranker),
        # What the vector of an item without a row is made of.
        "new_items": _new_items(restored),
        "files": {
            name: exported.described(os.path.join(folder, name))
            for name in sorted(os.listdir(folder))
        },
    }


def _new_items(restored: Restored) -> dict[str, Any] | None:
    experiment = restored.experiment
    if getattr(experiment, "item_words", None) is None:
        return None
    words = experiment.config.data.item_words
    return {"words": words, "mean_row": mean_row(restored).tolist()}


def _metrics(workdir: Workdir, stage: str) -> dict[str, Any]:
    """Returns the test metrics of a stage by protocol, as results.json has them."""
    rows = workdir.read_results().get("rows", [])
    return {
        row["protocol"]: row["metrics"]
        for row in rows
        if row.get("stage") == stage and row.get("split") == "test" and "metrics" in row
    }
