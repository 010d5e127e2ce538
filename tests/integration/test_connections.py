"""Too many connections, incomplete bodies, endless streams and sessions do not keep others from being answered."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from mcp.server.lowlevel import Server
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from mcp_server.api.http.application import compose, mcp_app
from mcp_server.api.http.asgi import ASGIApp
from mcp_server.api.http.connections import AcceptErrorHandler, BoundedSocket, listen
from mcp_server.api.http.middleware import SMALL_BODY, BodyLimitMiddleware
from mcp_server.api.http.uvicorn_server import serve_http
from tests.support.callers import token_only
from tests.support.clock import SOON
from tests.support.interfaces import environment, http_server
from tests.support.mcp_wire import exchange, initialize, post, request

TOKEN = "correct-horse-battery-staple-0123456789"
NO_DESCRIPTOR = (
    "connections.turned_away",
    "connections.no_descriptor",
    "out of system resource",
    "Traceback",
)


def get(port: int, path: str, *lines: str, method: str = "GET") -> bytes:
    head = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *lines, "", ""]
    return "\r\n".join(head).encode()


def authorized(token: str) -> str:
    return f"Authorization: Bearer {token}"


def connected(stack: ExitStack, port: int, data: bytes) -> socket.socket:
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), SOON))
    sock.sendall(data)
    return sock


def health_over(base: str, headers: dict[str, str]) -> int | None:
    """Return the status of /health, or None if the connection was refused."""
    try:
        return httpx2.get(f"{base}/health", headers=headers).status_code
    except httpx2.TransportError:
        return None


def test_many_unauthenticated_connections_do_not_stop_the_server_or_fill_the_log(tmp_path: Path) -> None:
    env = environment(tmp_path / "state")
    with http_server(env, prefix=("prlimit", "--nofile=200:200")) as (base, token, process), ExitStack() as stack:
        port = urlsplit(base).port
        assert port
        for _ in range(300):
            connected(stack, port, get(port, "/x"))
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0] == 200
        headers = {"Authorization": f"Bearer {token}"}
        deadline = time.monotonic() + SOON
        while health_over(base, headers) != 200:
            assert time.monotonic() < deadline, "/health was not answered in time"
        # Connections that send nothing are also limited, so that the server has enough descriptors.
        silent = [connected(stack, port, b"") for _ in range(300)]
        time.sleep(0.5)
        descriptors = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        assert descriptors < 180, "idle connections use too many descriptors"
        for sock in silent:
            sock.close()
        assert httpx2.get(f"{base}/health", headers=headers, timeout=SOON).status_code == 200
    log = (tmp_path / f"server-{port}.log").read_text()
    assert [log.count(word) for word in NO_DESCRIPTOR] == [1, 0, 0, 0], log[-3000:]


async def test_a_listener_without_a_free_descriptor_pauses_and_logs_it_once(caplog: pytest.LogCaptureFixture) -> None:
    async def none(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(AcceptErrorHandler())
    listening = BoundedSocket(socket.create_server(("127.0.0.1", 0)), 1000)
    server = await asyncio.start_server(none, sock=listening, backlog=100)
    clients = [socket.socket() for _ in range(5)]
    for client in clients:
        client.setblocking(False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with caplog.at_level(logging.WARNING):
        resource.setrlimit(resource.RLIMIT_NOFILE, (clients[-1].fileno() + 1, hard))
        held = fill_descriptors()
        try:
            for client in clients:
                await loop.sock_connect(client, listening.getsockname())
            await asyncio.sleep(1.2)  # asyncio tries again after a second
        finally:
            for each in held:
                each.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        async with asyncio.timeout(SOON):
            for client in clients:
                assert await loop.sock_recv(client, 1) == b""
                client.close()
    lines = [record.msg for record in caplog.records]
    assert [line["event"] for line in lines if isinstance(line, dict)] == ["connections.no_descriptor"], lines
    server.close()
    await server.wait_closed()


def fill_descriptors() -> list[socket.socket]:
    held = []
    try:
        while True:
            held.append(socket.socket())
    except OSError:
        return held


async def whole(_: Request) -> PlainTextResponse:
    return PlainTextResponse("here")


async def endless(_: Request) -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        while True:
            yield ": here\n\n"
            await asyncio.sleep(0.1)

    return StreamingResponse(events(), media_type="text/event-stream")


class Event:
    """A `Stop` that a test sets."""

    left = 0.2

    def __init__(self) -> None:
        self.ended, self.hurried = asyncio.Event(), asyncio.Event()


@asynccontextmanager
async def served(build: Callable[[set[str]], ASGIApp]) -> AsyncIterator[int]:
    """Serve the application that ``build`` returns for the allowed host names, on a free port."""
    listener = listen("127.0.0.1", 0)
    app = build({f"127.0.0.1:{listener.port}"})
    ready, stop = asyncio.Event(), Event()
    serving = asyncio.create_task(serve_http(app, listener, ready=lambda _: ready.set(), stop=stop))
    await ready.wait()
    try:
        yield listener.port
    finally:
        stop.ended.set()
        await serving


PAGES = ["/short", "/health", "/metrics", "/livez", "/readyz"]


@asynccontextmanager
async def pages(max_requests: int) -> AsyncIterator[int]:
    routes = [Route(path, whole, methods=["GET", "POST"]) for path in PAGES]
    streams = [Route(path, endless, methods=["GET", "POST"]) for path in ("/mcp", "/events", "/slow")]
    app = Starlette(routes=[*routes, *streams])
    async with served(
        lambda hosts: compose(
            app, None, authenticate=token_only(TOKEN), hosts=hosts, origins=(), max_requests=max_requests
        )
    ) as port:
        yield port


async def status(port: int, path: str, *lines: str, method: str = "GET") -> int:
    return (await exchange(port, get(port, path, authorized(TOKEN), *lines, method=method))).status


async def begun(stack: ExitStack, port: int, data: bytes) -> bytes:
    """Return the first line of the response, and leave the connection open."""
    loop = asyncio.get_running_loop()
    sock = connected(stack, port, data)
    sock.setblocking(False)
    async with asyncio.timeout(SOON):
        return (await loop.sock_recv(sock, 1000)).partition(b"\r\n")[0]


@pytest.mark.parametrize(
    "asked",
    [
        ("/mcp", "GET", ""),
        ("/mcp/", "GET", ""),
        ("/events", "GET", ""),
        ("/mcp", "POST", "Mcp-Method: subscriptions/listen"),
    ],
)
async def test_endless_streams_do_not_use_the_slots_of_short_requests(asked: tuple[str, str, str]) -> None:
    path, method, line = asked
    lines = [authorized(TOKEN), *([line] if line else []), *(["Content-Length: 0"] if method == "POST" else [])]
    async with pages(4) as port:
        with ExitStack() as stack:
            data = get(port, path, *lines, method=method)
            assert [await begun(stack, port, data) for _ in range(2)] == [b"HTTP/1.1 200 OK"] * 2
            over = await exchange(port, data)
            assert (over.status, over.headers["retry-after"]) == (429, "1")
            assert over.json()["code"] == "too_many_requests"
            assert [await status(port, "/short") for _ in range(5)] == [200] * 5


async def test_a_full_server_still_answers_health_metrics_and_admin_requests() -> None:
    async with pages(2) as port:
        with ExitStack() as stack:
            for _ in range(2):
                assert await begun(stack, port, get(port, "/slow", authorized(TOKEN))) == b"HTTP/1.1 200 OK"
            assert await status(port, "/short") == 429
            assert [await status(port, path) for path in ("/health", "/metrics")] == [200, 200]
            assert await status(port, "/admin/reload", "Content-Length: 0", method="POST") == 404, (
                "an admin request was refused"
            )


async def all_of(port: int, data: bytes) -> bytes:
    """Return all bytes until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    async with asyncio.timeout(SOON):
        response = await reader.read()
    writer.close()
    return response


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_a_probe_can_use_the_method_head(path: str) -> None:
    async with pages(2) as port:
        get_response, head_response, refused = [
            await all_of(port, get(port, target, method=method))
            for target, method in ((path, "GET"), (path, "HEAD"), ("/health", "HEAD"))
        ]
        assert (get_response[:15], get_response[-8:]) == (b"HTTP/1.1 200 OK", b"\r\n\r\nhere")
        assert (head_response[:15], head_response[-4:]) == (b"HTTP/1.1 200 OK", b"\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 401 ")
        assert (await exchange(port, get(port, path, "Content-Length: 0", method="POST"))).status == 401


