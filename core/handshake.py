"""Lets the processes of one job find process 0 over a network where others may connect too.

Process 0 greets every connection with a random challenge; a process answers with its number and a
code that only who knows the job's token can make (HMAC-SHA256 over challenge and number), so that
the token itself never travels. All connections are served at once: a stranger that is silent, hangs
up, or sends anything else costs the others nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import ipaddress
import logging
import secrets
import selectors
import socket
import time

from core.errors import UserError

_LOG = logging.getLogger(__name__)
# Holds the job's token where JAX's key-value store is not there yet; the same on all processes.
TOKEN_VARIABLE = "LCRSR_JOB_TOKEN"
_GREETING = b"lcrsr-job 1 "
_CHALLENGE_BYTES = 16
# The longest line of the handshake; what does not end by then is a stranger's.
_LONGEST = 128
# Seconds that a connection has for its handshake.
_HANDSHAKE_S = 5.0
# Connections within their handshake beside one for each process; the oldest has to go for more.
_STRANGERS = 128
_RETRY_S = 0.2
_ACCEPTED, _OTHER_TOKEN, _TAKEN = b"ok", b"no token", b"no number"


@dataclasses.dataclass(frozen=True)
class Arrivals:
    """Holds the connections of the processes that came before the deadline.

    Attributes:
      present: the connection of every process that is there, by number.
      strangers: connections that showed another token than the job's.
    """

    present: dict[int, socket.socket]
    strangers: int

    def close(self) -> None:
        for connection in self.present.values():
            connection.close()


def listen(host: str, port: int = 0) -> socket.socket:
    """Opens process 0's server on the interface that `host` is the address of.

    Where the name leads to no address of this machine (address translation) or to the machine
    itself alone (a line of /etc/hosts for its own name), the others could not come that way: then
    it listens on all interfaces and logs that.

    Args:
      host: of the coordinator, as the other processes are told it.
      port: 0 takes one of the system's choice.

    Raises:
      OSError: the port is taken.
    """
    address = interface(host)
    if address is None:
        _LOG.warning(
            "the coordinator's name %r is no address of this machine's network: listening on all "
            "interfaces",
            host,
        )
        return socket.create_server(("", port))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family)


def interface(host: str) -> str | None:
    """Returns the address of this machine that `host` stands for; None where it has none."""
    try:
        addresses = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return None
    for family, *_, where in addresses:
        address = str(where[0])
        if ipaddress.ip_address(address.partition("%")[0]).is_loopback and not _is_loopback(host):
            continue  # others are led elsewhere by the same name
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
            return address
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def gather(server: socket.socket, processes: int, token: str, deadline: float) -> Arrivals:
    """Waits for processes 1 to `processes` - 1 of the job at `server`, which it closes.

    Args:
      deadline: by `time.monotonic`; whoever is not there by then is missing from the result.
    """
    with server, _Reception(server, processes, token) as reception:
        while len(reception.present) < processes - 1 and time.monotonic() < deadline:
            reception.serve(deadline)
        return reception.result()


@dataclasses.dataclass
class _Visitor:
    """Holds a connection within its handshake."""

    connection: socket.socket
    challenge: str
    until: float
    received: bytes = b""


class _Reception:
    """Serves the connections to process 0's server, all at once."""

    def __init__(self, server: socket.socket, processes: int, token: str):
        self._server, self._processes, self._token = server, processes, token
        self._visitors: dict[int, _Visitor] = {}  # by file descriptor, the oldest first
        self._strangers = 0
        self.present: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ)

    def __enter__(self) -> _Reception:
        return self

    def __exit__(self, *_: object) -> None:
        for visitor in list(self._visitors.values()):
            self._dismiss(visitor)
        self._selector.close()

    def result(self) -> Arrivals:
        for connection in self.present.values():
            connection.setblocking(True)
        return Arrivals(self.present, self._strangers)

    def serve(self, deadline: float) -> None:
        """Does what is due now, or waits for it, for no longer than one handshake may take."""
        ends = [deadline, *(visitor.until for visitor in self._visitors.values())]
        left = max(0.0, min(ends) - time.monotonic())
        for key, _ in self._selector.select(min(left, _HANDSHAKE_S)):
            if key.fileobj is self._server:
                self._admit()
            elif key.fd in self._visitors:
                self._hear(self._visitors[key.fd])
            elif key.data is not None and key.data in self.present:
                self._look_after(key.data)
        now = time.monotonic()
        for visitor in [v for v in self._visitors.values() if v.until <= now]:
            self._dismiss(visitor)

    def _admit(self) -> None:
        try:
            connection = self._server.accept()[0]
        except OSError:  # reset before it was accepted, or no descriptor is free
            time.sleep(0.01)
            return
        visitor = _Visitor(
            connection, secrets.token_hex(_CHALLENGE_BYTES), time.monotonic() + _HANDSHAKE_S
        )
        connection.setblocking(False)
        if len(self._visitors) >= _STRANGERS + self._processes:
            self._dismiss(next(iter(self._visitors.values())))
        self._visitors[connection.fileno()] = visitor
        self._selector.register(connection, selectors.EVENT_READ)
        try:
            connection.sendall(_GREETING + visitor.challenge.encode() + b"\n")
        except OSError:
            self._dismiss(visitor)

    def _dismiss(self, visitor: _Visitor) -> None:
        del self._visitors[visitor.connection.fileno()]
        self._selector.unregister(visitor.connection)
        visitor.connection.close()

    def _hear(self, visitor: _Visitor) -> None:
        end = 0
        try:
            # No byte of what may follow the line is taken.
            peeked = visitor.connection.recv(_LONGEST - len(visitor.received), socket.MSG_PEEK)
            end = peeked.find(b"\n") + 1
            part = visitor.connection.recv(end or len(peeked)) if peeked else b""
        except BlockingIOError:
            return
        except OSError:
            part = b""
        visitor.received += part
        if not part or (not end and len(visitor.received) >= _LONGEST):
            self._dismiss(visitor)
        elif end:
            self._judge(visitor)

    def _judge(self, visitor: _Visitor) -> None:
        words = visitor.received.decode("ascii", "replace").split()
        number = words[0] if len(words) == 2 else ""
        if not (number.isascii() and number.isdecimal()) or len(number) > len(str(self._processes)):
            self._dismiss(visitor)
            return
        if not hmac.compare_digest(
            code_of(self._token, visitor.challenge, int(number)).encode(), words[1].encode()
        ):
            self._strangers += 1
            self._refuse(visitor, _OTHER_TOKEN)
        elif not 0 < int(number) < self._processes or int(number) in self.present:
            self._refuse(visitor, _TAKEN)
        else:
            self._accept(visitor, int(number))

    def _refuse(self, visitor: _Visitor, word: bytes) -> None:
        with contextlib.suppress(OSError):
            visitor.connection.sendall(word + b"\n")
        self._dismiss(visitor)

    def _accept(self, visitor: _Visitor, number: int) -> None:
        connection = visitor.connection
        try:
            connection.sendall(_ACCEPTED + b"\n")
        except OSError:
            self._dismiss(visitor)
            return
        del self._visitors[connection.fileno()]
        self._selector.modify(connection, selectors.EVENT_READ, number)
        self.present[number] = connection

    def _look_after(self, number: int) -> None:
        """Forgets a process that hung up: it may be started again before all are there."""
        connection = self.present[number]
        try:
            gone = not connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            gone = True
        self._selector.unregister(connection)  # its words are for the watch, which gets it
        if gone:
            del self.present[number]
            connection.close()


