"""Writes what t5x.infer writes for GenSAR: items instead of tokens."""

from __future__ import annotations

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorflow as tf

from gensar_jax.t5x_bridge import decoding, exported


def write_items(
    path: str,
    inferences: tuple[Any, Any],
    task_ds: Any,
    mode: str,
    vocabulary: Any = None,
    *,
    folder: str,
    task: str,
    top_k: int,
) -> None:
    """Writes JSON lines {"user", "rank", "item", "score", "target"}: a `write_fn` of t5x.infer.

    Items that the user had seen are left out, the target never; the score is that of the
    `decode_fn`, in nats.

    Args:
      path: of the file.
      inferences: (sequences [E, K, S], {'scores': [E, K]}), best last.
      task_ds: the examples.
      mode: 'predict_with_aux'.
      vocabulary: not used.
      folder: of launch.export_t5x.
      task: 'recommendation' or 'search', as in `decoding.constrained`.
      top_k: lines a user at most.
    """
    if mode != "predict_with_aux":
        raise ValueError(f"expected mode predict_with_aux, found {mode!r}")
    del vocabulary
    names = exported.items(folder)
    trie, forced = decoding.catalogue(folder, task)
    sequences, aux = inferences
    items = np.asarray(decoding.items_of(jnp.asarray(sequences), trie, len(forced)))
    scores = np.asarray(aux["scores"])
    with tf.io.gfile.GFile(path, "w") as file:
        for row, example in enumerate(task_ds.as_numpy_iterator()):
            ranked = zip(items[row, ::-1].tolist(), scores[row, ::-1].tolist(), strict=True)
            seen = set(example["seen"].tolist()) - {int(example["item"])}
            unseen = [(item, score) for item, score in ranked if item > 0 and item not in seen]
            for rank, (item, score) in enumerate(unseen[:top_k], 1):
                line = {
                    "user": example["user"].decode(),
                    "rank": rank,
                    "item": names[item - 1],
                    "score": round(score, 6),
                    "target": names[int(example["item"]) - 1],
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