async def test_the_connection_of_an_unknown_caller_is_closed_after_the_response() -> None:
    async with pages(2) as port:
        for lines, expected in (((), 401), (("Authorization: Bearer guessed",), 401), (("Origin: http://x",), 403)):
            response = await exchange(port, get(port, "/short", *lines))
            assert (response.status, response.headers.get("connection")) == (expected, "close")
        response = await exchange(port, get(port, "/short", authorized(TOKEN)))
        assert "connection" not in response.headers, "the connection of an authenticated caller was closed"


def bounded(**bounds: Any) -> Callable[[set[str]], ASGIApp]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for word in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{word}.complete"})
            return
        body = (await receive())["body"]
        await PlainTextResponse(str(len(body)))(scope, receive, send)

    return lambda _: BodyLimitMiddleware(app, **bounds)


async def test_a_body_that_stalls_or_is_too_slow_is_refused() -> None:
    async with served(bounded(body_sec=0.5, min_bytes_per_sec=1000)) as port:
        stalled = post(port, b"", headers={"Content-Length": "100"}) + b"{"
        response = await exchange(port, stalled)
        assert (response.status, response.headers["connection"]) == (408, "close")
        assert response.json()["code"] == "request_timeout"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(stalled)
        first_bytes = asyncio.create_task(reader.read(12))
        sent = 0
        while not (await asyncio.wait({first_bytes}, timeout=0.1))[0] and sent < 30:
            writer.write(b"x")
            sent += 1
        assert await first_bytes == b"HTTP/1.1 408"
        assert sent < 10, "a byte every 0.1 s kept the request open"
        writer.close()


