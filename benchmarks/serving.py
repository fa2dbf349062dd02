"""Times a server under load, from a process of its own, and holds the figures to their marks.

    python -m benchmarks.serving --export=E [--parts=rate,full,...] [--items=1000000]

Starts `launch.serve` on a free port and asks for 20 items after histories of 1 to 20 random clicks
and up to 5 searches, in these parts:

    rate      --rate requests a second, at random times, whether or not others have been answered
    full      32 at once, so that batches fill
    overload  at twice that rate
    reload    --rate, while the export is read again three times
    memory    --memory_requests requests, 32 at once
    sigterm   half of what it bears, and SIGTERM in their midst
    index     --rate of a catalogue of --items items behind an index: E's own, and made-up ones that
              are its items' vectors with noise of half their spread

A request is lost if it was sent whole and got no answer. E is of launch.export, and for `index` one
whose score is a dot product (LCR-SER, SASRec).
"""

from __future__ import annotations

from absl import flags

from core import cli
from core.errors import UserError

PARTS = ("rate", "full", "overload", "reload", "memory", "sigterm", "index")


def define_flags() -> None:
    flags.DEFINE_string("export", None, "Folder of launch.export.")
    flags.DEFINE_list("parts", list(PARTS), f"Of {', '.join(PARTS)}, in this order.")
    flags.DEFINE_float("rate", 15.0, "Requests a second.", lower_bound=0.1)
    flags.DEFINE_float("seconds", 20.0, "Of every part but memory.", lower_bound=1.0)
    flags.DEFINE_integer("memory_requests", 100_000, "Of the part memory.", lower_bound=100)
    flags.DEFINE_integer("items", 1_000_000, "Of the part index.", lower_bound=1)
    flags.DEFINE_string("json", None, "File to write the figures to.")


def check_flags() -> None:
    values = flags.FLAGS
    if not values.export:
        raise UserError("expected --export=E, found none; export a run with launch.export")
    if not values.parts or not set(values.parts) <= set(PARTS):
        odd = next((part for part in values.parts if part not in PARTS), "none")
        raise UserError(f"expected --parts of {','.join(PARTS)}, found {odd}; correct it")


cli.begin(__name__, define_flags, check_flags)


import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator

import numpy as np
import safetensors.numpy

from core.files import read_json, save_npy, write_atomically
from core.workdir import check_out, commit_id
from serving import exported

_TOGETHER = 32
# Of an item's vector, in standard deviations of the vectors' axes.
_NOISE = 0.5
_RECALL = re.compile(r"([\d.]+)% of the first 20 of the whole catalogue")


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
class Row:
    """Holds the figures of a part, and its marks by what they ask for: met or not."""

    part: str
    what: str
    figures: dict[str, float]
    marks: dict[str, bool]

    def line(self) -> str:
        """Returns a row of the table."""
        marks = ", ".join(
            f"{mark}: {'met' if met else 'MISSED'}" for mark, met in self.marks.items()
        )
        cells = [self.what, *map(str, self.figures.values()), marks]
        return f"| {' | '.join(cells)} |"


