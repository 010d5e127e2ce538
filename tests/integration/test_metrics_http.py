"""HTTP requests as metrics: routes are templates, methods are known words, and each request counts once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from hypothesis import given
from hypothesis import strategies as st

from mcp_server import metrics
from mcp_server.api.http.asgi import Message, Receive, Scope, Send
from mcp_server.api.http.request_metrics import RequestMetricsMiddleware
from tests.support.metrics import counting, series

rest = FastAPI()
released: asyncio.Event


@rest.get("/runs/{run_id}")
async def run(run_id: str) -> str:
    return run_id


@rest.get("/tools")
async def tools() -> str:
    return "tools"


@rest.get("/events")
async def events() -> StreamingResponse:
    async def forever() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await released.wait()

    return StreamingResponse(forever(), media_type="text/event-stream")


@rest.get("/crash")
async def crash() -> str:
    raise RuntimeError


@pytest.fixture(autouse=True)
def counting_from_zero() -> Iterator[None]:
    with counting():
        yield


def counted() -> dict[tuple[str, ...], float]:
    return series("mcp_http_requests_total", "method", "route", "status")


def timed() -> dict[tuple[str, ...], float]:
    return series("mcp_http_request_seconds_count", "route")


def client() -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app=RequestMetricsMiddleware(rest, rest.routes), raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://test")


async def test_a_request_counts_once_under_its_template() -> None:
    async with client() as http:
        for path in ("/runs/1", "/runs/2", "/tools", "/nowhere", "/runs/1/2", "/tools/", "/openapi.json"):
            await http.get(path)
        await http.post("/tools")
        await http.request("BREW", "/tools")
    assert counted() == {
        ("GET", "/runs/{run_id}", "200"): 2,
        ("GET", "/tools", "200"): 1,
        ("GET", "/openapi.json", "200"): 1,
        ("GET", "other", "404"): 2,
        ("GET", "other", "307"): 1,
        ("POST", "/tools", "405"): 1,
        ("other", "/tools", "405"): 1,
    }
    assert timed() == {("/runs/{run_id}",): 2, ("/tools",): 3, ("/openapi.json",): 1, ("other",): 3}


async def test_a_crash_counts_as_500() -> None:
    async with client() as http:
        with suppress(RuntimeError):
            await http.get("/crash")
    assert counted() == {("GET", "/crash", "500"): 1}


async def drive(app: RequestMetricsMiddleware, path: str, *, until: asyncio.Event | None = None) -> list[Message]:
    """One request by hand; ends it when ``until`` is set."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if until is not None and message["type"] == "http.response.body":
            until.set()

    scope: Scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    await app(scope, receive, send)
    return sent


async def test_a_stream_counts_when_it_begins() -> None:
    global released
    released, begun = asyncio.Event(), asyncio.Event()
    stream = asyncio.create_task(drive(RequestMetricsMiddleware(rest, rest.routes), "/events", until=begun))
    await begun.wait()
    assert counted() == {("GET", "/events", "200"): 1}
    released.set()
    await stream
    assert counted() == {("GET", "/events", "200"): 1}


async def test_a_client_that_disconnects_before_the_response_counts_as_499() -> None:
    begun = asyncio.Event()

    async def slow(_scope: Scope, _receive: Receive, _send: Send) -> None:
        begun.set()
        await asyncio.sleep(3600)

    async def silent(_scope: Scope, _receive: Receive, _send: Send) -> None:
        return

    request = asyncio.create_task(drive(RequestMetricsMiddleware(slow, rest.routes), "/tools"))
    await begun.wait()
    request.cancel()
    await asyncio.wait({request})
    await drive(RequestMetricsMiddleware(silent, rest.routes), "/tools")
    assert counted() == {("GET", "/tools", "499"): 2}


@given(st.text())
def test_the_label_of_any_path_is_a_route_template_or_other(path: str) -> None:
    templates = {route.path for route in rest.routes if hasattr(route, "path")} | {"/mcp", metrics.OTHER}
    assert RequestMetricsMiddleware(rest, rest.routes).route("/" + path) in templates


async def test_lifespan_messages_are_passed_on_and_not_counted() -> None:
    seen = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    async def nothing(*_: object) -> Message:
        return {}

    await RequestMetricsMiddleware(app, [])({"type": "lifespan"}, nothing, nothing)  # type: ignore[arg-type]  # neither is called
    assert seen == ["lifespan"]
    assert counted() == {}
