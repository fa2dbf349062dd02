"""Joins the processes of one job, on many hosts or on one: a roll call, then JAX's own start.

JAX waits for missing processes and then aborts without saying which; the roll call names them. It
uses the coordinator's address before JAX does: every process tells process 0 its number
(`core.handshake`), and 0 answers all of them once all are there, or once time is up. From then on
`core.process_watch` ends all of them where one is lost.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

# The key-value store of the coordinator has no public name, and Orbax uses this one. The functions
# of jax.experimental.multihost_utils are no match: they run programs on the devices, which wait for
# a slow process without a bound of ours, and compile anew for values of another length.
from jax._src import distributed as jax_distributed

from core import handshake, process_watch
from core.errors import UserError

_LOG = logging.getLogger(__name__)
_GO = b"go"
_PATIENCE_S = 10
# A machine that dies without a word, where the watch fails to notice: all end within two minutes.
_HEARTBEAT_S = 60
# How long the others wait for what process 0 does alone, such as reading raw data: the watch ends
# them earlier where it ends.
_ALONE_MS = 6 * 3600 * 1000
_numbers = itertools.count()
# The key under which this process stored its value in the last `of_all`.
_told = ""


def start(
    coordinator: str | None, processes: int, process: int, timeout_s: int
) -> process_watch.ProcessWatch | None:
    """Joins this process to its job; call before anything touches a device.

    Args:
      coordinator: HOST:PORT of process 0. None lets JAX find the job by itself (Cloud TPU, SLURM,
        Open MPI), which also times out but names no one.
      processes, process: how many there are, and which this is, from 0.
      timeout_s: seconds to wait for the others.

    Returns:
      The watch over the other processes; None for a process alone.

    Raises:
      UserError: a process is missing when time is up, or the numbers make no sense.
    """
    if coordinator is None:
        jax.distributed.initialize(
            initialization_timeout=timeout_s, heartbeat_timeout_seconds=_HEARTBEAT_S
        )
        return _watch(timeout_s)
    if not 0 <= process < processes:
        raise UserError(
            f"expected --process from 0 to {processes - 1}, found {process}; number the processes "
            "of --processes from 0"
        )
    roll_call(coordinator, processes, process, timeout_s)
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        initialization_timeout=max(10, timeout_s),
        heartbeat_timeout_seconds=_HEARTBEAT_S,
        coordinator_bind_address=_bind_address(coordinator),
    )
    return _watch(timeout_s)


def _bind_address(coordinator: str) -> str | None:
    """Returns where JAX's own service listens: the coordinator's interface, if that is found."""
    host, _, port = coordinator.rpartition(":")
    address = handshake.interface(host.strip("[]"))
    if address is None or "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return None
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _watch(timeout_s: int) -> process_watch.ProcessWatch | None:
    job: Any = jax_distributed.global_state
    if job.num_processes in (None, 1):
        return None
    key = "lcrsr/watch"
    host = job.coordinator_address.rpartition(":")[0].strip("[]")
    if job.process_id == 0:
        server, token = handshake.listen(host), secrets.token_hex(32)
        where = {"port": server.getsockname()[1], "token": token}
        job.client.key_value_set(key, json.dumps(where))
        return process_watch.ProcessWatch(
            0, job.num_processes, token=token, server=server, timeout_s=timeout_s
        )
    where = json.loads(job.client.blocking_key_value_get(key, timeout_s * 1000))
    return process_watch.ProcessWatch(
        job.process_id,
        job.num_processes,
        token=where["token"],
        address=(host, where["port"]),
        timeout_s=timeout_s,
    )


def _client() -> Any:
    return jax_distributed.global_state.client


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Process 0 runs the body first, the others at once when it is through, and all go on together.

    What 0 leaves on a disk that they share, the others find; on disks of their own each makes it.
    All processes must come here in the same order.

    Raises:
      UserError: process 0's body has raised it; on every process.
    """
    if jax.process_count() == 1:
        yield
        return
    client, number = _client(), next(_numbers)
    key = f"lcrsr/first/{number}"
    if jax.process_index() == 0:
        try:
            yield
        except UserError as error:
            client.key_value_set(key, json.dumps(str(error)))
            raise
        client.key_value_set(key, json.dumps(""))
    else:
        if mistake := json.loads(client.blocking_key_value_get(key, _ALONE_MS)):
            raise UserError(mistake)
        yield
    client.wait_at_barrier(f"lcrsr/all/{number}", _ALONE_MS)


