"""Answers requests that arrive at about the same time as one batch, in one worker thread.

A model answers a batch of 16 sooner than 16 requests. The worker takes what waits; where that is
less than a batch, it waits a few milliseconds for more. What waits is bounded in number and in age,
so that a server under too much load refuses at once instead of answering too late.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from core.errors import UserError
from serving.requests import Answer, Answers, Request

_LOG = logging.getLogger(__name__)
Outcome = Answer | UserError


class Overloaded(Exception):
    """Tells that more requests wait than can be answered in time; one may be sent again later."""


class Closed(Exception):
    """Tells that the worker has been closed and takes no more requests."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
    """Says how requests become batches.

    Attributes:
      most: requests of one batch.
      wait_s: seconds that the first request of a batch waits for others.
      waiting: requests that may wait; more are refused.
      oldest_s: seconds after which a request that still waits is refused.
    """

    most: int = 16
    wait_s: float = 0.003
    waiting: int = 64
    oldest_s: float = 0.5


@dataclasses.dataclass
class _Waiting:
    request: Request
    future: Future[Outcome]
    since: float


class MicroBatches:
    """Holds the model that answers, the requests that wait for it, and the thread between them.

    Args:
      batching: how requests become batches.
      observe: is told the size of every batch and the seconds that it took.

    Attributes:
      closed: whether it takes no more requests.
    """

    def __init__(
        self, batching: Batching, observe: Callable[[int, float], None] = lambda size, seconds: None
    ):
        self._batching, self._observe = batching, observe
        self._model: Answers | None = None
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._changed = threading.Condition()
        self.closed = False
        self._thread = threading.Thread(target=self._work, name="micro-batches", daemon=True)
        self._thread.start()

    def use(self, model: Answers) -> None:
        """Has all batches from the next one on answered by `model`."""
        with self._changed:
            self._model = model

    def waiting(self) -> int:
        """Counts the requests that wait."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Tells whether as many wait as may, so that the next one would be refused."""
        return len(self._queue) >= self._batching.waiting

    def submit(self, request: Request) -> Future[Outcome]:
        """Returns what will hold the answer, or the error that says why there is none.

        Raises:
          Overloaded: too many wait already.
          Closed: after `close`.
        """
        with self._changed:
            if self.closed:
                raise Closed
            if self.full:
                raise Overloaded
            future: Future[Outcome] = Future()
            self._queue.append(_Waiting(request, future, time.monotonic()))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Answers what waits, and ends the thread."""
        with self._changed:
            self.closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            if batch:
                self._answer(batch)

    def _next(self) -> list[_Waiting] | None:
        """Waits for the next batch; None once it is closed and nothing waits."""
        most = self._batching.most
        with self._changed:
            while not self._queue and not self.closed:
                self._changed.wait()
            if not self._queue:
                return None
            # A request that has waited behind another batch waits no longer for company.
            last = self._queue[0].since + self._batching.wait_s
            while len(self._queue) < most and not self.closed:
                left = last - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            taken = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
            closed = self.closed
        now, batch = time.monotonic(), []
        for one in taken:
            if now - one.since > self._batching.oldest_s and not closed:
                one.future.set_exception(Overloaded())
            elif one.future.set_running_or_notify_cancel():
                batch.append(one)
        return batch

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        with self._changed:
            model = self._model
        began = time.monotonic()
        try:
            if model is None:
                raise UserError("expected a loaded model, found none yet; ask again later")
            outcomes = model.recommend_many([one.request for one in batch])
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} answers to {len(batch)} requests")
        except Exception as error:
            if len(batch) > 1:  # one request must not take the others' answers with it
                for one in batch:
                    self._answer([one])
                return
            if not isinstance(error, UserError):
                _LOG.exception("a request could not be answered")
            batch[0].future.set_exception(error)
            return
        self._observe(len(batch), time.monotonic() - began)
        for one, outcome in zip(batch, outcomes, strict=True):
            one.future.set_result(outcome)
