"""The server answers good questions over HTTP, and says of every bad one what is wrong."""

import asyncio
import dataclasses
import http.client
import json
import os
import socket
import time

import pytest
from fake_model import FakeModel
from servers import fake

from serving import openapi
from serving.http_api import Api, Bounds, Service
from serving.micro_batches import Batching
from serving.requests import Answer, Moved, Recommended, Request


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    settings = tmp_path_factory.mktemp("fake") / "settings.json"
    settings.write_text("{}")
    with fake(settings) as server:
        yield server


def test_it_recommends(server):
    status, _, answer = server.ask("/recommend", {"clicks": ["i2", "i0"], "k": 2, "user": "known"})
    assert status == 200
    assert [item["item"] for item in answer["items"]] == ["i3", "i4"]
    assert answer["items"][0]["title"] == "dog number 3"
    assert answer["known_user"] and answer["skipped_items"] == 0


def test_it_says_why(server):
    question = {"clicks": ["i2"], "searches": ["ant hill"], "k": 1, "because": True}
    (item,) = server.ask("/recommend", question)[2]["items"]
    assert [moved["kind"] for moved in item["because"]["moved"]] == ["search", "click"]
    assert item["because"]["rank_by_step"] == [3, 2, 1]


def test_it_searches(server):
    answer = server.ask("/search", {"query": "bee", "reasoning_steps": 0})[2]
    assert [item["item"] for item in answer["items"]] == ["i1"]


def test_it_tells_what_it_is(server):
    status, _, model = server.ask("/model")
    assert (status, model["name"], model["max_k"], model["max_steps"]) == (200, "fake", 8, 2)
    assert server.ask("/healthz")[:1] == (200,)
    assert server.ask("/readyz")[2] == {"ready": True}


def test_items_are_found_by_their_titles(server):
    items = server.ask("/items?q=number+ca")[2]["items"]
    assert items[0] == {"item": "i2", "title": "cat number 2"}
    assert len(server.ask("/items")[2]["items"]) == 11
    assert server.ask("/items?q=i1")[2]["items"][0]["title"] == "bee number 1"


def test_it_is_described(server):
    described = server.ask("/openapi.json")[2]
    schemas = described["components"]["schemas"]
    items = schemas["Answer"]["properties"]["items"]["items"]["properties"]
    moved = items["because"]["properties"]["moved"]["items"]["properties"]
    for properties, kind in (
        (schemas["Question"]["properties"], Request),
        (schemas["Answer"]["properties"], Answer),
        (items, Recommended),
        (moved, Moved),
    ):
        assert set(properties) == {field.name for field in dataclasses.fields(kind)}
    assert described == openapi.description()
    for path, methods in described["paths"].items():
        (method,) = methods
        assert server.ask(path, method=method.upper(), body=b"{" if method == "post" else None)[
            0
        ] not in (404, 405)


def test_it_counts(server):
    server.ask("/recommend", {"k": 0})
    text = server.ask("/metrics")[2]
    assert 'lcrsr_requests_total{path="/recommend",status="422"}' in text
    assert "lcrsr_batch_requests_bucket" in text
    assert "lcrsr_waiting_requests 0.0" in text


@pytest.mark.parametrize(
    "question, reason",
    [
        ({"k": 0}, "expected k as a whole number from 1, found 0"),
        ({"k": -3}, "found -3"),
        ({"k": 9}, "expected k of at most 8, found 9"),
        ({"k": 2.5}, "found 2.5"),
        ({"k": True}, "found True"),
        ({"k": "3"}, "found '3'"),
        ({"clicks": "i1"}, "expected a list as clicks"),
        ({"clicks": [["i1", 2, 3]]}, "click 1"),
        ({"clicks": [True]}, "expected an id as text in click 1, found True"),
        ({"clicks": [{"item": {"a": 1}}]}, "expected an id as text in click 1"),
        ({"clicks": [""]}, "found an empty one"),
        ({"clicks": [["i1", float("nan")]]}, "expected the time of click 1"),
        ({"clicks": [["i1", float("inf")]]}, "expected the time of click 1"),
        ({"clicks": [["i1", 1], "i2"]}, "expected times of all"),
        ({"clicks": ["i1"] * 1001}, "expected at most 1,000"),
        ({"clicks": ["i1"] * 100_000}, "expected at most 1,000"),
        ({"searches": [3]}, "expected text as search 1"),
        ({"user": ["A"]}, "expected an id as text in user"),
        ({"at": "now"}, "expected the time of at"),
        ({"because": 1}, "expected true or false as because"),
        ({"reasoning_steps": -1}, "expected reasoning_steps"),
        ({"colour": "red"}, "found 'colour'"),
        ({"query": "bee"}, "POST it to /search"),
        ({"user": "refused"}, "expected another user"),
        ([1, 2], "expected a JSON object"),
        ("text", "expected a JSON object"),
        (3, "expected a JSON object"),
    ],
)
def test_wrong_values_get_422(server, question, reason):
    status, _, answer = server.ask("/recommend", question)
    assert status == 422
    assert reason in answer["error"]
    assert list(answer) == ["error"]
    assert "\n" not in answer["error"]


@pytest.mark.parametrize("query", [None, 3, "", "  "])
def test_a_search_needs_words(server, query):
    assert server.ask("/search", {"query": query})[0] == 422