def of_first(value: Any) -> Any:
    """Process 0's `value`, of what JSON holds, on every process.

    What is read from files may differ between processes, and all must decide alike.
    """
    if jax.process_count() == 1:
        return value
    client, key = _client(), f"lcrsr/value/{next(_numbers)}"
    if jax.process_index() == 0:
        client.key_value_set(key, json.dumps(value))
        return value
    return json.loads(client.blocking_key_value_get(key, _ALONE_MS))


def by_first(make: Callable[[], Any]) -> Any:
    """Returns on every process what `make` returns, of what JSON holds, which process 0 calls.

    The others wait meanwhile, so that `make` must not wait for them.

    Raises:
      UserError: as `make`, on every process.
    """
    if jax.process_count() == 1:
        return make()
    value, mistake = None, None
    if jax.process_index() == 0:
        try:
            value = make()
        except UserError as error:
            mistake = error
    value, said = of_first([value, mistake and str(mistake)])
    if said is not None:
        raise mistake or UserError(said)
    return value


def of_all(value: Any) -> list[Any]:
    """Returns every process's `value`, of what JSON holds, in the order of the processes."""
    global _told
    if jax.process_count() == 1:
        return [value]
    client, key = _client(), f"lcrsr/values/{next(_numbers)}"
    own = f"{key}/{jax.process_index()}"
    client.key_value_set(own, json.dumps(value))
    texts = [
        client.blocking_key_value_get(f"{key}/{process}", _ALONE_MS)
        for process in range(jax.process_count())
    ]
    # All are here, so all have read the values of the call before: the store must not grow.
    if _told:
        client.key_value_delete(_told)
    _told = own
    return [json.loads(text) for text in texts]


def describe() -> str:
    """Describes this process in a line: 'process 1 of 4, 2 of 8 devices'."""
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
    address = (host.strip("[]"), int(port))
    token = os.environ.get(handshake.TOKEN_VARIABLE, "")
    if process == 0:
        _call(address, processes, token, deadline, timeout_s)
    else:
        _answer(address, process, token, deadline, timeout_s)


def _call(
    address: tuple[str, int], processes: int, token: str, deadline: float, timeout_s: float
) -> None:
    try:
        server = handshake.listen(*address)
    except OSError as error:
        raise UserError(
            f"expected port {address[1]} of the coordinator to be free, found {error.strerror}; "
            "pass another --coordinator"
        ) from None
    arrivals = handshake.gather(server, processes, token, deadline)
    with contextlib.closing(arrivals):
        missing = [number for number in range(1, processes) if number not in arrivals.present]
        reply = ("missing " + ", ".join(map(str, missing))).encode() if missing else _GO
        for connection in arrivals.present.values():
            with contextlib.suppress(OSError):
                connection.sendall(reply + b"\n")
    if missing:
        raise _missing(missing, processes, timeout_s, arrivals.strangers)


def _answer(
    address: tuple[str, int], process: int, token: str, deadline: float, timeout_s: float
) -> None:
    while time.monotonic() < deadline:
        try:
            connection = handshake.connect(address, process, token, deadline)
        except OSError:
            break
        with connection, contextlib.suppress(OSError):
            # Process 0 answers by its own clock, which may have started later.
            reply = handshake.read_line(connection, time.monotonic() + timeout_s + _PATIENCE_S)
            if reply == _GO:
                return
            if reply.startswith(b"missing "):
                raise UserError(
                    f"expected all processes of the job within {timeout_s:g} s, found "
                    f"{reply.decode('ascii', 'replace')}; start them, or look at their logs"
                )
        # Hung up without a word: another job's leftover, or a restart.
    raise UserError(
        f"expected process 0 at {address[0]}:{address[1]} within {timeout_s:g} s, found no answer; "
        "start it, or correct --coordinator"
    )


def _missing(missing: list[int], processes: int, timeout_s: float, strangers: int) -> UserError:
    what = f"found missing {', '.join(map(str, missing))}"
    if strangers:
        what += f", and {strangers} connections with another {handshake.TOKEN_VARIABLE}"
    return UserError(
        f"expected {processes} processes within {timeout_s:g} s, {what}; start them, or look at "
        "their logs"
    )
