"""Recommends items to users from all they have done so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from core.errors import UserError
from core.text_lines import read_lines
from experiments.restored import Restored
from gensar_jax.experiment import GenSARExperiment
from gensar_jax.prediction import top_items
from input_pipelines import batches
from input_pipelines.candidates import TouchedItems
from input_pipelines.log import Log
from input_pipelines.splits import Examples

# Characters of an item's text that are printed.
_TEXT = 100


def predict(
    restored: Restored, users: Sequence[str] | str | None, top_k: int, query: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yields user, rank, item, score (of GenSAR also text) for every user, best first.

    Args:
      users: ids as in the raw data, or one; None, with a query, is someone without a history.
      top_k: items of each user.
      query: for the items of a search, of a GenSAR run.

    Raises:
      UserError: a user id that the data does not hold, more items asked for than there are, or a
        query that the run cannot answer.
    """
    if isinstance(users, str):
        users = [users]
    if hasattr(restored.experiment, "predict"):
        if users is None or query is not None:
            raise UserError(
                "expected --users=FILE without --query of a run of CRS; write a query after its "
                "user and a TAB"
            )
        yield from restored.experiment.predict(restored.params, restored.tables, users, top_k)
        return
    if isinstance(restored.experiment, GenSARExperiment):
        yield from _generated(restored, users, top_k, query)
        return
    if restored.experiment.evaluator is None:
        raise UserError(
            f"expected the run of a ranker or of gensar, found one of "
            f"{restored.experiment.config.method}; pass another --workdir"
        )
    if query is not None or users is None:
        raise UserError(
            f"expected --users and no --query, which only gensar answers, for a run of "
            f"{restored.experiment.config.method}; pass another --workdir"
        )
    data, log = restored.data, restored.data.log
    examples = _whole_histories(restored, users)
    user = examples.user
    size = restored.experiment.config.eval.full_batch_size
    nothing = np.zeros((len(user), 1), np.int32)
    index = TouchedItems(log)
    touched = [index.of_user(int(number)) for number in user]
    width = max((len(items) for items in touched), default=0) or 1
    for start, batch in enumerate(
        batches.evaluation_batches(log, examples, nothing, data.shape(1), size)
    ):
        seen = np.zeros((size, width), np.int32)
        part = range(start * size, min((start + 1) * size, len(user)))
        for row, example in enumerate(part):
            seen[row, : len(touched[example])] = touched[example]
        items, scores = restored.experiment.evaluator.top_k(
            restored.params, restored.tables, data.adapt(batch), seen, top_k
        )
        for row, example in enumerate(part):
            ranked = zip(items[row].tolist(), scores[row].tolist(), strict=True)
            for rank, (item, score) in enumerate(ranked, start=1):
                if np.isfinite(score):  # a user who has touched nearly everything gets fewer
                    yield {
                        "user": users[example],
                        "rank": rank,
                        "item": str(log.item_ids[item]),
                        "score": round(score, 6),
                    }


def _whole_histories(restored: Restored, users: Sequence[str]) -> Examples:
    """All that users have done, by their ids.

    Raises:
      UserError: an id that the data does not hold.
    """
    log = restored.data.log
    numbers = {name: i for i, name in enumerate(log.user_ids.tolist()) if i}
    unknown = [user for user in users if user not in numbers]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"expected user ids of {restored.data.label}, found {unknown[0]!r}{more}, which it "
            "does not hold; correct the users"
        )
    return _examples_of(log, np.array([numbers[name] for name in users], np.int32))


def _examples_of(log: Log, user: np.ndarray) -> Examples:
    return Examples(
        user=user,
        target_row=np.zeros(len(user), np.int64),
        rec_end=np.asarray(log.rec_offsets)[user + 1],
        search_end=np.asarray(log.search_offsets)[user + 1],
    )


def _generated(
    restored: Restored, users: Sequence[str] | None, top_k: int, query: str | None
) -> Iterator[dict[str, Any]]:
    log = restored.data.log
    if users is None:
        if query is None:
            raise UserError("expected users or a query, found neither; pass one of them")
        # User 0 has no events.
        examples = _examples_of(log, np.zeros(1, np.int32))
    else:
        examples = _whole_histories(restored, users)
    texts = log.item_texts()
    found = top_items(restored.experiment, restored.params, examples, top_k, query)
    for row, items in enumerate(found):
        for rank, (item, score) in enumerate(items, start=1):
            yield {
                "user": users[row] if users is not None else None,
                "rank": rank,
                "item": str(log.item_ids[item]),
                "score": round(score, 6),
                "text": texts[item - 1][:_TEXT],
            }


def read_users(path: str) -> list[str]:
    """Reads the lines of a file that are not empty.

    Raises:
      UserError: no such file, it is not UTF-8, or it has no lines.
    """
    lines = read_lines(path, "user ids", "correct --users or save the file as UTF-8")
    users = [line.strip() for line in lines if line.strip()]
    if not users:
        raise UserError(f"expected user ids in {path}, one a line, found none; fill the file")
    return users
