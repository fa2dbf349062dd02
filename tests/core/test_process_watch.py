"""The watch over a job's processes: one killed, one in error, all through; each its own process."""

import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
# What a process does with its watch: the body of `act`.
PROGRAM = """
import sys, time
from core.process_watch import ProcessWatch, listen
number, processes, port = map(int, sys.argv[1:4])
if number == 0:
    server = listen()
    print(server.getsockname()[1], flush=True)
    watch = ProcessWatch(0, processes, server=server, timeout_s=30)
else:
    watch = ProcessWatch(number, processes, address=("127.0.0.1", port), timeout_s=30)
print("watched", flush=True)
exec(sys.argv[4])
"""
WAITS = "time.sleep(60)"


def job(*bodies):
    """Processes that all hold their watch, process 0 the first."""
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
