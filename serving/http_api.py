"""Answers HTTP: questions in JSON to recommendations in JSON, and what a keeper of servers asks.

What is wrong with a request is said in one line of JSON, `{"error": "expected ..., found ..."}`:
400 is no JSON, 413 too long, 415 another type of content, 422 JSON with wrong values, 503 more
than can be answered now.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.resources
import ipaddress
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import prometheus_client
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import UserError
from serving import openapi
from serving.micro_batches import Batching, Closed, MicroBatches, Overloaded
from serving.requests import RECOMMEND, SEARCH, Answer, Answers, Limits, Request, parse
from serving.title_search import TitleSearch

_LOG = logging.getLogger(__name__)
_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_SECURITY = {
    # Nothing but this server's own files, and no text of data as code.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
# Seconds and bytes for which a body that is too long is read to its end, so that its sender hears
# the reason instead of a broken connection.
_DISCARD_S, _DISCARD_BYTES = 5.0, 128 * 2**20
_MOST_TITLES = 50
_OVERLOADED = (
    "expected fewer requests at once, found more than can be answered in time; send it again later"
)
_RETRY_AFTER_S = "1"
_ASKED = ("/recommend", "/search")
# Seconds between two looks at the event loop, and for which it may be late.
_LOOK_S, _LATE_S = 0.02, 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds what one HTTP request may ask.

    Attributes:
      body_bytes: of a body.
      body_s: seconds that a body may take to arrive.
      k: items of an answer.
      question: what the question in it may hold.
    """

    body_bytes: int = 2**20
    body_s: float = 10.0
    k: int = 1000
    question: Limits = dataclasses.field(default_factory=Limits)


