"""A minimal HTTP/1.1 client, so that no library adds time, and a server to test."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.stdio import CONSOLE_SCRIPT, FLOOR, ROOT, child_environment

_START_SEC: Final = 30.0


@dataclass(frozen=True, slots=True)
class Served:
    """A server over HTTP: port, token, process id, and the file with its standard error."""

    port: int
    token: str
    pid: int
    log: Path


@contextmanager
def served(**settings: str) -> Iterator[Served]:
    """Serve on a free loopback port, with ``settings`` as additional environment variables; stop the server afterwards.

    The server runs in the argument tier. With a guard, the started process would be the guard helper.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        state, log = Path(folder) / "state", Path(folder) / "log"
        environment = child_environment(state) | {"MCP_SECURITY_GUARD": "argument"} | settings
        argv = [*CONSOLE_SCRIPT, "--transport", "http", "--port", str(port)]
        with log.open("w") as stderr:
            process = subprocess.Popen(argv, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            _wait_for(log, process)
            yield Served(port, (state / "token").read_text().strip(), process.pid, log)
        finally:
            process.terminate()
            try:
                process.wait(40)
            finally:
                process.kill()


@contextmanager
def floor_served() -> Iterator[int]:
    """Serve `bench.floor_server` on a free loopback port, and yield the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([*FLOOR, str(port)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + _START_SEC
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("The floor server did not start.")
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(log: Path, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SEC
    while "Listening on" not in log.read_text():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"The server did not start: {log.read_text()[-500:]}")
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Response:
    """One response: status, body, and the seconds from the first byte of the request to the last of the response."""

    status: int
    body: bytes
    seconds: float


class Connection:
    """One connection for one request at a time. The first request opens it, and a later one if the server closed it."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._head = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def get(self, path: str) -> Response:
        """Send a GET request."""
        return await self._send(f"GET {path} HTTP/1.1\r\n{self._head}\r\n".encode())

    async def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
        """Send a POST request with a JSON object."""
        data = json.dumps(body).encode()
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = f"POST {path} HTTP/1.1\r\n{self._head}{more}Content-Type: application/json\r\n"
        return await self._send(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)

    async def close(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def _send(self, request: bytes) -> Response:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._reader, self._writer
        assert reader is not None
        started = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split(" ", 2)[1])
        if "transfer-encoding: chunked" in head:
            body = await _chunks(reader)
        else:
            body = await reader.readexactly(int(head.partition("content-length:")[2].split("\r\n", 1)[0] or 0))
        taken = time.perf_counter() - started
        if "connection: close" in head:
            await self.close()
        return Response(status, body, taken)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size + 2)
    await reader.readline()
    return body
