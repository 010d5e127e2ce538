"""Reads the stream of `bench.xml_stream` in one of three ways, and prints what that took as JSON.

``python -m bench.xml_reader HOSTS floor|parse|keep``. ``floor``: expat with handlers that do nothing. ``parse``: the
parser and the digest of a run. ``keep``: these, the raw spool, and the recorder with a SQLite store, as in a run.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from xml.parsers import expat

from bench.xml_stream import covering
from mcp_server.audit import AuditLog
from mcp_server.model.digest import HostDigest
from mcp_server.model.run import Actor, Outcome, Risk, Run
from mcp_server.model.target import Target, Targets
from mcp_server.pipeline.record import Recorder
from mcp_server.sandbox.streams import CHUNK_BYTES
from mcp_server.store import open_store
from mcp_server.store.blobs import RawSpool
from mcp_server.tools.nmap.xml import NmapXmlParser


class RequestMetrics:
    """Counts the bytes and the seconds of a reading, and how far resident memory rose above where it began."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts again from here, proc(5)
        self._idle = _status_kb("VmRSS")
        self._started = time.perf_counter()
        self._bytes = 0

    def chunks_of(self, pipe: IO[bytes], take: Callable[[bytes], object]) -> None:
        """Hand everything to ``take``, in pieces of the size a run reads."""
        while data := pipe.read(CHUNK_BYTES):
            self._bytes += len(data)
            take(data)

    def count(self, data: bytes) -> bytes:
        """Note a piece that was read elsewhere."""
        self._bytes += len(data)
        return data

    def report(self) -> dict[str, float]:
        """Megabytes read, seconds, and megabytes of memory above idle at the highest."""
        seconds = time.perf_counter() - self._started
        return {"mb": self._bytes / 1e6, "seconds": seconds, "above_idle_mb": (_status_kb("VmHWM") - self._idle) / 1e3}


def floor(pipe: IO[bytes], _hosts: int) -> dict[str, float]:
    """Expat and nothing else."""
    xml = expat.ParserCreate("UTF-8", intern={})
    xml.buffer_text = True
    xml.StartElementHandler = lambda _name, _attributes: None
    xml.EndElementHandler = lambda _name: None
    request_metrics = RequestMetrics()
    request_metrics.chunks_of(pipe, xml.Parse)
    return request_metrics.report()


def parse(pipe: IO[bytes], hosts: int) -> dict[str, float]:
    """The parser and the digest."""
    parser, digest = NmapXmlParser(_targets(hosts), ()), HostDigest()

    def take(data: bytes) -> None:
        for host in parser.feed(data):
            digest.add(host)

    request_metrics = RequestMetrics()
    request_metrics.chunks_of(pipe, take)
    digest.view(11_000)
    report = request_metrics.report()
    _check(digest, hosts)
    return report


def keep(pipe: IO[bytes], hosts: int) -> dict[str, float]:
    """All that a run does with its output."""
    return asyncio.run(_keep(pipe, hosts))


async def _keep(pipe: IO[bytes], hosts: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="mcp-bench-") as folder:
        store = open_store(None, Path(folder))
        await store.open()
        started = datetime.now(UTC)
        run = Run(
            id="r_bench",
            tool="nmap",
            parameters={},
            actor=Actor("bench", "bench"),
            correlation_id="r_bench",
            scope_hash="",
            risk=Risk.SCAN,
            argv=(),
            started=started,
            outcome=Outcome.RUNNING,
            vantage="local",
            enforcement="argument",
        )
        recorder, spool = Recorder(store, AuditLog(Path(folder)), run), RawSpool(Path(folder), run.id, 1 << 40)
        parser, digest = NmapXmlParser(_targets(hosts), ()), HostDigest()
        await recorder.begin()
        request_metrics = RequestMetrics()
        while data := await asyncio.to_thread(pipe.read, CHUNK_BYTES):
            spool.write(request_metrics.count(data))
            found = parser.feed(data)
            for host in found:
                digest.add(host)
            recorder.see(found)
            await recorder.flush()
        digest.view(11_000)
        report = request_metrics.report()
        spool.abort()
        await store.close()
    _check(digest, hosts)
    return report


def _targets(hosts: int) -> Targets:
    network = covering(hosts)
    return Targets((Target(str(network), (network,)),))


def _check(digest: HostDigest, hosts: int) -> None:
    if digest.up != hosts:
        raise RuntimeError(f"{digest.up} of {hosts} hosts were read")


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main(hosts: int, way: str) -> None:
    """Read the stream of a child process in the given way."""
    read = {"floor": floor, "parse": parse, "keep": keep}[way]
    with subprocess.Popen([sys.executable, "-m", "bench.xml_stream", str(hosts)], stdout=subprocess.PIPE) as stream:
        if stream.stdout is None:
            raise RuntimeError("the stream was started without a pipe")
        print(json.dumps(read(stream.stdout, hosts)))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
