"""Joining the processes of one job, on many hosts or on one: a roll call, then JAX's own start.

JAX waits for missing processes and then aborts without saying which; the roll call names them. It
uses the coordinator's address before JAX does: every process tells process 0 its number, and 0
answers all of them once all are there, or once time is up.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time

import jax

from core.errors import UserError

_LOG = logging.getLogger(__name__)
_GO = b"go"
_RETRY_S = 0.2


def start(coordinator: str | None, processes: int, process: int, timeout_s: int) -> None:
    """Joins this process to its job; call before anything touches a device.

    Args:
      coordinator: HOST:PORT of process 0. None lets JAX find the job by itself (Cloud TPU, SLURM,
        Open MPI), which also times out but names no one.
      processes, process: how many there are, and which this is, from 0.
      timeout_s: seconds to wait for the others.

    Raises:
      UserError: a process is missing when time is up, or the numbers make no sense.
    """
    if coordinator is None:
        jax.distributed.initialize(initialization_timeout=timeout_s)
        return
    if not 0 <= process < processes:
        raise UserError(
            f"expected --process from 0 to {processes - 1}, found {process}; number the processes "
            "of --processes from 0"
        )
    roll_call(coordinator, processes, process, timeout_s)
    jax.distributed.initialize(
        coordinator, processes, process, initialization_timeout=max(10, timeout_s)
    )


def describe() -> str:
    """'process 1 of 4, 2 of 8 devices' of this process."""
    return (
        f"process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} of "
        f"{jax.device_count()} devices"
    )


def roll_call(coordinator: str, processes: int, process: int, timeout_s: float) -> None:
    """Returns once all processes are there.

    Raises:
      UserError: names who is missing when time is up.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"expected --coordinator=HOST:PORT, found {coordinator!r}")
    deadline = time.monotonic() + timeout_s
    if process == 0:
        _call(int(port), processes, deadline, timeout_s)
    else:
        _answer(host, int(port), process, deadline, timeout_s)


def _call(port: int, processes: int, deadline: float, timeout_s: float) -> None:
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port), reuse_port=False))
        except OSError as error:
            raise UserError(
                f"expected port {port} of the coordinator to be free, found {error.strerror}; "
                "pass another --coordinator"
            ) from None
        while len(present) < processes - 1 and time.monotonic() < deadline:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            with contextlib.suppress(OSError):
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(5.0)
                number = connection.recv(16).decode("ascii", "replace").strip()
                if number.isdigit():
                    present[int(number)] = connection
        missing = [number for number in range(1, processes) if number not in present]
        reply = ("missing " + ", ".join(map(str, missing))).encode() if missing else _GO
        for connection in present.values():
            with contextlib.suppress(OSError):
                connection.sendall(reply)
    if missing:
        raise _missing(missing, processes, timeout_s)


def _answer(host: str, port: int, process: int, deadline: float, timeout_s: float) -> None:
    while time.monotonic() < deadline:
        try:
            connection = socket.create_connection((host, port), timeout=_RETRY_S)
        except OSError:
            time.sleep(_RETRY_S)  # process 0 is not there yet
            continue
        with connection:
            connection.sendall(f"{process}\n".encode())
            # Process 0 answers by its own clock, which may have started later.
            connection.settimeout(timeout_s + 10)
            with contextlib.suppress(OSError):
                reply = connection.recv(1024)
                if reply == _GO:
                    return
                if reply:
                    raise UserError(
                        f"expected all processes of the job within {timeout_s:g} s, found "
                        f"{reply.decode()}; start them, or look at their logs"
                    )
        time.sleep(_RETRY_S)  # hung up without a word: another job's leftover, or a restart
    raise UserError(
        f"expected process 0 at {host}:{port} within {timeout_s:g} s, found no answer; start it, "
        "or correct --coordinator"
    )


def _missing(missing: list[int], processes: int, timeout_s: float) -> UserError:
    return UserError(
        f"expected {processes} processes within {timeout_s:g} s, found missing "
        f"{', '.join(map(str, missing))}; start them, or look at their logs"
    )
