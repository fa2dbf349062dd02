"""The roll call of a job's processes: all there, one missing, no process 0, a taken port."""

import socket
import threading
import time

import pytest

from core import distributed
from core.errors import UserError


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def call_all(numbers, processes, timeout_s):
    """{process: None or its error} of roll calls that run at once."""
    address, ended = f"localhost:{free_port()}", {}

    def run(number):
        try:
            distributed.roll_call(address, processes, number, timeout_s)
            ended[number] = None
        except UserError as error:
            ended[number] = str(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return ended


def test_everyone_goes_once_all_are_there():
    assert call_all([0, 1, 2], 3, 30.0) == {0: None, 1: None, 2: None}


def test_everyone_hears_who_is_missing():
    ended = call_all([0, 2], 4, 3.0)
    assert sorted(ended) == [0, 2]
    for text in ended.values():
        assert "missing 1, 3;" in text and "within 3 s" in text


def test_without_process_0_its_address_is_named():
    ended = call_all([1], 2, 0.5)
    assert "expected process 0 at localhost:" in ended[1]


def test_a_taken_port_and_wrong_numbers_are_refused():
    with socket.create_server(("", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match="to be free"):
            distributed.roll_call(address, 2, 0, 1.0)
    with pytest.raises(UserError, match="from 0 to 1, found 2"):
        distributed.start("localhost:1", 2, 2, 1)
    with pytest.raises(UserError, match="HOST:PORT"):
        distributed.roll_call("localhost", 2, 1, 1.0)


def test_a_stranger_at_the_roll_call_changes_nothing():
    address, ended = f"127.0.0.1:{free_port()}", []
    calls = [
        threading.Thread(
            target=lambda n=n: ended.append(distributed.roll_call(address, 3, n, 30.0))
        )
        for n in (0, 1, 2)
    ]
    calls[0].start()
    strangers = []
    for said in (b"1\n", b"9\n", b"0\n", b"1234567890123456", b"", b"", b""):
        for _ in range(100):
            try:
                strangers.append(socket.create_connection(("127.0.0.1", int(address[10:]))))
                break
            except ConnectionRefusedError:
                time.sleep(0.02)  # process 0 does not listen yet
        strangers[-1].sendall(said)
    began = time.monotonic()
    for call in calls[1:]:
        call.start()
    for call in calls:
        call.join(timeout=60)
    assert ended == [None, None, None] and time.monotonic() - began < 5.0
    assert len(strangers) == 7


def test_the_token_of_the_environment_is_asked_for(monkeypatch):
    monkeypatch.setenv("LCRSR_JOB_TOKEN", "secret")
    assert call_all([0, 1], 2, 30.0) == {0: None, 1: None}
    address, ended = f"127.0.0.1:{free_port()}", []

    def waits():
        with pytest.raises(UserError) as caught:
            distributed.roll_call(address, 2, 0, 1.5)
        ended.append(str(caught.value))

    thread = threading.Thread(target=waits)
    thread.start()
    time.sleep(0.3)
    monkeypatch.setenv("LCRSR_JOB_TOKEN", "other")
    with pytest.raises(UserError, match="found another in LCRSR_JOB_TOKEN"):
        distributed.roll_call(address, 2, 1, 5.0)
    thread.join(timeout=30)
    assert "found missing 1, and 1 connections with another LCRSR_JOB_TOKEN" in ended[0]
