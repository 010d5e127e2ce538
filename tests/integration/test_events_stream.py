"""``GET /events`` of a real server: events of runs and refusals, filters, reconnecting, and readers that misbehave."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI

from mcp_server.api.http.connections import deadline_protocol
from mcp_server.api.rest.events import HEARTBEAT_SEC, LONGEST_SEC, RETRY_MS, add_event_routes
from mcp_server.observability.events import KEPT, MAX_SUBSCRIBERS, QUEUED, EventBus
from tests.support.clock import SOON
from tests.support.interfaces import environment, http_server, owned, rest_client
from tests.support.streams import Stream, follow, request

QUICK = {"target": "127.0.0.1", "mode": "ports", "ports": "1-3"}


class Server:
    """A running HTTP server."""

    def __init__(self, base: str, token: str, process: subprocess.Popen[str]) -> None:
        self.base, self.token, self.process = base, token, process

    def client(self) -> httpx2.AsyncClient:
        return rest_client(self.base, self.token)

    async def readers(self) -> float:
        """Return the gauge of readers."""
        async with self.client() as client:
            page = (await client.get("/metrics")).text
        (line,) = [line for line in page.splitlines() if line.startswith("mcp_event_subscribers ")]
        return float(line.split()[1])

    async def readers_become(self, number: int, seconds: float = SOON) -> None:
        async with asyncio.timeout(seconds):
            while await self.readers() != number:
                await asyncio.sleep(0.05)

    def connect(self, **headers: str) -> socket.socket:
        """Open a stream with a small receive buffer and read nothing from it."""
        where = urlsplit(self.base)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(SOON)
        sock.connect((where.hostname, where.port))
        sock.sendall(request(self.base, self.token, headers=headers))
        return sock


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = environment(tmp_path_factory.mktemp("events") / "state", MCP_SERVER_MAX_CONNECTIONS="12")
    with http_server(env) as started:
        yield Server(*started)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx2.AsyncClient]:
    async with server.client() as made:
        yield made


async def refuse(client: httpx2.AsyncClient, times: int = 1) -> None:
    """Produce events by calls of an unknown tool."""
    for _ in range(times):
        assert (await client.post("/tools/nowhere/execute", json={})).status_code == 404


async def scan(client: httpx2.AsyncClient) -> str:
    """Run a quick scan and return its id."""
    answer = await client.post("/tools/nmap/execute", json=QUICK)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["run_id"])


async def test_the_events_of_a_run_are_sent_from_its_acceptance_to_its_end(
    server: Server, client: httpx2.AsyncClient
) -> None:
    async with follow(server.base, server.token) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-accel-buffering"] == "no"
        await stream.settled()
        assert stream.retry == 3000
        run_id = await scan(client)
        accepted = await stream.until("run.accepted", run_id=run_id)
        assert accepted.data["tool"] == "nmap"
        assert accepted.data["interface"] == "rest"
        started = await stream.until("run.started", run_id=run_id)
        ended = await stream.until("run.ended", run_id=run_id)
        assert ended.data["outcome"] == "completed"
        assert ended.data["hosts_up"] == 1
        numbers = [int(event.id.partition("-")[2]) for event in (accepted, started, ended)]
        assert numbers == sorted(set(numbers))
        assert "127.0.0.1" not in str([accepted, started, ended]), "events must not hold the targets of a call"


async def test_the_event_of_a_refusal_has_its_code_and_no_text_of_the_caller(
    server: Server, client: httpx2.AsyncClient
) -> None:
    async with follow(server.base, server.token, "?kind=call") as stream:
        await stream.settled()
        await client.post("/tools/nmap/execute", json={"target": "192.0.2.77"})
        event = await stream.until("call.refused")
        assert event.data["code"] == "target_out_of_scope"
        await client.post("/tools/no-such-tool/execute", json={"target": "127.0.0.1"})
        event = await stream.until("call.refused")
        assert event.data["tool"] == "unknown"
        assert "192.0.2.77" not in str(event)


async def test_a_reader_gets_only_the_kinds_that_it_selected(server: Server, client: httpx2.AsyncClient) -> None:
    async with follow(server.base, server.token, "?kind=health,run.ended&kind=alarm") as stream:
        await stream.settled()
        await refuse(client)
        await scan(client)
        event = await stream.next()
        assert event is not None
        assert event.kind == "run.ended"


@pytest.mark.parametrize(
    "query", ["?kind=runs", "?kind=", "?kind=run,,health", "?kinds=run", "?token=x", "?kind=run&a=1"]
)
async def test_an_invalid_filter_is_refused(server: Server, query: str) -> None:
    async with follow(server.base, server.token, query) as stream:
        assert stream.status == 422
        assert (await stream.body())["code"] == "invalid_arguments"


async def test_the_stream_needs_the_token_in_the_header(server: Server) -> None:
    for query in ("", f"?access_token={server.token}", f"?token={server.token}"):
        async with follow(server.base, "", query) as stream:
            assert stream.status == 401


async def test_a_reader_that_reconnects_has_missed_nothing(server: Server, client: httpx2.AsyncClient) -> None:
    async with follow(server.base, server.token) as stream:
        await stream.settled()
        last = stream.last_id
    await refuse(client, 3)
    async with follow(server.base, server.token, headers={"Last-Event-ID": last}) as stream:
        events = [await stream.next() for _ in range(3)]
    assert [event and event.kind for event in events] == ["call.refused"] * 3


async def test_a_reader_with_an_unknown_id_may_have_missed_events(server: Server) -> None:
    async with follow(server.base, server.token, headers={"Last-Event-ID": "0badcafe-7"}) as stream:
        event = await stream.next()
        assert event is not None
        assert (event.kind, event.data["missed"]) == ("lagged", None)


async def test_half_of_the_connections_are_not_for_readers(server: Server) -> None:
    await server.readers_become(0)
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(follow(server.base, server.token)) for _ in range(6)]
        for stream in streams:
            await stream.settled()
        assert await server.readers() == 6, "other requests must be answered"
        async with follow(server.base, server.token) as refused:
            assert refused.status == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert (await refused.body())["code"] == "too_many_requests"
        streams[0].writer.close()
        await server.readers_become(5)
    await server.readers_become(0)


async def test_a_stream_ends_when_the_reader_closes_its_sending_half(server: Server) -> None:
    await server.readers_become(0)
    with server.connect() as sock:
        await server.readers_become(1)
        sock.shutdown(socket.SHUT_WR)
        await server.readers_become(0)


async def test_a_reader_that_never_reads_delays_no_other_reader(server: Server, client: httpx2.AsyncClient) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(server.connect(**{"Last-Event-ID": "0badcafe-1"}))
        async with follow(server.base, server.token) as stream:
            await stream.settled()
            started = time.monotonic()
            await refuse(client, 20)
            for _ in range(20):
                await stream.until("call.refused")
            assert time.monotonic() - started < SOON


async def test_a_stopping_server_sends_an_event_and_waits_for_no_reader(tmp_path: Path) -> None:
    with http_server(environment(tmp_path / "state")) as started, ExitStack() as idle:
        server = Server(*started)
        async with server.client() as client, follow(server.base, server.token, "?kind=health") as stream:
            await stream.settled()
            await refuse(client, 20)
            for _ in range(3):
                idle.enter_context(server.connect(**{"Last-Event-ID": "0badcafe-1"}))
            await server.readers_become(4)
            begun = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert (await stream.until("server.stopping")).id
            while (event := await stream.next()) is not None:
                assert event.kind.startswith("health"), event
            assert await asyncio.to_thread(server.process.wait, 15) == 0
            assert time.monotonic() - begun < SOON


class Parts(SimpleNamespace):
    """The event stream on a real HTTP server in this process, with its bus."""

    base: str
    bus: EventBus
    uvicorn: uvicorn.Server

    async def become(self, wanted: Callable[[], bool], seconds: float = SOON) -> None:
        async with asyncio.timeout(seconds):
            while not wanted():
                await asyncio.sleep(0.02)


@asynccontextmanager
async def parts(bus: EventBus | None = None, protocol: Any = None, **options: float) -> AsyncIterator[Parts]:
    bus = bus or EventBus()
    app = FastAPI()
    add_event_routes(app, bus, lambda: 100, **options)
    sock = socket.create_server(("127.0.0.1", 0))
    settings = uvicorn.Config(
        owned(app), http=protocol or deadline_protocol(), log_config=None, ws="none", lifespan="off", access_log=False
    )
    served = uvicorn.Server(settings)
    serving = asyncio.create_task(served.serve([sock]))
    try:
        async with asyncio.timeout(SOON):
            while not served.started:
                await asyncio.sleep(0.01)
        yield Parts(base=f"http://127.0.0.1:{sock.getsockname()[1]}", bus=bus, uvicorn=served)
    finally:
        bus.close()
        served.should_exit = True
        async with asyncio.timeout(SOON):
            await serving


async def comments(stream: Stream, number: int) -> None:
    reading = asyncio.create_task(stream.next())
    async with asyncio.timeout(SOON):
        while stream.comments < number:
            await asyncio.sleep(0.01)
    reading.cancel()


def test_the_documentation_has_the_limits() -> None:
    page = " ".join((Path(__file__).resolve().parents[2] / "docs/events.md").read_text().split())
    for sentence in (
        f"keeps the last {KEPT} events",
        f"Up to {QUEUED} events wait",
        f"After {HEARTBEAT_SEC:.0f} s without an event",
        f"at most {MAX_SUBSCRIBERS} readers",
        f"retry: {RETRY_MS} ",
    ):
        assert sentence in page
    assert (LONGEST_SEC, RETRY_MS) == (3600, 3000), "docs/events.md says one hour and three seconds"


async def test_an_idle_stream_gets_comments_with_the_newest_id() -> None:
    async with parts(heartbeat_sec=0.1) as server, follow(server.base, "", "?kind=health") as stream:
        await stream.settled()
        first = stream.last_id
        server.bus.publish("alarm", {"alarm": "x"})
        await comments(stream, 2)
        assert stream.last_id != first
        assert not stream.events


async def test_a_stream_ends_after_its_time_limit_and_continues_in_the_next() -> None:
    async with parts(longest_sec=0.3, heartbeat_sec=0.1) as server:
        seen: list[Any] = []
        last: dict[str, str] = {}
        for _ in range(3):
            async with follow(server.base, "", headers=last) as stream:
                while (event := await stream.next()) is not None:
                    seen.append(event.data["count"])
                last = {"Last-Event-ID": stream.last_id}
            server.bus.publish("alarm", {"count": len(seen)})
        assert seen == [0, 1]


async def test_a_slow_reader_gets_the_number_of_lost_events() -> None:
    async with parts(EventBus(queued=50)) as server, follow(server.base, "") as stream:
        await stream.settled()
        for number in range(200):
            server.bus.publish("alarm", {"count": number})
        first, second = await stream.next(), await stream.next()
        assert first is not None
        assert second is not None
        assert (first.kind, first.data["missed"]) == ("lagged", 150)
        assert second.data["count"] == 150


async def test_a_stuck_reader_costs_only_its_queue_and_gets_the_number_of_lost_events() -> None:
    async with parts(EventBus(queued=20)) as server, follow(server.base, "") as quick:
        await quick.settled()
        much = ["x" * 500] * 10
        where = urlsplit(server.base)
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            stuck.connect((where.hostname, where.port))
            stuck.sendall(request(server.base, ""))
            await server.become(lambda: server.bus.subscribers == 2)
            connections: set[Any] = {*server.uvicorn.server_state.connections}
            number = 0

            def is_blocked() -> bool:
                return any(each.flow.write_paused for each in connections)

            async with asyncio.timeout(20):
                while not is_blocked():
                    server.bus.publish("alarm", {"count": (number := number + 1), "message": much})
                    event = await quick.next()
                    assert event is not None
                    assert event.data["count"] == number, "the other reader must lose nothing"
            for _ in range(1000):
                server.bus.publish("alarm", {"count": (number := number + 1), "message": much})
            unsent = max(each.transport.get_write_buffer_size() for each in connections)
            assert unsent < 400_000
            stuck.setblocking(False)
            text = b""
            async with asyncio.timeout(20):
                while f'"count":{number}}}'.encode() not in text:
                    text += await asyncio.get_running_loop().sock_recv(stuck, 1 << 20)
        lost = [int(each) for each in re.findall(rb'"kind":"lagged"[^}]*"missed":(\d+)', text)]
        had = [int(each) for each in re.findall(rb'"count":(\d+)', text)]
        assert had == sorted(set(had))
        assert lost
        assert sum(lost) + len(had) == number, "every event must be received or counted as lost"


async def test_data_that_a_reader_sends_is_ignored() -> None:
    async with parts() as server, follow(server.base, "") as stream:
        await stream.settled()
        stream.writer.write(request(server.base, ""))
        await stream.writer.drain()
        server.bus.publish("alarm", {"alarm": "one\ndata: two\n\nevent: server.stopping\r\n: x"})
        event = await stream.next()
        assert event is not None
        assert (event.kind, event.data["alarm"]) == ("alarm", "one\ndata: two\n\nevent: server.stopping\\x0d\n: x")
