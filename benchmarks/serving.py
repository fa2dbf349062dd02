"""Times a server under load, from a process of its own, and prints a table.

    python -m benchmarks.serving --export=E [--retrieve_with=E2] [--rate=15] [--seconds=20]

Starts `launch.serve` on a free port and asks for 20 items after histories of 1 to 20 random clicks
and up to 5 searches: at the rate given (requests arrive at random, whether or not others have been
answered), as fast as batches fill, at twice that rate, while the export is read again, and until
SIGTERM. A request is lost if it was sent whole and got no answer.
"""

from __future__ import annotations

from absl import flags

from core import cli
from core.errors import UserError


def define_flags() -> None:
    flags.DEFINE_string("export", None, "Folder of launch.export.")
    flags.DEFINE_string("retrieve_with", None, "As of launch.serve.")
    flags.DEFINE_float("rate", 15.0, "Requests a second.", lower_bound=0.1)
    flags.DEFINE_float("seconds", 20.0, "Of every part.", lower_bound=1.0)
    flags.DEFINE_integer("memory_requests", 5_000, "After which memory is read.", lower_bound=1)
    flags.DEFINE_string("json", None, "File to write the figures to.")


def check_flags() -> None:
    if not flags.FLAGS.export:
        raise UserError("expected --export=E, found none; export a run with launch.export")


cli.begin(__name__, define_flags, check_flags)


import asyncio
import collections
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import numpy as np

from core.files import read_json, write_atomically
from core.workdir import check_out
from serving.exported import ITEMS, WORDS

_READY_S = 600.0
_TOGETHER = 32