class _Refused(Exception):
    """Ends a request with a status and a reason."""

    def __init__(self, status: int, reason: str, **headers: str):
        super().__init__(reason)
        self.status, self.reason = status, reason
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Metrics:
    """Counts what /metrics tells."""

    def __init__(self, waiting: Callable[[], int]):
        self.registry = registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=registry)
        self.requests = prometheus_client.Counter(
            "lcrsr_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        seconds = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.25, 0.5, 1.0, 2.5)
        self.seconds = prometheus_client.Histogram(
            "lcrsr_request_seconds",
            "Seconds from a request to its answer.",
            ["path"],
            buckets=seconds,
            registry=registry,
        )
        self.batch_sizes = prometheus_client.Histogram(
            "lcrsr_batch_requests",
            "Requests of a batch.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.batch_seconds = prometheus_client.Histogram(
            "lcrsr_batch_seconds", "Seconds of a batch.", buckets=seconds, registry=registry
        )
        self.reloads = prometheus_client.Counter(
            "lcrsr_reloads", "Reloads by how they ended.", ["result"], registry=registry
        )
        gauge = prometheus_client.Gauge(
            "lcrsr_waiting_requests", "Requests that wait for a batch.", registry=registry
        )
        gauge.set_function(waiting)

    def observe_batch(self, size: int, seconds: float) -> None:
        self.batch_sizes.observe(size)
        self.batch_seconds.observe(seconds)


@dataclasses.dataclass(frozen=True)
class _Loaded:
    model: Answers
    titles: TitleSearch
    since: float


class Service:
    """Holds the model that answers now, and exchanges it for another without losing a request.

    Args:
      load: reads the model, from the same place every time, ready for its first request. Raises
        UserError where that cannot be read.

    Attributes:
      draining: whether the server is about to end; answers then close their connections.
      late: whether requests have lately waited long until they were read.
    """

    def __init__(self, load: Callable[[], Answers], batching: Batching, bounds: Bounds):
        self.bounds, self.draining, self.late = bounds, False, False
        self._load, self._loading = load, asyncio.Lock()
        self._loaded: _Loaded | None = None
        self.metrics: Metrics
        self.batches = MicroBatches(batching, lambda *seen: self.metrics.observe_batch(*seen))
        self.metrics = Metrics(self.batches.waiting)

    @property
    def loaded(self) -> _Loaded:
        """Returns what answers now; refuses with 503 where nothing is loaded yet."""
        if self._loaded is None:
            raise _Refused(
                503, "expected a loaded model, found none yet; see /readyz", retry_after="1"
            )
        return self._loaded

    @property
    def ready(self) -> bool:
        return self._loaded is not None and not self.draining

    async def load(self) -> Answers:
        """Reads the model, and from then on answers with it; else the one before goes on.

        Raises:
          UserError: it cannot be read.
        """
        async with self._loading:
            self._loaded = await asyncio.to_thread(self._read)
            self.batches.use(self._loaded.model)
            return self._loaded.model

    def _read(self) -> _Loaded:
        model = self._load()
        return _Loaded(model, TitleSearch(model.titles), time.time())

    async def watch(self) -> None:
        """Keeps `late` up to date: what arrives while the event loop is busy waits unseen."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(_LOOK_S)
            self.late = loop.time() - began > _LOOK_S + _LATE_S

    async def reload(self) -> Answers:
        """Does what `load` does, and counts and logs how it ended."""
        result = "kept"
        try:
            model = await self.load()
            result = "replaced"
        except UserError as error:
            _LOG.error("the model before goes on answering: %s", error)
            raise
        except Exception:
            _LOG.exception("the model before goes on answering")
            raise
        finally:
            self.metrics.reloads.labels(result).inc()
        _LOG.info("answering with %s", model.name)
        return model

    async def answer(self, request: Request) -> Answer:
        """Returns the model's answer.

        Raises:
          UserError: the model cannot answer it.
        """
        try:
            outcome = await asyncio.wrap_future(self.batches.submit(request))
        except Overloaded:
            raise _Refused(503, _OVERLOADED, retry_after=_RETRY_AFTER_S) from None
        except Closed:
            raise _Refused(503, "expected a server that goes on, found one that ends") from None
        if isinstance(outcome, UserError):
            raise outcome
        return outcome


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Half a surrogate pair, which a title may hold, becomes JSON's own escape of it.
    content = text.encode("utf-8", "backslashreplace")
    return Response(content, status, headers, media_type="application/json")


def _error(status: int, reason: str, headers: dict[str, str] | None = None) -> Response:
    return _json({"error": " ".join(reason.split())}, status, headers)


async def _body(http: HttpRequest, bounds: Bounds) -> bytes:
    """Reads a body; refuses what is too long, too slow or no JSON by its own headers."""
    kind, _, parameters = http.headers.get("content-type", "").lower().partition(";")
    charset = parameters.partition("charset=")[2].strip(' "') or "utf-8"
    if kind.strip() != "application/json" or charset not in ("utf-8", "utf8"):
        raise _Refused(
            415, f"expected Content-Type: application/json in UTF-8, found {kind[:60]!r}; set it"
        )
    if http.headers.get("content-encoding", "identity").lower() != "identity":
        raise _Refused(415, "expected a body without Content-Encoding, found one; send it plain")
    told = http.headers.get("content-length", "")
    try:
        async with asyncio.timeout(bounds.body_s):
            if told.isdigit() and int(told) > bounds.body_bytes:
                await _discard(http)
                raise _too_long(bounds)
            content = bytearray()
            async for part in http.stream():
                content += part
                if len(content) > bounds.body_bytes:
                    await _discard(http)
                    raise _too_long(bounds)
    except TimeoutError:
        raise _Refused(
            408,
            f"expected the body within {bounds.body_s:g} s, found less; send it faster",
            connection="close",
        ) from None
    return bytes(content)


def _too_long(bounds: Bounds) -> _Refused:
    reason = f"expected a body of at most {bounds.body_bytes:,} bytes, found more; send less"
    return _Refused(413, reason, connection="close")


async def _discard(http: HttpRequest) -> None:
    if "100-continue" in http.headers.get("expect", "").lower():
        return  # the sender waits for an answer before it sends
    left = _DISCARD_BYTES
    try:
        async with asyncio.timeout(_DISCARD_S):
            while left > 0:
                message = await http.receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
    except TimeoutError:
        return


def _question(content: bytes) -> Any:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Refused(
            400, f"expected a body in UTF-8, found another byte at {error.start}; encode it so"
        ) from None
    try:
        return json.loads(text)
    except RecursionError:
        raise _Refused(400, "expected JSON, found values nested too deeply; flatten them") from None
    except ValueError as error:
        raise _Refused(400, f"expected JSON, found {str(error)[:120]}; correct it") from None


def is_loopback(http: HttpRequest) -> bool:
    """Tells whether a request comes from this machine, and not through a proxy on it."""
    if http.client is None or any(name in http.headers for name in _FORWARDED):
        return False
    try:
        address = ipaddress.ip_address(http.client.host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class Api:
    """Answers the paths of the server with a `Service`."""

    def __init__(self, service: Service):
        self._service = service
        folder = importlib.resources.files("serving") / "page"
        self._page = {
            path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _PAGE.items()
        }

    def app(self) -> ASGIApp:
        """Returns the ASGI application."""
        routes = [
            ("/recommend", self.recommend, "POST"),
            ("/search", self.search, "POST"),
            ("/reload", self.reload, "POST"),
            ("/items", self.items, "GET"),
            ("/model", self.model, "GET"),
            ("/healthz", self.healthz, "GET"),
            ("/readyz", self.readyz, "GET"),
            ("/metrics", self.metrics, "GET"),
            ("/openapi.json", self.openapi, "GET"),
            *((path, self.page, "GET") for path in _PAGE),
        ]
        handlers: Any = {HTTPException: self._no_such}
        whole = Starlette(
            routes=[
                Route(path, self._told(path, answer), methods=[method])
                for path, answer, method in routes
            ],
            exception_handlers=handlers,
        )
        return self._unless_overloaded(whole)

    def _unless_overloaded(self, whole: ASGIApp) -> ASGIApp:
        """Refuses questions before anything of them is read where as many wait as may, or are read
        late.

        Under twice the load that it bears a server refuses every other question: were that as much
        work as reading one, the others would wait for it.
        """
        service, metrics = self._service, self._service.metrics
        headers = {"retry-after": _RETRY_AFTER_S} | _SECURITY
        refused = _error(503, _OVERLOADED, headers)
        refused_at_end = _error(503, _OVERLOADED, headers | {"connection": "close"})

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            too_much = service.batches.full or service.late
            if too_much and scope["type"] == "http" and scope["path"] in _ASKED:
                metrics.requests.labels(scope["path"], "503").inc()
                await (refused_at_end if service.draining else refused)(scope, receive, send)
                return
            await whole(scope, receive, send)

        return app

    def _told(
        self, path: str, answer: Callable[[HttpRequest], Awaitable[Response]]
    ) -> Callable[[HttpRequest], Awaitable[Response]]:
        """Wraps what answers a path: errors become JSON, and all is counted."""
        metrics = self._service.metrics

        async def told(http: HttpRequest) -> Response:
            began = time.monotonic()
            try:
                response = await answer(http)
            except _Refused as refused:
                response = _error(refused.status, refused.reason, refused.headers)
            except UserError as error:
                response = _error(422, str(error))
            except ClientDisconnect:
                response = _error(400, "expected a whole body, found its connection closed")
            except Exception:
                _LOG.exception("%s could not be answered", path)
                response = _error(500, "the server could not answer; its log says why")
            response.headers.update(_SECURITY)
            if self._service.draining:
                response.headers["connection"] = "close"
            metrics.requests.labels(path, str(response.status_code)).inc()
            metrics.seconds.labels(path).observe(time.monotonic() - began)
            return response

        return told

    async def recommend(self, http: HttpRequest) -> Response:
        request = await self._read(http)
        if request.query is not None:
            raise UserError("expected no query at /recommend, found one; POST it to /search")
        return await self._answered(request, RECOMMEND)

    async def search(self, http: HttpRequest) -> Response:
        request = await self._read(http)
        if request.query is None:
            raise UserError("expected the key query at /search, found none; add it")
        return await self._answered(request, SEARCH)

    async def _read(self, http: HttpRequest) -> Request:
        bounds = self._service.bounds
        question = _question(await _body(http, bounds))
        model = self._service.loaded.model
        request = parse(question, bounds.question, model.time_unit)
        most = min(bounds.k, model.catalogue_size)
        if question.get("k") is None:
            request = dataclasses.replace(request, k=min(request.k, most))
        if request.k > most:
            raise UserError(f"expected k of at most {most:,}, found {request.k:,}; ask for fewer")
        return request

    async def _answered(self, request: Request, task: str) -> Response:
        model = self._service.loaded.model
        if task not in model.tasks:
            raise UserError(
                f"expected a question for {' or '.join(model.tasks)}, found one for {task}, which "
                f"{model.name} does not answer"
            )
        return _json((await self._service.answer(request)).to_json())

    async def reload(self, http: HttpRequest) -> Response:
        if not is_loopback(http):
            raise _Refused(
                403,
                "expected a reload from this machine itself, found another; "
                "send it there, or send SIGHUP to the server",
            )
        if "origin" in http.headers:  # a browser's, maybe on behalf of another site's page
            raise _Refused(403, "expected a reload without an Origin, found one; use a terminal")
        model = await self._service.reload()
        return _json({"model": model.name})

    async def items(self, http: HttpRequest) -> Response:
        """Finds items by their titles, for the page's search box."""
        loaded = self._service.loaded
        query = http.query_params.get("q", "")[: self._service.bounds.question.characters]
        ids = await run_in_threadpool(loaded.titles.find, query, _MOST_TITLES)
        titles = loaded.model.titles
        return _json({"items": [{"item": item, "title": titles[item]} for item in ids]})

    async def model(self, http: HttpRequest) -> Response:
        loaded = self._service.loaded
        model = loaded.model
        return _json(
            {
                "name": model.name,
                "tasks": list(model.tasks),
                "catalogue_size": model.catalogue_size,
                "max_steps": model.max_steps,
                "max_k": min(self._service.bounds.k, model.catalogue_size),
                "loaded_at": round(loaded.since, 3),
            }
        )

    async def healthz(self, http: HttpRequest) -> Response:
        return _json({"alive": True})

    async def readyz(self, http: HttpRequest) -> Response:
        ready = self._service.ready
        return _json({"ready": ready}, 200 if ready else 503)

    async def metrics(self, http: HttpRequest) -> Response:
        content = prometheus_client.generate_latest(self._service.metrics.registry)
        return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, http: HttpRequest) -> Response:
        return _json(openapi.description())

    async def page(self, http: HttpRequest) -> Response:
        content, kind = self._page[http.url.path]
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    async def _no_such(self, http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        reason = {
            404: f"expected a path of /openapi.json, found {http.url.path[:100]!r}",
            405: f"expected another method for {http.url.path}, found {http.method}",
        }.get(error.status_code, str(error.detail))
        self._service.metrics.requests.labels("other", str(error.status_code)).inc()
        return _error(error.status_code, reason, dict(error.headers or {}) | _SECURITY)
