"""Signals end a program, also while Python is held up; so does a thread that cannot go on."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest

from core import signals
from core.errors import UserError
from core.termination import Termination

ROOT = pathlib.Path(__file__).parent.parent.parent
# Holds the main thread where no handler of Python runs, as a compilation does.
HELD = """
import contextlib, hashlib, sys
from core.errors import Preempted
from core.termination import repeatable, watched
with watched():
    body = repeatable("a test") if sys.argv[1] == "repeatable" else contextlib.nullcontext()
    try:
        with body:
            print("held", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    except Preempted as stop:
        print(stop)
        sys.exit(stop.code)
print("went on")
"""


def held(what):
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, what],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    ("number", "name", "code"), [("TERM", "SIGTERM", 0), ("INT", "Ctrl-C", 130)]
)
def test_what_can_be_repeated_ends_though_python_is_held_up(number, name, code):
    process, began = held("repeatable"), time.monotonic()
    process.send_signal(getattr(signal, f"SIG{number}"))
    output, error = process.communicate(timeout=20)
    assert time.monotonic() - began < 10
    assert process.returncode == code
    assert output == f"{name} in a test: saved all until then; the same command continues\n"
    assert error == ""


def test_a_second_ctrl_c_ends_at_once_though_python_is_held_up():
    process, began = held("plain"), time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("Ctrl-C: stops as soon as all is saved")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert time.monotonic() - began < 10 and process.returncode == 130
    assert error == "Ctrl-C again: ended without saving; the same command continues\n"


# A thread finds that the program can do no more: before training, where signals raise, and in it,
# while Python is held up.
ENDED = """
import hashlib, os, threading, time
from core import cli
from core.errors import UserError
from core.termination import end_with, repeatable, watched
cli.begin("__main__", lambda: None, lambda: None, continues=True)
def main():
    threading.Timer(0.2, end_with, [UserError("expected a test, found its end; mend it")]).start()
    if os.environ["WHERE"] == "before":
        time.sleep(60)
    with watched(), repeatable("a test"):
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
cli.run(main)
"""


@pytest.mark.parametrize("where", ["before", "within"])
def test_a_thread_ends_the_program_in_its_error(where):
    ended = subprocess.run(
        [sys.executable, "-c", ENDED],
        cwd=ROOT,
        env=os.environ | {"WHERE": where},
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.endswith("error: expected a test, found its end; mend it\n")
    assert "Traceback" not in ended.stderr


def test_one_process_of_several_ends_though_the_others_know_nothing(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    signals.set_reason(UserError("expected a test, found its end; mend it"))
    try:
        with pytest.raises(UserError, match="found its end"):
            Termination().arrived()
    finally:
        signals.set_reason(None)