async def test_a_slow_but_steady_body_is_accepted() -> None:
    async with served(bounded(body_sec=0.5, min_bytes_per_sec=1000)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(port, b"", headers={"Content-Length": "3000", "Connection": "close"}))
        for _ in range(10):
            await asyncio.sleep(0.1)
            writer.write(b"x" * 300)
        async with asyncio.timeout(SOON):
            assert (await reader.read()).endswith(b"3000")
        writer.close()


async def test_the_total_size_of_large_bodies_is_limited_and_small_ones_are_always_accepted() -> None:
    whole_size = 10 * SMALL_BODY
    async with served(bounded(max_bodies=whole_size)) as port:
        with ExitStack() as stack:
            head = post(port, b"", headers={"Content-Length": str(whole_size)})
            connected(stack, port, head + b"x" * (whole_size - 1))
            await asyncio.sleep(0.2)
            large = post(port, b"x" * whole_size)
            assert (await exchange(port, large)).status == 429
            assert (await exchange(port, post(port, b"x" * SMALL_BODY))).status == 200
        await asyncio.sleep(0.2)
        assert (await exchange(port, large)).status == 200, "the bytes of a closed connection still count"


async def test_requests_without_their_body_use_no_slots() -> None:
    async with pages(2) as port:
        with ExitStack() as stack:
            for _ in range(20):
                connected(stack, port, get(port, "/short", authorized(TOKEN), "Content-Length: 9", method="POST"))
            await asyncio.sleep(0.1)
            assert [await status(port, "/short") for _ in range(3)] == [200] * 3


async def test_at_the_limit_the_session_that_is_idle_the_longest_is_removed() -> None:
    # `api.http.sessions` reads attributes of the SDK. This test fails if the SDK changes them.
    version, known = "2025-06-18", {"Authorization": authorized(TOKEN).partition(": ")[2]}

    def build(hosts: set[str]) -> ASGIApp:
        app = mcp_app(Server("sessions"), hosts=hosts, origins=(), max_sessions=3)
        return compose(app, None, authenticate=token_only(TOKEN), hosts=hosts, origins=())

    async def opened(port: int) -> str:
        async with asyncio.timeout(SOON):
            # The server may still be busy with the end of a request or stream whose response was read.
            while (response := await exchange(port, post(port, initialize(1, version), headers=known))).status == 429:
                await asyncio.sleep(0.05)
        assert response.status == 200, response.body
        return response.headers["mcp-session-id"]

    async def pinged(port: int, session: str) -> int:
        headers = known | {"Mcp-Session-Id": session, "MCP-Protocol-Version": version}
        return (await exchange(port, post(port, request(2, "ping"), headers=headers))).status

    def stream(port: int, session: str) -> bytes:
        accept = "Accept: text/event-stream"
        return get(port, "/mcp", authorized(TOKEN), accept, f"Mcp-Session-Id: {session}")

    async with served(build) as port:
        with ExitStack() as stack:
            streaming, first, second = [await opened(port) for _ in range(3)]
            assert await begun(stack, port, stream(port, streaming)) == b"HTTP/1.1 200 OK"
            assert await pinged(port, first) == 200
            third = await opened(port)
            assert [await pinged(port, each) for each in (second, third, first)] == [404, 200, 200]
            # The SDK needs a moment after a ping. Until then the session of its stream would count as idle.
            await asyncio.sleep(0.1)
            for each in (first, third):
                assert await begun(stack, port, stream(port, each)) == b"HTTP/1.1 200 OK"
            full = await exchange(port, post(port, initialize(1, version), headers=known))
            assert (full.status, full.headers["retry-after"]) == (429, "1"), "a session with an open stream was removed"
        for _ in range(20):
            await opened(port)
        assert await pinged(port, streaming) == 404
