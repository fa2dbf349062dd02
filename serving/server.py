"""Runs the server: one process, one model, until SIGTERM or Ctrl-C; SIGHUP reads the model again.

It binds its port before it reads the model, so that a port in use is told at once, and says yes at
/readyz once the model has answered batches of every size that it will meet. At the end it finishes
what is in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator

import uvicorn

from core.errors import UserError
from serving.http_api import Api, Bounds, Service
from serving.micro_batches import Batching
from serving.requests import Answers, Click, Request

_LOG = logging.getLogger(__name__)
_WARM_K = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Says where a server listens, and how it ends.

    Attributes:
      host: a name or an address; the default is this machine alone.
      port: 0 takes a free one.
      drain_s: seconds between SIGTERM, from which on /readyz says no and answers close their
        connections, and the end of listening.
      finish_s: seconds for what is in flight after that.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    drain_s: float = 0.5
    finish_s: float = 30.0


def bound(place: Place) -> socket.socket:
    """Returns a listening socket.

    Raises:
      UserError: the port is in use or not allowed, or the host is none of this machine's.
    """
    where = f"{place.host}:{place.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(
            f"expected an address of this machine as --host, found {place.host!r} "
            f"({error.strerror or error}); correct it"
        ) from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise UserError(
            f"expected a free port at {where}, found {error.strerror}; pass another --port or "
            "--host"
        ) from None
    return listener


def warm(model: Answers, most: int) -> None:
    """Has a model answer batches of 1, 2, 4 ... `most` requests, so that all is compiled."""
    item = next(iter(model.titles), None)
    clicks = () if item is None else (Click(item),)
    k = min(_WARM_K, model.catalogue_size)
    query = None if "recommend" in model.tasks else "warm"
    size = 1
    while True:
        model.recommend_many([Request(clicks=clicks, k=k, query=query)] * size)
        if size >= most:
            break
        size = min(2 * size, most)
    # What cannot say why answers this with an error, which is no trouble here.
    model.recommend_many([Request(clicks=clicks, k=k, query=query, because=True)])


class _Server(uvicorn.Server):
    """Leaves signals to `_Running`: uvicorn would raise them again after its end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Running:
    """Holds a server that runs, and what ends it."""

    def __init__(self, service: Service, server: _Server, place: Place, listener: socket.socket):
        self._service, self._server, self._place = service, server, place
        self._listener = listener
        self._failed: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Runs until a signal ends it.

        Raises:
          UserError: the first model cannot be read.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._begin, self._reload)
        self._begin(self._service.watch)
        self._begin(self._first_load)
        await self._server.serve([self._listener])
        await asyncio.to_thread(self._service.batches.close)
        if self._failed is not None:
            raise self._failed

    def _begin(self, work: Callable) -> None:
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _first_load(self) -> None:
        began = time.monotonic()
        try:
            model = await self._service.load()
        except Exception as error:
            self._failed = error
            self._server.should_exit = True
            return
        host, port = self._listener.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        print(
            f"{model.name}: {model.catalogue_size:,} items, {' and '.join(model.tasks)} at "
            f"http://{host}:{port} (ready after {time.monotonic() - began:.1f} s)",
            flush=True,
        )

    async def _reload(self) -> None:
        with contextlib.suppress(Exception):  # told in the log
            await self._service.reload()

    def _end(self) -> None:
        if self._service.draining:
            self._server.force_exit = True  # a second signal ends at once
            self._server.should_exit = True
            return
        self._service.draining = True
        self._begin(self._drain)

    async def _drain(self) -> None:
        await asyncio.sleep(self._place.drain_s)
        self._server.should_exit = True


def serve(
    load: Callable[[], Answers],
    place: Place,
    batching: Batching | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Serves a model until SIGTERM or Ctrl-C.

    Args:
      load: reads the model; called again for every reload.

    Raises:
      UserError: the port cannot be had, or the model cannot be read.
    """
    batching, bounds = batching or Batching(), bounds or Bounds()

    def ready() -> Answers:
        model = load()
        warm(model, batching.most)
        return model

    with bound(place) as listener:
        asyncio.run(_serve(ready, place, batching, bounds, listener))
    print("stopped; all that was in flight is answered", flush=True)


async def _serve(
    load: Callable[[], Answers],
    place: Place,
    batching: Batching,
    bounds: Bounds,
    listener: socket.socket,
) -> None:
    service = Service(load, batching, bounds)
    config = uvicorn.Config(
        Api(service).app(),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        # Whoever sends a header could else pretend to be this machine.
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=round(place.finish_s),
    )
    await _Running(service, _Server(config), place, listener).run()