class Load:
    """Asks a server over connections that stay open, and notes how long each answer took.

    Attributes:
      seconds: of every answer, by its status.
      lost: requests that were sent whole and got no answer.
    """

    def __init__(self, port: int, bodies: list[bytes]):
        self._port, self._bodies = port, bodies
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.seconds: dict[int, list[float]] = collections.defaultdict(list)
        self.lost = self.refused = 0

    async def ask(self, number: int, since: float) -> None:
        """Sends question `number`, whose time counts from `since`."""
        body = self._bodies[number % len(self._bodies)]
        head = (
            "POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        try:
            if self._idle:
                reader, writer = self._idle.pop()
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            self.refused += 1  # not sent
            return
        try:
            writer.write(head.encode() + body)
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", answer)
            assert length is not None
            await reader.readexactly(int(length[1]))
        except (OSError, asyncio.IncompleteReadError):
            self.lost += 1
            writer.close()
            return
        self.seconds[int(answer[9:12])].append(time.perf_counter() - since)
        if b"connection: close" in answer:
            writer.close()
        else:
            self._idle.append((reader, writer))

    async def at_rate(self, rate: float, seconds: float, seed: int = 0) -> None:
        """Asks at random times, `rate` a second on average, and waits for the last answer."""
        rng = np.random.default_rng(seed)
        times = np.cumsum(rng.exponential(1 / rate, max(1, round(rate * seconds))))
        began = time.perf_counter()
        tasks = []
        for number, at in enumerate(times.tolist()):
            await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
            tasks.append(asyncio.create_task(self.ask(number, began + at)))
        await asyncio.gather(*tasks)

    async def together(self, count: int, seconds: float, most: int = sys.maxsize) -> float:
        """Keeps `count` questions under way; returns the answers a second."""
        began, asked = time.perf_counter(), 0

        async def keep_asking() -> None:
            nonlocal asked
            while time.perf_counter() - began < seconds and asked < most:
                asked += 1
                await self.ask(asked, time.perf_counter())

        await asyncio.gather(*(keep_asking() for _ in range(count)))
        return len(self.seconds[200]) / (time.perf_counter() - began)

    def figures(self) -> dict[str, float]:
        """Returns counts, and the median and the 99th percentile of the answers in milliseconds."""
        answered = 1e3 * np.array(self.seconds[200] or [np.nan])
        others = sum(len(s) for status, s in self.seconds.items() if status not in (200, 503))
        return {
            "answers": len(self.seconds[200]),
            "p50 ms": round(float(np.median(answered)), 1),
            "p99 ms": round(float(np.percentile(answered, 99)), 1),
            "503": len(self.seconds[503]),
            "other": others,
            "lost": self.lost,
        }


@dataclasses.dataclass(frozen=True)
class _Server:
    process: subprocess.Popen[str]
    port: int

    def resident_mib(self) -> float:
        with open(f"/proc/{self.process.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def questions(export: str, count: int = 512, seed: int = 0) -> list[bytes]:
    """Makes questions about an export's items, as bodies."""
    items = read_json(os.path.join(export, ITEMS), "items", "export again", max_bytes=2**31)["ids"]
    words = read_json(os.path.join(export, WORDS), "words", "export again", max_bytes=2**31)[
        "words"
    ]
    rng = np.random.default_rng(seed)
    bodies = []
    for _ in range(count):
        clicks = [items[n] for n in rng.integers(0, len(items), rng.integers(1, 21))]
        searches = [
            {"query": " ".join(words[n] for n in rng.integers(0, len(words), 2))}
            for _ in range(rng.integers(0, 6))
            if words
        ]
        bodies.append(json.dumps({"clicks": clicks, "searches": searches, "k": 20}).encode())
    return bodies


async def _rows(server: _Server, bodies: list[bytes]) -> AsyncIterator[tuple[str, dict]]:
    values = flags.FLAGS
    warm = Load(server.port, bodies)
    await warm.together(4, 2.0)
    load = Load(server.port, bodies)
    await load.at_rate(values.rate, values.seconds)
    yield f"{values.rate:g} requests/s", load.figures()
    load = Load(server.port, bodies)
    most = await load.together(_TOGETHER, values.seconds)
    yield f"{_TOGETHER} at once: {most:.0f} requests/s", load.figures()
    load = Load(server.port, bodies)
    await load.at_rate(2 * most, values.seconds)
    yield f"twice that: {2 * most:.0f} requests/s", load.figures()
    load = Load(server.port, bodies)

    async def reload() -> None:
        for _ in range(3):
            await asyncio.sleep(values.seconds / 4)
            server.process.send_signal(signal.SIGHUP)

    await asyncio.gather(load.at_rate(values.rate, values.seconds), reload())
    yield "read again 3 times", load.figures()
    load, before = Load(server.port, bodies), server.resident_mib()
    await load.together(8, 3600.0, values.memory_requests)
    memory = f"{before:.0f} to {server.resident_mib():.0f} MiB"
    yield f"{values.memory_requests:,} requests, {memory}", load.figures()
    load = Load(server.port, bodies)

    async def end() -> None:
        await asyncio.sleep(2.0)
        server.process.send_signal(signal.SIGTERM)

    await asyncio.gather(load.at_rate(max(values.rate, most / 2), 4.0), end())
    yield "SIGTERM", load.figures()


async def _measure(server: _Server, bodies: list[bytes]) -> dict[str, dict]:
    return {name: figures async for name, figures in _rows(server, bodies)}


def main() -> None:
    values = flags.FLAGS
    if values.json:
        check_out(values.json, "--json")
    command = [sys.executable, "-m", "launch.serve", f"--export={values.export}", "--port=0"]
    if values.retrieve_with:
        command.append(f"--retrieve_with={values.retrieve_with}")
    bodies = questions(values.export)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"http://[^:]+:(\d+)", line)
        if address is None:
            raise UserError("expected a server that starts, found the error above")
        print(line.strip())
        rows = asyncio.run(_measure(_Server(process, int(address[1])), bodies))
    finally:
        process.terminate()
        code = process.wait(60)
    names = list(next(iter(rows.values())))
    print(f"| | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    for name, figures in rows.items():
        print(f"| {name} | {' | '.join(str(figures[key]) for key in names)} |")
    if values.json:
        write_atomically(values.json, json.dumps({"server": line, "rows": rows}, indent=2) + "\n")
    if code:
        raise UserError(f"expected a server that ends with 0, found {code}; see its log")


if __name__ == "__main__":
    cli.run(main)