@pytest.mark.parametrize(
    "body, headers, status, reason",
    [
        (b"not JSON", {}, 400, "expected JSON"),
        (b"", {}, 400, "expected JSON"),
        (b'{"k": ', {}, 400, "expected JSON"),
        (b"[" * 50_000, {}, 400, "nested too deeply"),
        (b'{"k": ' + b"9" * 50_000 + b"}", {}, 400, "expected JSON"),
        ('{"user": "é"}'.encode("latin-1"), {}, 400, "expected a body in UTF-8"),
        ('{"k": 1}'.encode("utf-16"), {}, 400, "expected a body in UTF-8"),
        (b"{}", {"Content-Type": "application/json; charset=latin-1"}, 415, "in UTF-8"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "expected Content-Type: application/json"),
        (b"k=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "application/json"),
        (b"{}", {"Content-Encoding": "gzip"}, 415, "without Content-Encoding"),
        (b'{"user": "' + b"a" * 700_000 + b'"}', {}, 413, "at most 700,000 bytes"),
    ],
    ids=range(12),
)
def test_what_is_no_json_gets_a_reason(server, body, headers, status, reason):
    answer = server.ask("/recommend", body, headers=headers)
    assert answer[0] == status
    assert reason in answer[2]["error"]


def test_utf_8_with_its_charset_is_taken(server):
    headers = {"Content-Type": 'application/json; charset="UTF-8"'}
    assert server.ask("/recommend", '{"user": "é"}'.encode(), headers=headers)[0] == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_50_megabytes_get_413_and_take_no_memory(server, chunked):
    before = _resident(server)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    part, parts = b" " * 2**20, 50
    headers = {"Content-Type": "application/json"}
    if not chunked:
        headers["Content-Length"] = str(len(part) * parts)
    body = (part for _ in range(parts))
    connection.request("POST", "/recommend", body, headers, encode_chunked=chunked)
    response = connection.getresponse()
    assert response.status == 413
    assert "at most 700,000 bytes" in json.loads(response.read())["error"]
    assert _resident(server) < before + 20 * 2**20


def _resident(server):
    (line,) = [
        line
        for line in server.ask("/metrics")[2].splitlines()
        if line.startswith("process_resident_memory_bytes")
    ]
    return float(line.split()[1])


def test_a_body_that_does_not_come_gets_408(server):
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(
            b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        slow.settimeout(10)
        assert b" 408 " in slow.recv(1000)


def test_a_defect_gets_500_without_a_traceback(server):
    status, _, answer = server.ask("/recommend", {"user": "broken"})
    assert (status, list(answer)) == (500, ["error"])
    assert "ZeroDivision" not in answer["error"]
    assert "ZeroDivisionError" in server.printed("ZeroDivisionError", timeout=5)


def test_other_paths_and_methods_are_told(server):
    assert server.ask("/nothing")[0] == 404
    status, headers, answer = server.ask("/recommend")
    assert (status, headers["allow"]) == (405, "POST")
    assert "expected another method" in answer["error"]


def test_half_a_surrogate_pair_is_answered(server):
    body = b'{"searches": ["\\ud800"], "k": 1, "because": true}'
    assert server.ask("/recommend", body)[0] == 200
    assert server.ask("/recommend", b'{"user": "\\ud800"}')[0] == 422


def test_the_page_may_load_nothing_else(server):
    for path, kind in (("/", "html"), ("/page.js", "javascript"), ("/page.css", "css")):
        status, headers, text = server.ask(path)
        assert status == 200 and kind in headers["content-type"] and text
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "http://" not in text.replace("http://www.w3.org", "")
        assert "https://" not in text


@pytest.mark.parametrize(
    "headers",
    [{"X-Forwarded-For": "127.0.0.1"}, {"Forwarded": "for=1.2.3.4"}, {"Origin": "http://evil"}],
)
def test_a_reload_from_elsewhere_is_refused(server, headers):
    assert server.ask("/reload", b"", headers=headers)[0] == 403


def test_many_open_connections_are_served(server):
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    began = time.monotonic()
    assert server.ask("/recommend", {"k": 1})[0] == 200
    assert time.monotonic() - began < 5
    for each in idle:
        each.close()


def test_unread_environment_is_not_told(server):
    """No answer names a path of the machine."""
    for path in ("/model", "/openapi.json", "/nothing"):
        assert os.getcwd() not in str(server.ask(path)[2])


def test_what_comes_while_the_event_loop_is_late_is_refused():
    async def statuses(app, *paths):
        told = []

        async def send(message):
            told.append(message.get("status"))

        for path in paths:
            scope = {"type": "http", "method": "GET", "path": path, "headers": []}
            await app(scope, None, send)
        return [status for status in told if status is not None]

    async def late():
        service = Service(FakeModel, Batching(), Bounds())
        app, watching = Api(service).app(), asyncio.create_task(service.watch())
        await asyncio.sleep(0.05)
        assert not service.late
        time.sleep(0.3)  # as what reads too many requests at once does
        await asyncio.sleep(0.001)
        assert service.late
        assert await statuses(app, "/recommend", "/search", "/healthz") == [503, 503, 200]
        await asyncio.sleep(0.1)
        assert not service.late
        assert await statuses(app, "/recommend") == [405]
        watching.cancel()
        service.batches.close()

    asyncio.run(late())
