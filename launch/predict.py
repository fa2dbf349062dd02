"""Recommends items to users from all they have done so far.

    python -m launch.predict --workdir=W --users=FILE --top_k=20 [--out=FILE]
    python -m launch.predict --workdir=W --events=FILE.jsonl --top_k=20 [--out=FILE]

FILE holds one user id a line, as in the raw data. Writes one JSON line per recommendation:
{"user": ..., "rank": 1, "item": ..., "score": ...}; items the user has touched are left out, the
score is the logit of Eq. 10. A run of GenSAR generates the items: the score is the log-likelihood
of the identifier, "text" begins the item's text, and --query=TEXT asks for the items of a search,
of these users or, without --users, of someone without a history.
A run of CRS answers queries: a line of FILE is `user TAB query`, or a user whose latest query is
asked again, and the lines it writes add query, id and reasoning (crs_jax.experiment).

With --events FILE holds one question a line, of anyone and with further events, as JSON
(serving.requests); line by line it is answered by its items or by what is wrong with it
(serving.event_files). Of the run only the workdir is needed. --items=FILE adds items that joined
after training, of runs that can score them (serving.item_descriptions).
"""

from __future__ import annotations

from absl import flags

from core import cli
from core.errors import UserError


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder or address of a run of launch.train.")
    flags.DEFINE_string("users", None, "File with one user id a line.")
    flags.DEFINE_string("events", None, "File with one question a line, as JSON.")
    flags.DEFINE_string(
        "items", None, "File of items that joined after training, one a line, as JSON."
    )
    flags.DEFINE_string("query", None, "Words of a search, for a run of GenSAR.")
    flags.DEFINE_integer("top_k", 20, "Items per user.", lower_bound=1)
    flags.DEFINE_string(
        "stage", None, "train, rl or control; default rl where it was trained, else train."
    )
    flags.DEFINE_string("out", None, "File to write; default standard output.")


def check_flags() -> None:
    values = flags.FLAGS
    if not values.workdir or not (values.users or values.query or values.events):
        raise UserError("expected --workdir=W and --users=FILE, found one missing; pass both")
    if values.events and (values.users or values.query):
        raise UserError(
            "expected --events=FILE without --users and --query, found both; its lines name users "
            "and queries"
        )
    if values.items and not values.events:
        raise UserError("expected --items=FILE with --events=FILE, found no --events; pass it")


cli.begin(__name__, define_flags, check_flags)


import dataclasses
import json
import sys

from core.files import open_atomically, write_atomically
from core.workdir import check_out
from experiments.predict import predict, read_users
from experiments.restored import Restored
from serving.event_files import answer_lines, open_events
from serving.item_descriptions import read_items
from serving.recommender import Recommender


def main() -> None:
    values = flags.FLAGS
    if values.out:
        check_out(values.out, "--out")
    if values.events:
        _answer_events(values)
        return
    users = read_users(values.users) if values.users else None
    restored = Restored(values.workdir, values.stage)
    rows = predict(restored, users, values.top_k, values.query)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "".join(line + "\n" for line in lines)
    if flags.FLAGS.out:
        write_atomically(flags.FLAGS.out, text)
    else:
        sys.stdout.write(text)


def _answer_events(values: flags.FlagValues) -> None:
    with open_events(values.events) as file:
        items = None
        if values.items:
            items = [dataclasses.asdict(item) for item in read_items(values.items)]
        model = Recommender.load(values.workdir, values.stage, items)
        lines = answer_lines(model, file, values.top_k)
        if not values.out:
            sys.stdout.writelines(lines)
            return
        with open_atomically(values.out) as out:
            out.writelines(line.encode() for line in lines)


if __name__ == "__main__":
    cli.run(main)
