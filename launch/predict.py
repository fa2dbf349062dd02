"""Recommends items to users from all they have done so far.

    python -m launch.predict --workdir=W --users=FILE --top_k=20 [--out=FILE]

FILE holds one user id a line, as in the raw data. Writes one JSON line per recommendation:
{"user": ..., "rank": 1, "item": ..., "score": ...}; items the user has touched are left out, the
score is the logit of Eq. 10. A run of CRS answers queries: a line is `user TAB query`, or a user
whose latest query is asked again, and the lines it writes add query, id and reasoning (launch.crs).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from core.errors import UserError
from core.workdir import write_atomically
from input_pipelines import batches
from input_pipelines.candidates import TouchedItems
from input_pipelines.splits import Examples
from launch import cli
from launch.restore import Restored


def predict(restored: Restored, users: Sequence[str], top_k: int) -> Iterator[dict[str, Any]]:
    """Yields user, rank, item, score for every user, best first.

    Raises:
      UserError: a user id that the data does not hold, or more items asked for than there are.
    """
    data, log = restored.data, restored.data.log
    if hasattr(restored.experiment, "predict"):
        yield from restored.experiment.predict(restored.params, users, top_k)
        return
    if restored.experiment.evaluator is None:
        raise UserError(
            f"expected the run of a ranker, found one of {restored.experiment.config.method}, "
            "whose beams launch.predict does not print; use launch.evaluate"
        )
    numbers = {name: i for i, name in enumerate(log.user_ids.tolist()) if i}
    unknown = [user for user in users if user not in numbers]
    if unknown:
        raise UserError(
            f"expected user ids of {data.label}, found {unknown[0]!r} and {len(unknown) - 1} more "
            "that it does not hold; correct the --users file"
        )
    user = np.array([numbers[name] for name in users], np.int32)
    examples = Examples(
        user=user,
        target_row=np.zeros(len(user), np.int64),
        rec_end=np.asarray(log.rec_offsets)[user + 1],
        search_end=np.asarray(log.search_offsets)[user + 1],
    )
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


def read_users(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            users = [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise UserError(
            f"expected a file of user ids at {path}, found {error.strerror}; correct --users"
        ) from None
    if not users:
        raise UserError(f"expected user ids in {path}, one a line, found none; fill the file")
    return users


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of a run of launch.train.")
    flags.DEFINE_string("users", None, "File with one user id a line.")
    flags.DEFINE_integer("top_k", 20, "Items per user.", lower_bound=1)
    flags.DEFINE_string("stage", None, "pretrain, rl or control; default the last trained.")
    flags.DEFINE_string("out", None, "File to write; default standard output.")


def main() -> None:
    if not flags.FLAGS.workdir or not flags.FLAGS.users:
        raise UserError("expected --workdir=W and --users=FILE, found one missing; pass both")
    users = read_users(flags.FLAGS.users)
    restored = Restored(flags.FLAGS.workdir, flags.FLAGS.stage)
    lines = [
        json.dumps(row, ensure_ascii=False) for row in predict(restored, users, flags.FLAGS.top_k)
    ]
    text = "".join(line + "\n" for line in lines)
    if flags.FLAGS.out:
        write_atomically(flags.FLAGS.out, text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    cli.run(main, define_flags)
