"""The watch over a job's processes: one killed, one in error, all through; each its own process."""

import pathlib
import signal
import socket
import struct
import subprocess
import sys
import time

from core import handshake

ROOT = pathlib.Path(__file__).parent.parent.parent
# What a process does with its watch: the body of `act`.
PROGRAM = """
import sys, time
from core.handshake import listen
from core.process_watch import ProcessWatch
number, processes, port = map(int, sys.argv[1:4])
job = {"token": "secret", "timeout_s": 30}
if number == 0:
    server = listen("127.0.0.1")
    print(server.getsockname()[1], flush=True)
    watch = ProcessWatch(0, processes, server=server, **job)
else:
    watch = ProcessWatch(number, processes, address=("127.0.0.1", port), **job)
print("watched", flush=True)
exec(sys.argv[4])
"""
WAITS = "time.sleep(60)"


def job(*bodies, meanwhile=lambda port: None):
    """Processes that all hold their watch, process 0 the first; `meanwhile` it waits for them."""
    started: list[subprocess.Popen] = []
    port = "0"
    for number, body in enumerate(bodies):
        words = [sys.executable, "-c", PROGRAM, str(number), str(len(bodies)), port, body]
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        if number == 0:
            port = process.stdout.readline().strip()
            meanwhile(int(port))
    for process in started:
        assert process.stdout.readline() == "watched\n"
    return started


def endings(processes):
    ended = [process.communicate(timeout=30) for process in processes]
    return [p.returncode for p in processes], [error for _, error in ended]


def test_the_rest_end_with_3_and_name_the_one_that_was_killed():
    for killed, rest in ((2, (0, 1)), (0, (1, 2))):
        processes = job(WAITS, WAITS, WAITS)
        began = time.monotonic()
        processes[killed].send_signal(signal.SIGKILL)
        codes, errors = endings(processes)
        assert time.monotonic() - began < 20
        assert codes[killed] == -signal.SIGKILL
        for number in rest:
            assert codes[number] == 3
            assert errors[number].count("\n") == 1
            assert errors[number].startswith(f"error: expected process {killed} of 3 to go on")


def test_a_mistake_ends_its_process_with_its_line_and_the_rest_after_it():
    codes, errors = endings(job(WAITS, "watch.end_with('error: expected A, found B', 2)"))
    assert codes == [3, 2]
    assert errors[1] == "error: expected A, found B\n"
    assert errors[0].startswith("error: expected process 1 of 2 to go on")


def test_processes_that_are_through_may_end_in_any_order():
    codes, errors = endings(
        job("watch.finish(); time.sleep(.5)", "watch.finish()", "time.sleep(1); watch.finish()")
    )
    assert codes == [0, 0, 0] and errors == ["", "", ""]


def test_a_stranger_ends_nothing_and_takes_no_ones_place():
    strangers = []

    def meanwhile(port):
        for said in (b"1\n", b"9\n", b"0\n", b"1234567890123456", b"1 " + b"0" * 64 + b"\n", b""):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(said)
            strangers.append(connection)  # the last one stays silent
        reset = socket.create_connection(("127.0.0.1", port))
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reset.close()

    ends = "time.sleep(.2); watch.finish()"
    codes, errors = endings(job(ends, ends, meanwhile=meanwhile))
    assert codes == [0, 0] and errors == ["", ""]


def peer_of_process_0():
    """A started process 0 and the connection of its process 1, which is this test."""
    body = "time.sleep(20)"
    words = [sys.executable, "-c", PROGRAM, "0", "2", "0", body]
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    port = int(process.stdout.readline())
    connection = handshake.connect(("127.0.0.1", port), 1, "secret", time.monotonic() + 20)
    assert process.stdout.readline() == "watched\n"
    return process, connection


def test_lines_that_mean_nothing_are_not_heeded():
    process, connection = peer_of_process_0()
    for line in (b"lost", b"lost x", b"lost 99", b"lost 0", b"lost -1", b"\xff", b"lost 1" * 9):
        connection.sendall(line + b"\n")
    for _ in range(64):
        connection.sendall(b"0" * 65536)  # a line without an end is not kept
    time.sleep(0.3)
    assert process.poll() is None
    connection.sendall(b"\nlost 1\n")
    _, error = process.communicate(timeout=20)
    assert process.returncode == 3 and error.count("\n") == 1
    assert error.startswith("error: expected process 1 of 2 to go on")
