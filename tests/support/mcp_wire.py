"""Minimal MCP clients for the protocol tests: JSON lines over pipes or a child process, and bytes over a socket."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mcp.server.lowlevel import Server

from mcp_server.api.mcp.stdio import serve_stdio

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = (sys.executable, "-m", "tests.contract.everything")

MODERN_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
_PATIENCE = 20.0


def request(request_id: int | str, method: str, **params: Any) -> dict[str, Any]:
    """Return a request for a session with a handshake."""
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


def modern(request_id: int | str, method: str, **params: Any) -> dict[str, Any]:
    """Return a request of protocol revision 2026-07-28, which carries its own envelope."""
    return request(request_id, method, _meta=MODERN_META, **params)


def call(request_id: int | str, tool: str, **arguments: Any) -> dict[str, Any]:
    """Return a ``tools/call`` of protocol revision 2026-07-28."""
    return modern(request_id, "tools/call", name=tool, arguments=arguments)


def initialize(request_id: int | str, version: str = "2025-06-18") -> dict[str, Any]:
    """Return the ``initialize`` request of a handshake."""
    client = {"name": "wire-test", "version": "1"}
    return request(request_id, "initialize", protocolVersion=version, capabilities={}, clientInfo=client)


INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}


class LineClient:
    """Sends and reads JSON lines over a pair of asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *messages: dict[str, Any] | bytes) -> None:
        """Send messages; bytes are sent unchanged."""
        for message in messages:
            self.writer.write(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")
        await asyncio.wait_for(self.writer.drain(), _PATIENCE)

    async def receive(self) -> dict[str, Any]:
        """Return the next message; raise AssertionError at the end of output."""
        line = await asyncio.wait_for(self.reader.readline(), _PATIENCE)
        assert line, "the server closed its output"
        message: dict[str, Any] = json.loads(line)
        return message

    async def answers(self, count: int) -> dict[Any, dict[str, Any]]:
        """Return the next ``count`` responses by id, in any order."""
        messages = [await self.receive() for _ in range(count)]
        return {message["id"]: message for message in messages}

    def close_input(self) -> None:
        self.writer.close()


class ServedPipes(LineClient):
    """A client of `serve_stdio` that runs in this process, with the task that serves it."""

    serving: asyncio.Task[None]

    @classmethod
    @asynccontextmanager
    async def open(cls, server: Server[Any], **options: Any) -> AsyncIterator[Self]:
        loop = asyncio.get_running_loop()
        server_in, client_out = os.pipe()
        client_in, server_out = os.pipe()
        reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
        read_transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(client_in, "rb")
        )
        write_transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(client_out, "wb")
        )
        client = cls(reader, asyncio.StreamWriter(write_transport, protocol, reader, loop))
        client.read_transport = read_transport
        client.serving = asyncio.create_task(serve_stdio(server, stdin_fd=server_in, stdout_fd=server_out, **options))
        try:
            yield client
        finally:
            write_transport.close()
            with suppress(asyncio.CancelledError):
                await asyncio.wait_for(client.serving, _PATIENCE)
            read_transport.close()
            os.close(server_in)
            os.close(server_out)

    read_transport: asyncio.ReadTransport

    async def ended(self, within: float) -> None:
        """Wait until `serve_stdio` has returned."""
        await asyncio.wait_for(asyncio.shield(self.serving), within)


class ServedProcess(LineClient):
    """A client of a child process that serves over its standard input and output."""

    process: asyncio.subprocess.Process

    @classmethod
    @asynccontextmanager
    async def open(
        cls, *argv: str, env: dict[str, str] | None = None, stderr: int | None = None
    ) -> AsyncIterator[Self]:
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            limit=64 * 1024 * 1024,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        client = cls(process.stdout, process.stdin)
        client.process = process
        try:
            yield client
        finally:
            process.stdin.close()
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
            await process.wait()


@dataclass(frozen=True)
class HttpAnswer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def exchange(port: int, raw: bytes) -> HttpAnswer:
    """Send ``raw`` unchanged and read one response, by its Content-Length or to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with suppress(ConnectionError):  # the server may respond and close before it has read everything
            writer.write(raw)
            await writer.drain()
        return await asyncio.wait_for(read_answer(reader), _PATIENCE)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def read_answer(reader: asyncio.StreamReader) -> HttpAnswer:
    status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = headers.get("content-length")
    body = await (reader.read() if length is None else reader.readexactly(int(length)))
    return HttpAnswer(int(status_line.split()[1]), headers, body)


def post(
    port: int,
    message: dict[str, Any] | bytes,
    *,
    path: str = "/mcp",
    host: str | None = None,
    headers: dict[str, str] | None = None,
) -> bytes:
    """Return the bytes of a POST; headers of revision 2026-07-28 are added for a message with its envelope."""
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    lines = {
        "Host": host if host is not None else f"127.0.0.1:{port}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **(headers or {}),
    }
    if isinstance(message, dict) and "_meta" in message.get("params", {}):
        lines["MCP-Protocol-Version"] = "2026-07-28"
        lines["Mcp-Method"] = message["method"]
        if "name" in message["params"]:
            lines["Mcp-Name"] = message["params"]["name"]
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


@contextmanager
def everything_over_http(*options: str) -> Iterator[int]:
    """Run the everything server over HTTP in a child process; yield its port."""
    with subprocess.Popen([*EVERYTHING, "http", *options], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), "the server did not start"
            yield int(url.rpartition(":")[2])
        finally:
            process.terminate()
            process.wait(timeout=_PATIENCE)
