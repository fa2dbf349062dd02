"""Process 0's door: who may come in, and what strangers can do there."""

import contextlib
import socket
import struct
import threading
import time

import pytest

from core import handshake
from core.errors import UserError


class Door:
    """Process 0 of a job, waiting in a thread."""

    def __init__(self, processes, seconds, token="secret"):
        server = handshake.listen("127.0.0.1")
        self.address = server.getsockname()[:2]
        self.arrivals, self.took = None, None

        def wait():
            began = time.monotonic()
            self.arrivals = handshake.gather(server, processes, token, began + seconds)
            self.took = time.monotonic() - began

        self._thread = threading.Thread(target=wait)
        self._thread.start()

    def present(self):
        self._thread.join(timeout=30)
        return sorted(self.arrivals.present)

    def come(self, number, token="secret", seconds=10.0):
        return handshake.connect(self.address, number, token, time.monotonic() + seconds)

    def stranger(self, said=b""):
        connection = socket.create_connection(self.address, timeout=10)
        connection.sendall(said)
        return connection


def test_strangers_of_every_kind_cost_the_job_nothing():
    door = Door(3, 30.0)
    said = [b"1\n", b"9\n", b"0\n", b"1234567890123456", b"\xff" * 500, b"GET / HTTP/1.1\r\n\r\n"]
    said += [b"1 " + b"0" * 64 + b"\n", b"-1 x\n", b"\xc2\xb2 y\n", b"1 \xe9\n", b"\n", b"1 2 3\n"]
    strangers = [door.stranger(words) for words in said]
    strangers += [door.stranger() for _ in range(200)]  # silent ones, more than it keeps
    for _ in range(3):
        reset = door.stranger()
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reset.close()
    came = [door.come(number) for number in (2, 1)]
    assert door.present() == [1, 2]
    assert door.took < 5.0
    for connection in (*strangers, *came):
        connection.close()


def test_silent_ones_do_not_outlast_the_deadline():
    door = Door(2, 0.5)
    strangers = [door.stranger() for _ in range(3)]
    assert door.present() == [] and door.took < 2.0
    assert len(strangers) == 3


def test_a_code_is_of_one_challenge_and_one_number():
    door = Door(3, 1.0)
    greetings = []
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            connection = stack.enter_context(door.stranger())
            line = handshake.read_line(connection, time.monotonic() + 5)
            greetings.append(line.decode().rpartition(" ")[2])
        assert greetings[0] != greetings[1]
        overheard = handshake.code_of("secret", greetings[0], 1)
        connection.sendall(f"1 {overheard}\n".encode())
        assert handshake.read_line(connection, time.monotonic() + 5) == b"no token"
    assert door.present() == [] and door.arrivals.strangers == 1


def test_another_token_ends_at_once_and_says_so():
    door = Door(2, 1.0)
    for token in ("other", ""):
        with pytest.raises(UserError, match="found another in LCRSR_JOB_TOKEN; set it to one"):
            door.come(1, token)
    assert door.present() == [] and door.arrivals.strangers == 2


def test_a_number_is_taken_once_and_only_those_of_the_job():
    door = Door(3, 30.0)
    first = door.come(1)
    for number in (1, 3, 0):
        with pytest.raises(UserError, match=f"wait for process {number}, found that it has one"):
            door.come(number, seconds=0.5)
    first.close()
    again = door.come(1)  # started again before all were there
    last = door.come(2)
    assert door.present() == [1, 2]
    for connection in (again, last):
        connection.close()


def test_what_a_process_says_next_is_left_to_whom_it_is_meant_for():
    door = Door(3, 30.0)
    early = door.come(1)
    early.sendall(b"bye\n")
    time.sleep(0.2)
    late = door.come(2)
    assert door.present() == [1, 2]
    assert door.arrivals.present[1].recv(16) == b"bye\n"
    for connection in (early, late):
        connection.close()


def test_the_server_is_on_the_coordinators_interface_alone():
    with handshake.listen("127.0.0.1") as server:
        assert server.getsockname()[0] == "127.0.0.1"
    assert handshake.interface("localhost") in ("127.0.0.1", "::1")
    # An address of documentation (RFC 5737) is none of this machine, nor does the name exist.
    assert handshake.interface("192.0.2.1") is None
    assert handshake.interface("no-such-host.invalid") is None
    with handshake.listen("192.0.2.1") as server:
        assert server.getsockname()[0] == "0.0.0.0"
