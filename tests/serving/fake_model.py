"""A model that answers at once and by a rule, and a server of it as a program."""

import argparse
import dataclasses
import json
import logging
import pathlib
import threading
import time

from core.errors import UserError
from serving.http_api import Bounds
from serving.micro_batches import Batching
from serving.requests import Answer, Because, Limits, Moved, Recommended
from serving.server import Place, serve

ANIMALS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "<script>")
TITLES = {f"i{number}": f"{animal} number {number}" for number, animal in enumerate(ANIMALS)}


@dataclasses.dataclass
class FakeModel:
    """Recommends the items that follow the last click, and finds titles that begin as the query.

    With `because`, the last click moved everything, and a reasoning step moves the first item last.
    """

    name: str = "fake"
    tasks: tuple[str, ...] = ("recommend", "search")
    catalogue_size: int = len(TITLES)
    max_steps: int | None = 2
    time_unit: str = "seconds"
    seconds: float = 0.0
    gate: threading.Event | None = None
    batches: list[int] = dataclasses.field(default_factory=list)

    titles = TITLES

    def recommend_many(self, requests):
        self.batches.append(len(requests))
        if self.gate is not None:
            self.gate.wait(10)
        time.sleep(self.seconds)
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        if request.user == "broken":
            raise ZeroDivisionError("a defect")
        if request.user == "refused":
            return UserError("expected another user, found refused")
        ids = list(TITLES)
        last = request.clicks[-1].item if request.clicks else "i0"
        first = ids.index(last) + 1 if last in ids else 0
        order = ids[first:] + ids[:first]
        if request.query is not None:
            order = [item for item in ids if TITLES[item].startswith(request.query)]
        steps = self.max_steps or 0
        steps = steps if request.reasoning_steps is None else request.reasoning_steps
        order = order[steps:] + order[:steps]
        chosen = order[: request.k]
        return Answer(
            items=tuple(self._item(request, item, rank) for rank, item in enumerate(chosen)),
            known_user=request.user == "known",
            skipped_items=sum(click.item not in ids for click in request.clicks),
        )

    def _item(self, request, item, rank):
        moved = [
            Moved(kind="click", item=click.item, given=place, score=0.5 + place, rank=place + 1)
            for place, click in enumerate(request.clicks)
        ]
        moved += [
            Moved(kind="search", query=s.query, clicked=s.clicked, given=place, score=-0.2, rank=-1)
            for place, s in enumerate(request.searches)
        ]
        because = Because(moved=tuple(moved[::-1]), rank_by_step=(rank + 3, rank + 2, rank + 1))
        return Recommended(
            item=item,
            title=TITLES[item],
            score=1.0 - rank,
            probability=1 / (1 + rank),
            because=because if request.because else None,
        )


def main():
    """Serves a `FakeModel` whose settings a JSON file holds; a broken file cannot be loaded."""
    parser = argparse.ArgumentParser()
    parser.add_argument("settings")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--waiting", type=int, default=64)
    parser.add_argument("--drain", type=float, default=0.3)
    flags = parser.parse_args()
    logging.basicConfig(level=logging.INFO)

    def load():
        try:
            return FakeModel(**json.loads(pathlib.Path(flags.settings).read_text()))
        except ValueError:
            raise UserError(f"expected settings in {flags.settings}, found none") from None

    serve(
        load,
        Place(port=flags.port, drain_s=flags.drain),
        Batching(waiting=flags.waiting),
        Bounds(body_bytes=700_000, body_s=1.0, k=8, question=Limits(events=1000)),
    )


if __name__ == "__main__":
    from core import cli

    cli.run(main)
