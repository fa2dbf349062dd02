"""Servers as processes of their own, and questions to them."""

import http.client
import json
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).parent.parent.parent


class Server:
    """A server that has begun; `port` is read from the line that it prints once it is ready."""

    def __init__(self, command, environment=None):
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.errors, self.lines = [], []
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream, lines):
        lines.extend(iter(stream.readline, ""))

    def __enter__(self):
        self.port = int(re.search(r"http://127.0.0.1:(\d+) ", self.printed("http://"))[1])
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def printed(self, text, timeout=120):
        """The first line with a text, which is waited for; of errors too."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for line in [*self.lines, *self.errors]:
                if text in line:
                    return line
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"expected {text!r}: {self.lines} {self.errors}")

    def ended(self, timeout=60):
        """Its exit code, standard output and standard error."""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(5)
        return code, "".join(self.lines), "".join(self.errors)

    def ask(self, path, body=None, *, method=None, headers=None, timeout=30):
        """Status, headers, and JSON or text of an answer; a body of no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        method = method or ("GET" if body is None else "POST")
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        told = {"Content-Type": "application/json"} if content is not None else {}
        connection.request(method, path, content, told | (headers or {}))
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        kind = response.headers.get("content-type", "")
        return response.status, response.headers, json.loads(text) if "json" in kind else text


def fake(settings, *flags):
    """A server of the fake model with the settings in a file."""
    program = str(ROOT / "tests" / "serving" / "fake_model.py")
    import os

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return Server([sys.executable, program, str(settings), *flags], environment)