@dataclasses.dataclass(frozen=True)
class _Server:
    process: subprocess.Popen[str]
    port: int
    line: str
    log: str

    def resident_mib(self) -> float:
        with open(f"/proc/{self.process.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


@contextlib.contextmanager
def _served(*arguments: str) -> Iterator[_Server]:
    """Runs `launch.serve` on a free port.

    Raises:
      UserError: it does not start, or does not end with 0.
    """
    command = [sys.executable, "-m", "launch.serve", "--port=0", *arguments]
    with tempfile.NamedTemporaryFile("r+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            address = re.search(r"http://[^:]+:(\d+)", line)
            if address is None:
                process.wait(60)
                raise UserError((log.read().strip().splitlines() or ["found no server"])[-1])
            yield _Server(process, int(address[1]), line, log.name)
        finally:
            process.terminate()
            code = process.wait(60)
        if code:
            raise UserError(
                f"expected a server that ends with 0, found {code}: {log.read()[-500:]}"
            )


def _names(export: str, file: str) -> dict[str, list[str]]:
    path = os.path.join(export, file)
    return read_json(path, "the names of an export", "export again", max_bytes=2**31)


def questions(export: str, count: int = 512, seed: int = 0) -> list[bytes]:
    """Makes questions about an export's items, as bodies."""
    items, words = _names(export, exported.ITEMS)["ids"], _names(export, exported.WORDS)["words"]
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


def write_enlarged(export: str, out: str, count: int, seed: int = 0) -> None:
    """Writes an export with `count` items: its own, and items near them.

    A made-up item has the vector of one of its own with noise of half the vectors' spread.

    Args:
      out: an empty folder.

    Raises:
      UserError: no export there, or one of other items than a table of vectors.
    """
    manifest = exported.read_manifest(export)
    weights = safetensors.numpy.load_file(os.path.join(export, exported.WEIGHTS))
    if exported.ITEM_ROWS not in weights:
        raise UserError(
            f"expected an export with vectors of items in {export}, found one of "
            f"{manifest['method']}; leave the part index out"
        )
    rng = np.random.default_rng(seed)
    rows = weights[exported.ITEM_ROWS]
    more = max(0, count + 1 - len(rows))
    like = rng.integers(1, len(rows), more)
    noise = rng.standard_normal((more, rows.shape[1]), np.float32) * rows[1:].std(0) * _NOISE
    weights[exported.ITEM_ROWS] = rows = np.concatenate([rows, rows[like] + noise])
    names = _names(export, exported.ITEMS)
    titles = names["titles"]
    names = {
        "ids": [*names["ids"], *(f"made-up-{number}" for number in range(more))],
        "titles": [*titles, *(titles[number - 1] for number in like.tolist())],
    }
    for name in manifest["files"]:
        if name not in (exported.WEIGHTS, exported.ITEMS, exported.VECTORS):
            shutil.copyfile(os.path.join(export, name), os.path.join(out, name))
    safetensors.numpy.save_file(weights, os.path.join(out, exported.WEIGHTS))
    save_npy(os.path.join(out, exported.VECTORS), rows[1:])
    write_atomically(os.path.join(out, exported.ITEMS), json.dumps(names, ensure_ascii=False))
    files = {name: exported.described(os.path.join(out, name)) for name in manifest["files"]}
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    content |= {"files": files, "sizes": manifest["sizes"] | {"items": len(rows) - 1}}
    sealed = json.dumps(exported.sealed(content), ensure_ascii=False)
    write_atomically(os.path.join(out, exported.MANIFEST), sealed)


async def _rows(server: _Server, bodies: list[bytes], parts: list[str]) -> AsyncIterator[Row]:
    values = flags.FLAGS
    await Load(server.port, bodies).together(4, 2.0)
    most = 0.0
    if "rate" in parts:
        load = Load(server.port, bodies)
        await load.at_rate(values.rate, values.seconds)
        found = load.figures()
        marks = {"p50 <= 30": found["p50 ms"] <= 30, "p99 <= 120": found["p99 ms"] <= 120}
        yield Row("rate", f"{values.rate:g} requests/s", found, marks)
    if {"full", "overload", "sigterm"} & set(parts):
        load = Load(server.port, bodies)
        most = await load.together(_TOGETHER, values.seconds)
        what = f"{_TOGETHER} at once: {most:.0f} requests/s"
        yield Row("full", what, load.figures(), {"60 requests/s": most >= 60})
    if "overload" in parts:
        load = Load(server.port, bodies)
        await load.at_rate(2 * most, values.seconds)
        found = load.figures()
        marks = {
            "only 200 and 503": not found["other"] + found["lost"] + load.refused,
            "p99 < 1000": found["p99 ms"] < 1000,
        }
        yield Row("overload", f"twice that: {2 * most:.0f} requests/s", found, marks)
    if "reload" in parts:
        load = Load(server.port, bodies)
        await asyncio.gather(load.at_rate(values.rate, values.seconds), _reload(server))
        yield Row("reload", "read again 3 times", load.figures(), {"none lost": _none_lost(load)})
    if "memory" in parts:
        yield await _memory(server, bodies)
    if "sigterm" in parts:
        load = Load(server.port, bodies)
        await asyncio.gather(load.at_rate(max(values.rate, most / 2), 4.0), _end(server))
        what = f"SIGTERM under {most / 2:.0f} requests/s"
        yield Row("sigterm", what, load.figures(), {"none lost": _none_lost(load)})


def _none_lost(load: Load) -> bool:
    return not load.lost and not load.figures()["other"]


async def _reload(server: _Server) -> None:
    for _ in range(3):
        await asyncio.sleep(flags.FLAGS.seconds / 4)
        server.process.send_signal(signal.SIGHUP)


async def _end(server: _Server) -> None:
    await asyncio.sleep(2.0)
    server.process.send_signal(signal.SIGTERM)


async def _memory(server: _Server, bodies: list[bytes]) -> Row:
    """Reads the server's memory after every tenth of the requests."""
    count = flags.FLAGS.memory_requests
    load, memory = Load(server.port, bodies), [server.resident_mib()]
    for _ in range(10):
        await load.together(_TOGETHER, 3600.0, count // 10)
        memory.append(server.resident_mib())
    # Allocators settle within the first tenths.
    grown = memory[-1] - memory[2]
    what = f"{count:,} requests, MiB after each tenth {', '.join(f'{m:.0f}' for m in memory)}"
    return Row("memory", what, load.figures(), {"at most 2% more": grown <= 0.02 * memory[2]})


async def _index(server: _Server, bodies: list[bytes], count: int) -> Row:
    await Load(server.port, bodies).together(4, 2.0)
    load = Load(server.port, bodies)
    await load.at_rate(flags.FLAGS.rate, flags.FLAGS.seconds)
    found = load.figures()
    with open(server.log, encoding="utf-8") as file:
        told = _RECALL.search(file.read())
    recall = float(told[1]) / 100 if told else float("nan")
    marks = {"p50 <= 40": found["p50 ms"] <= 40, "recall@20 >= .95": recall >= 0.95}
    what = f"{count:,} items, index: {flags.FLAGS.rate:g} requests/s, recall@20 {recall:.3f}"
    return Row("index", what, found, marks)


async def _print(row: Row) -> Row:
    print(row.line(), flush=True)
    return row


async def _measured(server: _Server, bodies: list[bytes], parts: list[str]) -> list[Row]:
    return [await _print(row) async for row in _rows(server, bodies, parts)]


def main() -> None:
    values = flags.FLAGS
    if values.json:
        check_out(values.json, "--json")
    parts, rows, lines = values.parts, [], []
    names = ["", "answers", "p50 ms", "p99 ms", "503", "other", "lost", "marks"]
    print(f"| {' | '.join(names)} |\n|---|{'---:|' * (len(names) - 2)}---|", flush=True)
    bodies = questions(values.export)
    if set(parts) - {"index"}:
        with _served(f"--export={values.export}") as server:
            rows += asyncio.run(_measured(server, bodies, parts))
            lines.append(server.line)
    if "index" in parts:
        with tempfile.TemporaryDirectory() as folder:
            write_enlarged(values.export, folder, values.items)
            bodies = questions(folder)
            with _served(f"--export={folder}", f"--retrieve_with={folder}") as server:
                rows.append(asyncio.run(_index(server, bodies, values.items)))
                lines.append(server.line)
                print(rows[-1].line())
    print("\n".join(["", *lines]))
    if values.json:
        found = {
            "commit": commit_id(),
            "cores": len(os.sched_getaffinity(0)),
            "servers": lines,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        write_atomically(values.json, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main)
