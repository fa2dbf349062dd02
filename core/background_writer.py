"""Writes to a service from another thread: its failures and silences cost values, no training."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.errors import UserError
from core.run_writer import RunWriter

_LOG = logging.getLogger(__name__)


class BackgroundWriter:
    """Hands everything to a writer that lives in a thread of its own; a `RunWriter` itself.

    The first value that is lost is told in a warning, and how many were at the end.

    Args:
      service: its name, for messages.
      opening: makes the writer, in the thread.
      must_open: whether a writer that cannot be made ends the run; else it costs a warning.
      open_s: seconds that the service may take to begin; a later one is written to all the same,
        unless `must_open`.
      close_s: seconds that the last values may take.
      most_waiting: values of later steps are dropped while as many wait.

    Raises:
      UserError: `must_open`, and the writer cannot be made, or not in time.
    """

    def __init__(
        self,
        service: str,
        opening: Callable[[], RunWriter],
        *,
        must_open: bool,
        open_s: float = 90.0,
        close_s: float = 20.0,
        most_waiting: int = 10_000,
    ):
        self._service, self._close_s = service, close_s
        self._calls: queue.Queue[Callable[[RunWriter], None] | None] = queue.Queue(most_waiting)
        self._opened = threading.Event()
        self._failure: BaseException | None = None
        self._lost = 0
        self._counting = threading.Lock()
        # A daemon: a service that never answers must not keep the program from ending.
        self._thread = threading.Thread(
            target=self._work, args=(opening,), name=f"writes to {service}", daemon=True
        )
        self._thread.start()
        in_time = self._opened.wait(open_s)
        if in_time and self._failure is None:
            return
        reason = f"no answer within {open_s:.0f} s" if not in_time else _words(self._failure)
        if must_open:
            raise UserError(
                f"expected {service} to begin a run, found {reason}; mend that, or take it out of "
                "config.loop.writers"
            )
        _LOG.warning("%s does not continue the run (%s); the training goes on", service, reason)

    def start_stage(self, stage: str, first_step: int) -> None:
        self._hand_over(lambda writer: writer.start_stage(stage, first_step))

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._hand_over(lambda writer: writer.write(stage, step, values))

    def end_stage(self, stage: str) -> None:
        self._hand_over(lambda writer: writer.end_stage(stage))

    def write_results(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._hand_over(lambda writer: writer.write_results(rows))

    def close(self, status: str) -> None:
        """Waits `close_s` seconds at most for what has been handed over, and ends the thread."""
        if self._failure is not None:
            return
        deadline = time.monotonic() + self._close_s
        try:
            for call in (lambda writer: writer.close(status), None):
                self._calls.put(call, timeout=self._close_s)
            self._thread.join(max(0.0, deadline - time.monotonic()))
        except queue.Full:
            pass
        if self._thread.is_alive():
            _LOG.warning(
                "%s has not taken the last values within %.0f s; they stay in metrics.jsonl alone",
                self._service,
                self._close_s,
            )
        elif self._lost:
            _LOG.warning("%s: %d writes were lost in all", self._service, self._lost)

    def _hand_over(self, call: Callable[[RunWriter], None]) -> None:
        if self._failure is not None:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._lose("it does not keep up")

    def _lose(self, why: str) -> None:
        with self._counting:
            self._lost += 1
            first = self._lost == 1
        if first:
            _LOG.warning("%s misses values: %s; the training goes on", self._service, why)

    def _work(self, opening: Callable[[], RunWriter]) -> None:
        try:
            writer = opening()
        except Exception as error:  # the services' packages raise many types
            self._failure = error
            return
        finally:
            self._opened.set()
        while (call := self._calls.get()) is not None:
            try:
                call(writer)
            except Exception as error:
                self._lose(_words(error))


def _words(error: BaseException | None) -> str:
    """Returns an error's text in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
