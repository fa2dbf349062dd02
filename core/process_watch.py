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

from core.errors import UserError

# The exit code of a process that ended because another did.
LOST = 3
_BYE = b"bye\n"
# Probes of a connection without traffic: a lost machine is noticed after 20 + 4 * 10 seconds.
_KEEPALIVE = (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4))


def listen() -> socket.socket:
    """Process 0's end, at a port of the system's choice."""
    return socket.create_server(("", 0))


class ProcessWatch:
    """Watches the other processes from threads of its own, until `finish` or the end.

    Args:
      process, processes: which this is, from 0, and how many there are.
      server: of process 0, `listen()`; it waits here for the others.
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
        server: socket.socket | None = None,
        address: tuple[str, int] | None = None,
        timeout_s: float = 60.0,
    ):
        self._process, self._processes = process, processes
        self._ending, self._lock = False, threading.Lock()
        try:
            if server is not None:
                self._peers = _accepted(server, processes - 1, timeout_s)
            else:
                assert address is not None
                connection = socket.create_connection(address, timeout=timeout_s)
                connection.sendall(f"{process}\n".encode())
                self._peers = {0: connection}
        except OSError as error:
            raise UserError(
                f"expected process {process} to connect with the others for watching, found "
                f"{error.strerror or error}; open the ports between the hosts"
            ) from error
        for number, connection in self._peers.items():
            connection.settimeout(None)
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
        """This process is through; closing connections mean nothing from now on."""
        with self._lock:
            self._ending = True
        for connection in self._peers.values():
            with contextlib.suppress(OSError):
                connection.sendall(_BYE)

    def _read(self, number: int, connection: socket.socket) -> None:
        received = b""
        while True:
            try:
                found = connection.recv(1024)
            except OSError:
                found = b""
            received += found
            for line in received.splitlines():
                if line.startswith(b"lost "):
                    self._lost(int(line.split()[1]))
            if received.endswith(_BYE):
                return
            if not found:
                self._lost(number)
                return

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
                connection.sendall(f"lost {number}\n".encode())
        self._exit(LOST)

    def _exit(self, code: int) -> None:
        sys.stdout.flush()
        os._exit(code)


def _accepted(server: socket.socket, count: int, timeout_s: float) -> dict[int, socket.socket]:
    found: dict[int, socket.socket] = {}
    deadline = time.monotonic() + timeout_s
    with server:
        while len(found) < count:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            connection = server.accept()[0]
            connection.settimeout(5.0)
            with contextlib.suppress(ValueError):  # a stranger's connection
                found[int(_line(connection))] = connection
    return found


def _line(connection: socket.socket) -> bytes:
    """A short line, and no byte of what may already follow it."""
    line = b""
    while len(line) < 16 and not line.endswith(b"\n"):
        found = connection.recv(1)
        if not found:
            break
        line += found
    return line


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):  # not every system has them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
