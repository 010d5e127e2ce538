"""Read the stream of `bench.xml_stream` in one of three ways, and print time and memory as JSON.

``python -m bench.xml_reader HOSTS floor|parse|store``. ``floor``: expat with empty handlers. ``parse``: the parser and
the digest of a run. ``store``: the same with the raw spool and the recorder with a SQLite store, as in a run.
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


class Measurement:
    """Counts the bytes and seconds of a read, and how much resident memory increased."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak of resident memory, proc(5)
        self._idle = _status_kb("VmRSS")
        self._started = time.perf_counter()
        self._bytes = 0

    def chunks_of(self, pipe: IO[bytes], take: Callable[[bytes], object]) -> None:
        """Pass all data to ``take``, in chunks of the size that a run reads."""
        while data := pipe.read(CHUNK_BYTES):
            self._bytes += len(data)
            take(data)

    def count(self, data: bytes) -> bytes:
        """Count a chunk and return it."""
        self._bytes += len(data)
        return data

    def report(self) -> dict[str, float]:
        """Return the megabytes read, the seconds, and the peak of memory above idle in megabytes."""
        seconds = time.perf_counter() - self._started
        return {"mb": self._bytes / 1e6, "seconds": seconds, "above_idle_mb": (_status_kb("VmHWM") - self._idle) / 1e3}


def floor(pipe: IO[bytes], _hosts: int) -> dict[str, float]:
    """Parse with expat and empty handlers."""
    xml = expat.ParserCreate("UTF-8", intern={})
    xml.buffer_text = True
    xml.StartElementHandler = lambda _name, _attributes: None
    xml.EndElementHandler = lambda _name: None
    measurement = Measurement()
    measurement.chunks_of(pipe, xml.Parse)
    return measurement.report()


def parse(pipe: IO[bytes], hosts: int) -> dict[str, float]:
    """Parse with the parser of the server, and build the digest."""
    parser, digest = NmapXmlParser(_targets(hosts), ()), HostDigest()

    def take(data: bytes) -> None:
        for host in parser.feed(data):
            digest.add(host)

    measurement = Measurement()
    measurement.chunks_of(pipe, take)
    digest.view(11_000)
    report = measurement.report()
    _check(digest, hosts)
    return report


def store(pipe: IO[bytes], hosts: int) -> dict[str, float]:
    """Do everything that a run does with its output."""
    return asyncio.run(_store(pipe, hosts))


async def _store(pipe: IO[bytes], hosts: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="mcp-bench-") as folder:
        database = open_store(None, Path(folder))
        await database.open()
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
        recorder, spool = Recorder(database, AuditLog(Path(folder)), run), RawSpool(Path(folder), run.id, 1 << 40)
        parser, digest = NmapXmlParser(_targets(hosts), ()), HostDigest()
        await recorder.begin()
        measurement = Measurement()
        while data := await asyncio.to_thread(pipe.read, CHUNK_BYTES):
            spool.write(measurement.count(data))
            found = parser.feed(data)
            for host in found:
                digest.add(host)
            recorder.see(found)
            await recorder.flush()
        digest.view(11_000)
        report = measurement.report()
        spool.abort()
        await database.close()
    _check(digest, hosts)
    return report


def _targets(hosts: int) -> Targets:
    network = covering(hosts)
    return Targets((Target(str(network), (network,)),))


def _check(digest: HostDigest, hosts: int) -> None:
    if digest.up != hosts:
        raise RuntimeError(f"{digest.up} of {hosts} hosts were parsed.")


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main(hosts: int, way: str) -> None:
    """Read the stream of a child process in the given way."""
    read = {"floor": floor, "parse": parse, "store": store}[way]
    with subprocess.Popen([sys.executable, "-m", "bench.xml_stream", str(hosts)], stdout=subprocess.PIPE) as stream:
        if stream.stdout is None:
            raise RuntimeError("The stream was started without a pipe.")
        print(json.dumps(read(stream.stdout, hosts)))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
