"""Processes of one job, started and awaited together."""

import signal
import subprocess
import tempfile

import pytest


class Process(subprocess.Popen):
    """Its output goes to a file: a pipe that nobody reads fills, and then the whole job waits."""

    def __init__(self, command, environment, **options):
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        # The fault handler says where a process waits that has to be ended.
        environment = environment | {"PYTHONFAULTHANDLER": "1"}
        super().__init__(
            command, env=environment, stdout=self._file, stderr=subprocess.STDOUT, **options
        )

    def output(self):
        """What it has printed, once it has ended."""
        self._file.seek(0)
        return self._file.read()


def endings(job, timeout=600):
    """The exit codes and outputs of all; fails where one is still there after `timeout` seconds."""
    try:
        codes = [process.wait(timeout) for process in job]
    except subprocess.TimeoutExpired:
        for process in job:
            process.send_signal(signal.SIGABRT)
            process.wait()
        outputs = "\n\n".join(process.output() for process in job)
        pytest.fail(f"expected an end within {timeout} s:\n{outputs}")
    return codes, [process.output() for process in job]