def code_of(token: str, challenge: str, number: int) -> str:
    """Returns what proves that a process knows the token, without telling it."""
    text = f"{challenge} {number}".encode()
    return hmac.new(token.encode(), text, hashlib.sha256).hexdigest()


def connect(address: tuple[str, int], number: int, token: str, deadline: float) -> socket.socket:
    """Connects process `number` with process 0, trying until the deadline.

    Raises:
      UserError: process 0 has another token, or has no such process or one already.
      OSError: nobody answers at the address.
    """
    failure: Exception = TimeoutError("timed out")
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(
                    socket.create_connection(address, timeout=min(left, _HANDSHAKE_S))
                )
                reply = _introduced(connection, number, token, min(left, _HANDSHAKE_S))
            except OSError as error:  # not there yet, or another job's leftover, or a restart
                failure = error
                reply = b""
            if reply == _ACCEPTED:
                stack.pop_all()
                connection.settimeout(None)
                return connection
            if reply == _OTHER_TOKEN:
                raise UserError(
                    f"expected the token of the job that process 0 at {address[0]}:{address[1]} "
                    f"waits for, found another in {TOKEN_VARIABLE}; set it to one value on all "
                    "processes, or on none"
                )
            if reply == _TAKEN:
                # Who was here before under this number may just be gone and not yet be missed.
                failure = UserError(
                    f"expected process 0 at {address[0]}:{address[1]} to wait for process "
                    f"{number}, found that it has one already or has no such process; number the "
                    "processes of --processes from 0, each once"
                )
        time.sleep(min(_RETRY_S, max(0.0, deadline - time.monotonic())))
    raise failure


def _introduced(connection: socket.socket, number: int, token: str, limit_s: float) -> bytes:
    """Returns process 0's reply, without its line's end; empty where it hangs up."""
    deadline = time.monotonic() + limit_s
    greeting = read_line(connection, deadline)
    if not greeting.startswith(_GREETING):
        return b""
    challenge = greeting[len(_GREETING) :].decode("ascii", "replace")
    connection.sendall(f"{number} {code_of(token, challenge, number)}\n".encode())
    return read_line(connection, deadline)


def read_line(connection: socket.socket, deadline: float) -> bytes:
    """Returns a line without its end, and takes no byte of what may follow it.

    Raises:
      TimeoutError: it has not ended by the deadline.
    """
    line = b""
    while len(line) < _LONGEST:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        byte = connection.recv(1)
        if byte in (b"", b"\n"):
            return line if byte else b""
        line += byte
    return b""
