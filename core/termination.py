"""Notes SIGTERM and Ctrl-C while a run trains, so that it stops where everything is saved."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from core import signals
from core.compiling import announced
from core.errors import Preempted, UserError

_LOG = logging.getLogger(__name__)
# Updates of this process, whatever the stage: the point at which processes agree to stop is a count
# that must not start again with a stage.
_updates = itertools.count(1)


# Seconds that Python has to leave what can be repeated, where it may be held up by a compilation.
_GRACE_S = 2.0
_NOTHING = "nothing was trained since the last checkpoint, if there is one"


class _Abandoned(BaseException):
    """Leaves what can be repeated on a signal.

    It is no `Exception`, so that no handler swallows it.
    """


class Termination:
    """Notes SIGTERM and Ctrl-C; of several processes all stop after the same update."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._interrupts = 0
        # Describes the body that goes on and can be repeated; None where none does.
        self._repeatable: str | None = None
        # Whether a signal has ended such a body.
        self._abandoned = False
        self._left = threading.Event()

    def arrived(self) -> bool:
        """Tells whether a signal has arrived; all processes ask after the same updates.

        Raises:
          UserError: why the program ends of itself, where it is one process of several: the others
            do not know and end because this one does.
        """
        if jax.process_count() > 1:
            if (reason := signals.reason()) is not None:
                raise reason
            # Without a collective: JAX's coordinator hears of a signal and names a later count.
            return multihost_utils.reached_preemption_sync_point(next(_updates))
        return self._due

    @property
    def _due(self) -> bool:
        return self._number is not None or signals.reason() is not None

    def preempted(self, text: str) -> Preempted | UserError:
        """Returns what to raise once all is saved: why the program ends of itself, if it does.

        Args:
          text: what follows the signal's name, such as ': saved step 3; ...'.
        """
        return signals.reason() or Preempted(self._name + text, self._code)

    @property
    def _name(self) -> str:
        return "Ctrl-C" if self._number == signal.SIGINT else "SIGTERM"

    @property
    def _code(self) -> int:
        return signals.INTERRUPTED if self._number == signal.SIGINT else 0

    @contextlib.contextmanager
    def repeating(self, what: str, saved: str = _NOTHING) -> Iterator[None]:
        """Ends the body as soon as a signal arrives, or where one has.

        For what changes nothing until it is through: compiling the first step, or an evaluation for
        the results. Several processes, who must all do the same, carry it to its end.

        Args:
          what: the body is.
          saved: what the message says of the work before it.

        Raises:
          Preempted, UserError: a signal has arrived, or a reason. Where Python is held up, the
            process ends in the same line and exit code.
        """
        if jax.process_count() > 1:
            yield
            return
        self._left.clear()
        self._repeatable = f" in {what}: {saved}; the same command continues"
        try:
            if self._due:
                raise _Abandoned
            yield
        except _Abandoned:
            raise self.preempted(f" in {what}: {saved}; the same command continues") from None
        finally:
            self._repeatable = None
            self._left.set()

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Notes signals while the body runs."""
        # With several processes JAX's own handler of SIGTERM tells all of them.
        several = jax.process_count() > 1
        numbers = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
        noted = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
        before = {n: signal.signal(n, self._note) for n in noted}
        # Python's handlers wait for what the main thread compiles; this thread does not.
        here, there = socket.socketpair()
        there.setblocking(False)
        awake = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(here, several), daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(awake)
            for number, handler in before.items():
                signal.signal(number, handler)
            there.close()

    def _note(self, number: int, frame: Any) -> None:
        del frame
        first = self._number is None
        self._number = number
        # Once: a second signal must not cut short what the first one has set going.
        if first and self._repeatable is not None:
            self._abandoned = True
            raise _Abandoned

    def _listen(self, wakened: socket.socket, several: bool) -> None:
        with wakened:
            while numbers := wakened.recv(64):
                for number in numbers:
                    self._hear(number, several)

    def _hear(self, number: int, several: bool) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                signals.say("Ctrl-C again: ended without saving; the same command continues")
                os._exit(signals.INTERRUPTED)
            if several:
                os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the other processes of it
        elif number != signal.SIGTERM:
            return
        text = self._repeatable
        if text is None:
            # The main thread may have left the body before this thread has heard of the signal.
            if number == signal.SIGINT and not self._abandoned:
                signals.say("Ctrl-C: stops as soon as all is saved; a second one ends at once")
        elif not self._left.wait(_GRACE_S):
            if (reason := signals.reason()) is not None:
                signals.end_for(reason)
            self._number = number
            print(self._name + text, flush=True)
            os._exit(self._code)


def end_with(error: UserError) -> None:
    """Ends what the main thread does in `error`, as SIGTERM would end it; called by other threads.

    In a notebook, whose SIGTERM is not ours, and in a job of several processes, whose SIGTERM has
    all save and go on with the job later, that is when training next asks `arrived`.
    """
    signals.set_reason(error)
    if jax.distributed.is_initialized():
        return
    handler = signal.getsignal(signal.SIGTERM)
    if handler is signals.handle or isinstance(getattr(handler, "__self__", None), Termination):
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGTERM)


# What the outermost `watched` of this process notes with.
_watching: Termination | None = None


@contextlib.contextmanager
def watched() -> Iterator[Termination]:
    """Notes SIGTERM and Ctrl-C while the body runs; inside another `watched`, what that one notes.

    A program puts it round all stages, so that a signal between them is noted too.
    """
    global _watching
    if threading.current_thread() is not threading.main_thread():
        yield Termination()  # may set no signal handler: a notebook's worker goes without
    elif _watching is not None:
        yield _watching
    else:
        _watching = Termination()
        try:
            with _watching.noting():
                yield _watching
        finally:
            _watching = None


@contextlib.contextmanager
def repeatable(what: str) -> Iterator[None]:
    """Ends the body at once on SIGTERM or Ctrl-C inside `watched`; logs where the body takes long.

    Of several processes all come here alike, and stop before the body or not at all.

    Args:
      what: the body is, which changes nothing until it is through; all before it is saved.

    Raises:
      Preempted: a signal has arrived.
    """
    with announced(what, _LOG.info):
        if _watching is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        stop_if_terminated(what)
        with _watching.repeating(what, "saved all until then"):
            yield


def stop_if_terminated(due: str) -> None:
    """Raises Preempted if a signal has arrived inside `watched`; outside it does nothing.

    It stands before what takes long. Of several processes all call it, or none does.

    Args:
      due: what is about to begin; everything before it is saved.

    Raises:
      Preempted: SIGTERM or Ctrl-C has arrived.
    """
    if _watching is not None and _watching.arrived():
        raise _watching.preempted(
            f" before {due}: saved all until then; the same command continues"
        )
