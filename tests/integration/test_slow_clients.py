"""Clients that do not read their responses, half-close or only hold a connection do not delay other clients."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mcp_server.api.http.connections import deadline_protocol
from tests.support.clock import SOON
from tests.support.interfaces import environment, http_server, rest_client
from tests.support.site_tools import make_site_tools

RAW_BYTES = 3_000_000
MIB = 1024 * 1024


def request(base: str, token: str, path: str) -> bytes:
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    return f"GET {path} HTTP/1.1\r\nHost: {urlsplit(base).netloc}\r\n{authorization}\r\n".encode()


def connect(base: str, token: str, *paths: str) -> socket.socket:
    """Open a connection with a small buffer and request ``paths``, without reading a response."""
    where = urlsplit(base)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(SOON)
    sock.connect((where.hostname, where.port))
    sock.sendall(b"".join(request(base, token, path) for path in paths))
    return sock


class Server:
    """A running HTTP server that has one run with 3 MB of raw output."""

    def __init__(self, base: str, token: str, process: subprocess.Popen[str]) -> None:
        self.base, self.token, self.process = base, token, process
        self.run_id = ""

    def request(self, path: str) -> bytes:
        return request(self.base, self.token, path)

    def connect(self, *paths: str) -> socket.socket:
        return connect(self.base, self.token, *paths)

    @property
    def raw(self) -> str:
        return f"/runs/{self.run_id}/raw"

    @property
    def rss(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    @property
    def connections(self) -> int:
        return sum(
            each.status == psutil.CONN_ESTABLISHED for each in psutil.Process(self.process.pid).net_connections()
        )


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Start a server with one run."""
    site = make_site_tools(folder / "site")
    with http_server(environment(folder / "state", **site.env)) as started:
        found = Server(*started)
        asyncio.run(_make_run(found))
        asyncio.run(others_are_answered(found))  # imports and caches then do not count as memory for slow clients
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("slow")) as started:
        yield started


async def _make_run(server: Server) -> None:
    body = {"target": "127.0.0.1", "extra_args": "--do huge"}
    async with rest_client(server.base, server.token) as client:
        response = await client.post("/tools/probe/execute", json=body)
        assert response.status_code == 200, response.text
        server.run_id = response.json()["run_id"]
        assert len((await client.get(server.raw)).content) == RAW_BYTES


async def others_are_answered(server: Server) -> None:
    """Check that other requests are answered, each within `SOON` seconds."""
    async with rest_client(server.base, server.token) as client:
        for path in ("/health", "/runs", "/tools", server.raw, "/metrics") * 2:
            started = time.monotonic()
            assert (await client.get(path)).status_code == 200, path
            assert time.monotonic() - started < SOON, f"{path} took too long"
        response = await client.post("/tools/probe/execute", json={"target": "127.0.0.1", "extra_args": "--do nothing"})
        assert response.status_code == 200, response.text


def test_clients_that_do_not_read_a_large_response_do_not_delay_others(server: Server) -> None:
    before = server.rss
    with ExitStack() as stack:
        slow = [stack.enter_context(server.connect(server.raw)) for _ in range(30)]
        asyncio.run(others_are_answered(server))
        # The server holds about a megabyte of each response, besides the buffers of the kernel, and not all of it.
        assert server.rss - before < len(slow) * RAW_BYTES * 2 // 3
        # A client that reads later gets the whole response.
        text = b""
        while not text.endswith(b"x" * 1000) or len(text.partition(b"\r\n\r\n")[2]) < RAW_BYTES:
            text += slow[0].recv(MIB)
        head, _, body = text.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert body == b"x" * RAW_BYTES


def test_a_thousand_requests_without_reading_do_not_fill_the_memory_and_can_be_read_later(server: Server) -> None:
    before = server.rss
    paths = [f"/runs/{server.run_id}?limit=1", "/openapi.json"] * 500
    with server.connect() as sock:
        sock.setblocking(False)
        asked = b"".join(map(server.request, paths))
        sent = 0
        deadline = time.monotonic() + 2
        while sent < len(asked) and time.monotonic() < deadline:
            try:
                sent += sock.send(asked[sent:])
            except BlockingIOError:
                time.sleep(0.01)
        asyncio.run(others_are_answered(server))
        assert server.rss - before < 10 * MIB
        sock.settimeout(SOON)
        assert sock.recv(9) == b"HTTP/1.1 "


def test_connections_without_a_complete_request_do_not_delay_others(server: Server) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(server.connect())
        for _ in range(50):
            sock = stack.enter_context(server.connect())
            sock.sendall(server.request("/health")[:-3])
        asyncio.run(others_are_answered(server))


@pytest.mark.parametrize("path", ["raw", "/events", "/health"])
def test_half_closed_connections_are_closed(server: Server, path: str) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(server.connect(server.raw if path == "raw" else path))
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(SOON)
            while sock.recv(MIB):
                pass
        deadline = time.monotonic() + SOON
        while server.connections and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.connections == 0, "connections are still open"
        asyncio.run(others_are_answered(server))


def test_a_stopping_server_does_not_wait_for_clients_that_do_not_read(tmp_path: Path) -> None:
    with serving(tmp_path) as server, ExitStack() as stack:
        for path in (server.raw, server.raw, "/events", "/health"):
            stack.enter_context(server.connect(path))
        asyncio.run(others_are_answered(server))
        server.process.terminate()
        assert server.process.wait(10) == 0


async def test_a_client_that_does_not_read_is_disconnected_and_a_slow_one_is_not() -> None:
    async def page(_: Request) -> Response:
        return Response(b"x" * 10 * MIB)

    listening = socket.create_server(("127.0.0.1", 0))
    protocol = deadline_protocol(unread_sec=2)
    config = uvicorn.Config(
        Starlette(routes=[Route("/", page)]), http=protocol, log_config=None, ws="none", lifespan="off"
    )
    served = uvicorn.Server(config)
    serving = asyncio.create_task(served.serve([listening]))
    base = f"http://127.0.0.1:{listening.getsockname()[1]}"
    loop = asyncio.get_running_loop()
    with connect(base, "", "/"), socket.socket() as slow:
        slow.setblocking(False)
        await loop.sock_connect(slow, listening.getsockname())
        await loop.sock_sendall(slow, request(base, "", "/"))
        got = 0
        async with asyncio.timeout(10):
            while got == 0 or len(served.server_state.connections) > 1:
                got += len(await loop.sock_recv(slow, 200_000))
                await asyncio.sleep(0.2)
        assert got < 10 * MIB, "the slow client had the whole response before the other was disconnected"
        assert len(served.server_state.connections) == 1
        while got < 10 * MIB:
            piece = await loop.sock_recv(slow, 10 * MIB)
            assert piece, "the slow client was disconnected too"
            got += len(piece)
    served.should_exit = True
    await serving
