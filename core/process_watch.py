"""Ends every process of a job when one of them is gone, and says which.

JAX misses a lost process by its heartbeats, a minute or more later, and aborts without saying which
one it was; until then the rest wait in a collective. Here process 0 holds a connection to each of
the others: the system closes it with its process, and keep-alive probes notice a lost machine.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time

from core import handshake
from core.errors import UserError

# The exit code of a process that ended because another did.
LOST = 3
_BYE, _LOST_ONE = b"bye", b"lost "
# No line between the processes is longer; what else comes is left unread.
_LONGEST = 32
# Probes of a connection without traffic: a lost machine is noticed after 20 + 4 * 10 seconds.
_KEEPALIVE = (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4))


class ProcessWatch:
    """Watches the other processes from threads of its own, until `finish` or the end.

    Args:
      process, processes: which this is, from 0, and how many there are.
      token: a secret of the job; who does not know it is no process of it.
      server: of process 0, `core.handshake.listen`; it waits here for the others.
      address: of process 0's server, for the others.
      timeout_s: for the connections to stand.

    Raises:
      UserError: a process did not come, or process 0 cannot be reached.
    """

    def __init__(
        self,
        process: int,
        processes: int,
        *,
        token: str,
        server: socket.socket | None = None,
        address: tuple[str, int] | None = None,
        timeout_s: float = 60.0,
    ):
        self._process, self._processes = process, processes
        self._ending, self._lock = False, threading.Lock()
        deadline = time.monotonic() + timeout_s
        if server is not None:
            arrivals = handshake.gather(server, processes, token, deadline)
            self._peers = arrivals.present
            missing = [number for number in range(1, processes) if number not in self._peers]
            if missing:
                arrivals.close()
                raise _unconnected(
                    f"process {', '.join(map(str, missing))}", f"none within {timeout_s:g} s"
                )
        else:
            assert address is not None
            try:
                self._peers = {0: handshake.connect(address, process, token, deadline)}
            except OSError as error:
                raise _unconnected(f"process {process}", error.strerror or str(error)) from error
        for number, connection in self._peers.items():
            _keep_alive(connection)
            threading.Thread(target=self._read, args=(number, connection), daemon=True).start()

    def end_with(self, text: str, code: int) -> None:
        """Ends this process at once with a line and an exit code; the others follow.

        An ordinary exit would first wait for them, who may wait in a collective for this one.
        """
        with self._lock:
            self._ending = True
        print(text, file=sys.stderr, flush=True)
        # Others that found the same mistake say so themselves before they hear of this one.
        time.sleep(2.0)
        self._exit(code)

    def finish(self) -> None:
        """Notes that this process is through; closing connections mean nothing from now on."""
        with self._lock:
            self._ending = True
        for connection in self._peers.values():
            with contextlib.suppress(OSError):
                connection.sendall(_BYE + b"\n")

    def _read(self, number: int, connection: socket.socket) -> None:
        rest = b""
        while True:
            try:
                received = connection.recv(1024)
            except OSError:
                received = b""
            *lines, rest = (rest + received).split(b"\n")
            rest = rest[: _LONGEST + 1]
            for line in lines:
                if line == _BYE:
                    return
                self._heard(line)
            if not received:
                self._lost(number)
                return

    def _heard(self, line: bytes) -> None:
        """Ends this process where another says that one is lost; any other line is none of ours."""
        digits = line.removeprefix(_LOST_ONE)
        if line.startswith(_LOST_ONE) and len(line) <= _LONGEST and digits.isdigit():
            number = int(digits)
            if number < self._processes and number != self._process:
                self._lost(number)

    def _lost(self, number: int) -> None:
        with self._lock:
            if self._ending:
                return
            self._ending = True
        print(
            f"error: expected process {number} of {self._processes} to go on, found that it has "
            "ended or cannot be reached; see its log, and start all processes again: they continue "
            "from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        for connection in self._peers.values():
            with contextlib.suppress(OSError):
                connection.sendall(_LOST_ONE + f"{number}\n".encode())
        self._exit(LOST)

    def _exit(self, code: int) -> None:
        sys.stdout.flush()
        os._exit(code)


def _unconnected(who: str, what: str) -> UserError:
    return UserError(
        f"expected {who} to connect with the others for watching, found {what}; open the ports "
        "between the hosts"
    )


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):  # not every system has them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
