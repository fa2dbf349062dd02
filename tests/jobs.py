"""Processes of one job, started and awaited together."""

import importlib.metadata
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def xla_flags(devices, optimize=False):
    """Returns XLA's flags for so many fake devices.

    Compiling is most of the tests' work, so that programs are not optimised unless `optimize` says
    so, each is compiled in one piece, and its fusions are emitted without MLIR, whose patterns XLA
    builds anew for every fusion: 20 seconds of compilation become 10.
    """
    flags = [f"--xla_force_host_platform_device_count={devices}"]
    if not optimize:
        flags.append("--xla_backend_optimization_level=0")
        # Later ones end a process that has flags they do not know.
        if importlib.metadata.version("jaxlib").startswith("0.10."):
            flags.append("--xla_cpu_use_fusion_emitters=false")
            flags.append("--xla_cpu_parallel_codegen_split_count=1")
    return " ".join(flags)


def one_device():
    """Returns the environment of a program on one device, which loads what others have compiled.

    Programs on several devices compile for themselves: XLA's CPU collectives have waited for each
    other for ever in a program that was loaded from JAX's compilation cache.
    """
    folder = os.environ.get("LCRSR_TEST_COMPILED")
    if not folder:
        return dict(os.environ)
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }


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


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def program(name, *flags, devices=1):
    """A program of launch on so many fake devices."""
    command = [sys.executable, "-m", f"launch.{name}", *flags]
    return Process(command, os.environ | {"XLA_FLAGS": xla_flags(devices)}, cwd=ROOT)


def together(name, *flags, processes=2):
    """The processes of one job, each of one device."""
    job = (*flags, f"--coordinator=127.0.0.1:{free_port()}", f"--processes={processes}")
    return [program(name, *job, f"--process={i}") for i in range(processes)]


def finished(process):
    """What a process has printed that ends well."""
    (code,), (output,) = endings([process])
    assert code == 0, output
    return output


def await_checkpoint(folder, job, timeout=900):
    """Returns once a folder has a whole checkpoint."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and all(process.poll() is None for process in job):
        # A save that is not finished has another name.
        if folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir()):
            return
        time.sleep(0.02)
    pytest.fail(f"expected a checkpoint in {folder}: {endings(job)}")


def lines_of(workdir):
    """The lines of a run's metrics.jsonl."""
    text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def rows_of(workdir):
    """The rows of a run's results.json by stage, split and protocol."""
    rows = json.loads((workdir / "results.json").read_text(encoding="utf-8"))["rows"]
    return {(row["stage"], row["split"], row["protocol"]): row for row in rows}


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
