"""The server's beginning and end, and its change to another model."""

import json
import signal
import socket
import threading
import time

import pytest
from servers import fake

from core.errors import UserError
from serving.server import Place, bound


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text("{}")
    return path


def asking(server, count, question=None):
    """Asks from so many threads at once; the statuses, once all have ended."""
    statuses = []

    def ask():
        try:
            statuses.append(server.ask("/recommend", question or {"k": 1})[0])
        except OSError as error:
            statuses.append(type(error).__name__)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()

    def finished():
        for thread in threads:
            thread.join()
        return statuses

    return finished


def test_a_port_in_use_is_one_line_and_exit_code_2(settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = fake(settings, "--port", str(port)).ended()
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"error: expected a free port at 127.0.0.1:{port}, found Address already in use; pass "
        "another --port or --host"
    ]


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(UserError, match="expected a free port"):
        bound(Place(host="192.0.2.1", port=0))
    with pytest.raises(UserError, match="expected an address"):
        bound(Place(host="no such host", port=0))


def test_nothing_but_loopback_unless_told():
    with bound(Place(port=0)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_model_that_cannot_be_read_is_one_line_and_exit_code_2(settings):
    settings.write_text("no JSON")
    code, out, err = fake(settings).ended()
    assert (code, out) == (2, "")
    assert err == f"error: expected settings in {settings}, found none\n"


def test_sigterm_finishes_what_is_in_flight(settings):
    settings.write_text('{"seconds": 0.2}')
    with fake(settings) as server:
        finished = asking(server, 8)
        time.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        status, headers, answer = server.ask("/readyz")
        assert (status, answer["ready"], headers["connection"]) == (503, False, "close")
        assert finished() == [200] * 8
        code, out, err = server.ended()
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "stopped; all that was in flight is answered"


def test_a_full_queue_gets_503_at_once(settings):
    settings.write_text('{"seconds": 0.15}')
    with fake(settings, "--waiting", "4") as server:
        assert set(asking(server, 60)()) == {200, 503}
        refused = None
        while refused is None:
            occupied = asking(server, 40)
            time.sleep(0.03)
            began = time.monotonic()
            status, headers, answer = server.ask("/recommend", {"k": 1})
            if status == 503:
                refused = headers, answer["error"], time.monotonic() - began
            assert set(occupied()) <= {200, 503}
        assert refused[0]["retry-after"] == "1"
        assert "send it again later" in refused[1]
        assert refused[2] < 0.14
        assert server.ask("/recommend", {"k": 1})[0] == 200


@pytest.mark.parametrize("how", ["signal", "request"])
def test_another_model_is_taken_over_without_a_lost_request(settings, how):
    with fake(settings) as server:
        statuses, done = [], threading.Event()

        def keep_asking():
            while not done.is_set():
                statuses.append(server.ask("/recommend", {"k": 1})[0])

        threads = [threading.Thread(target=keep_asking) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(3):
            before = len(statuses)
            settings.write_text(json.dumps({"name": f"fake {number}"}))
            if how == "request":
                assert server.ask("/reload", b"")[2] == {"model": f"fake {number}"}
            else:
                server.process.send_signal(signal.SIGHUP)
                server.printed(f"answering with fake {number}", timeout=20)
            assert server.ask("/model")[2]["name"] == f"fake {number}"
            while len(statuses) < before + 10:
                time.sleep(0.01)
        done.set()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200}


def test_a_broken_new_model_leaves_the_old_one_answering(settings):
    with fake(settings) as server:
        settings.write_text("no JSON")
        status, _, answer = server.ask("/reload", b"")
        assert status == 422 and "found none" in answer["error"]
        server.process.send_signal(signal.SIGHUP)
        server.printed("the model before goes on answering")
        settings.write_text('{"catalogue_size": "no number"}')
        assert server.ask("/reload", b"")[0] == 500
        assert server.ask("/readyz")[2] == {"ready": True}
        assert server.ask("/recommend", {"k": 1})[0] == 200
        text = server.ask("/metrics")[2]
        assert 'lcrsr_reloads_total{result="kept"} 3.0' in text


def test_two_signals_end_it_at_once(settings):
    settings.write_text('{"seconds": 0.0}')
    with fake(settings, "--drain", "30") as server:
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.ended(10)[0] == 0
