"""The stop of a server: its effect on running calls, new calls, open connections and the audit log."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.interfaces_under_way import SERVED, Interface, one_interface
from tests.support import cli
from tests.support.interfaces import environment, log_records
from tests.support.scans import gone, own_network, scanners, slow_scan, started

SLACK_SEC = 2.0
"""Seconds that a stop may take in addition to the grace period."""


def quick_scan(target: str) -> dict[str, Any]:
    """Return the arguments of a scan of one address that takes about three seconds."""
    return {"target": target, "mode": "ports", "ports": "1-8", "extra_args": "--scan-delay 300ms"}


def settings(tmp_path: Path, grace: int, **extra: str) -> dict[str, str]:
    return environment(tmp_path / "state", MCP_SERVER_SHUTDOWN_GRACE_PERIOD=str(grace), **extra)


def one_run(env: dict[str, str]) -> dict[str, Any]:
    """Return the only run in the store, as the command line shows it."""
    done = cli.run("runs", "list", "--json", env=env)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    shown = cli.run("runs", "show", run["id"], "--json", env=env)
    assert shown.returncode == 0, shown.stderr
    body: dict[str, Any] = json.loads(shown.stdout)
    return body


def assert_clean(env: dict[str, str], interface: Interface) -> None:
    """Check that the log is valid and sealed, that every accepted run has an end record, and that nothing crashed."""
    state = Path(env["MCP_STATE_DIR"])
    verified = cli.run("audit", "verify", "--json", env=env)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    records = log_records(state)
    accepted = {record["run_id"] for record in records if record.get("decision") == "accept"}
    assert accepted == {record["run_id"] for record in records if record["event"] == "end"}
    sealed = (state / "audit.checkpoints").read_text()
    assert f"\n{len(records)}\n" in sealed, "expected the last checkpoint to cover the last record"
    assert not [path for path in (state / "owners").iterdir() if path.suffix == ".lock"]
    assert not list((state / "raw" / "spool").glob("*"))
    assert "Traceback" not in interface.log.read_text()


@pytest.mark.parametrize("kind", SERVED)
async def test_a_running_call_ends_a_new_one_is_refused_and_reads_are_answered(tmp_path: Path, kind: str) -> None:
    env, target = settings(tmp_path, 30), own_network().partition("/")[0]
    async with one_interface(kind, env) as interface:
        call = asyncio.create_task(interface.call("nmap", quick_scan(target)))
        await started(target)
        asked = interface.signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        refused = await interface.call("nmap", {"target": "127.0.0.1", "mode": "discover"})
        assert refused.code == "shutting_down"
        assert refused.error is not None
        assert refused.error["retryable"]
        assert refused.error["details"]["retry_after"] >= 1
        assert await interface.read(), "expected an answer to a read during the grace period"
        assert not call.done(), "expected the running call to continue"
        answer = await call
        assert answer.error is None, answer
        ended = time.monotonic()
        assert await interface.exit_code(SLACK_SEC) == 0
        assert ended - asked < 20, "the server must not wait for the grace period if no call runs"
    assert one_run(env)["run"]["outcome"] == "completed"
    assert_clean(env, interface)


@pytest.mark.parametrize("kind", SERVED)
async def test_a_call_longer_than_the_grace_period_is_cancelled_and_keeps_its_results(
    tmp_path: Path, kind: str
) -> None:
    env, target = settings(tmp_path, 3), own_network()
    async with one_interface(kind, env) as interface:
        call = asyncio.create_task(interface.call("nmap", slow_scan(target)))
        await started(target)
        asked = interface.signal(signal.SIGTERM)
        answer = await call
        assert time.monotonic() - asked > 2.8
        assert answer.code == "shutting_down"
        assert answer.error is not None
        assert await interface.exit_code(asked + 3 + SLACK_SEC - time.monotonic()) == 0
        assert not scanners(target)
    shown = one_run(env)
    run = shown["run"]
    assert answer.error["details"]["run_id"] == run["id"]
    assert run["outcome"] == "cancelled"
    assert 0 < run["coverage"]["looked_at"] < 16
    assert len(shown["hosts"]) == run["coverage"]["looked_at"]
    assert run["raw"]["size"] > 0
    assert_clean(env, interface)


@pytest.mark.parametrize(
    ("kind", "numbers"), [("stdio", (signal.SIGTERM, signal.SIGINT)), ("http", (signal.SIGINT, signal.SIGTERM))]
)
async def test_a_second_signal_ends_the_grace_period(
    tmp_path: Path, kind: str, numbers: tuple[signal.Signals, ...]
) -> None:
    env, target = settings(tmp_path, 120), own_network()
    async with one_interface(kind, env) as interface:
        call = asyncio.create_task(interface.call("nmap", slow_scan(target)))
        await started(target)
        interface.signal(numbers[0])
        await asyncio.sleep(0.7)
        assert scanners(target)
        interface.signal(numbers[1])
        assert await interface.exit_code(SLACK_SEC) == 0
        assert await gone(target)
        await asyncio.wait({call})
        call.exception()
    assert one_run(env)["run"]["outcome"] == "cancelled"
    assert_clean(env, interface)


async def test_a_signal_that_is_delivered_twice_counts_once(tmp_path: Path) -> None:
    env, target = settings(tmp_path, 30), own_network().partition("/")[0]
    async with one_interface("rest", env) as interface:
        call = asyncio.create_task(interface.call("nmap", quick_scan(target)))
        await started(target)
        interface.signal(signal.SIGTERM)
        await asyncio.sleep(0.05)
        interface.signal(signal.SIGTERM)
        assert (await call).error is None
        assert await interface.exit_code(SLACK_SEC) == 0


async def test_without_running_calls_the_server_stops_at_once(tmp_path: Path) -> None:
    env = settings(tmp_path, 300)
    for kind in ("stdio", "rest"):
        async with one_interface(kind, env) as interface:
            interface.signal(signal.SIGTERM)
            assert await interface.exit_code(SLACK_SEC) == 0


async def test_queued_calls_are_refused_at_once_and_the_running_one_ends(tmp_path: Path) -> None:
    env, target = settings(tmp_path, 30, MCP_DEFAULT_CONCURRENCY="1"), own_network().partition("/")[0]
    async with one_interface("rest", env) as interface:
        first = asyncio.create_task(interface.call("nmap", quick_scan(target)))
        await started(target)
        later = [asyncio.create_task(interface.call("nmap", {"target": "127.0.0.1"})) for _ in range(5)]
        await asyncio.sleep(0.5)
        assert not any(call.done() for call in later), "expected the later calls to be queued"
        interface.signal(signal.SIGTERM)
        done, _ = await asyncio.wait(later, timeout=1)
        assert [call.result().code for call in done] == ["shutting_down"] * 5
        assert not first.done()
        assert (await first).error is None
        assert await interface.exit_code(SLACK_SEC) == 0
    assert_clean(env, interface)


async def test_over_stdio_the_end_of_input_ends_the_grace_period(tmp_path: Path) -> None:
    env, target = settings(tmp_path, 120), own_network()
    async with one_interface("stdio", env) as interface:
        call = asyncio.create_task(interface.call("nmap", slow_scan(target)))
        await started(target)
        interface.signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        interface.process.stdin.close()
        assert await interface.exit_code(SLACK_SEC) == 0
        assert await gone(target)
        await asyncio.wait({call})
        call.exception()
    assert one_run(env)["run"]["outcome"] == "cancelled"
    assert_clean(env, interface)


_opened: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _closed_afterwards() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


class Client:
    """A raw connection to the HTTP interfaces."""

    def __init__(self, interface: Interface) -> None:
        self._host = interface.base.removeprefix("http://")
        self._token = interface.token
        self.socket = socket.create_connection(("127.0.0.1", int(self._host.rpartition(":")[2])), timeout=5)
        _opened.append(self.socket)

    def send(self, line: str, *headers: str, body: str = "") -> None:
        head = [line, f"Host: {self._host}", f"Authorization: Bearer {self._token}", *headers]
        self.socket.sendall(("\r\n".join(head) + "\r\n\r\n" + body).encode())

    def take(self, until: bytes) -> bytes:
        got = b""
        while until not in got:
            more = self.socket.recv(65536)
            assert more, got
            got += more
        return got

    def rest(self) -> bytes:
        """Return all bytes until the server closes the connection. Fails if the server resets it."""
        got = b""
        while more := self.socket.recv(65536):
            got += more
        return got


OPEN_SESSION = (
    "POST /mcp HTTP/1.1",
    "Content-Type: application/json",
    "Accept: application/json, text/event-stream",
)


def open_stream(interface: Interface) -> Client:
    """Open a stream of a 2025 revision, on which the server can send notifications."""
    opening = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "chaos", "version": "1"},
        },
    }
    body = json.dumps(opening)
    client = Client(interface)
    client.send(*OPEN_SESSION, f"Content-Length: {len(body)}", body=body)
    head = client.take(b"\r\n\r\n").decode().lower()
    session = head.partition("mcp-session-id: ")[2].partition("\r\n")[0]
    assert session, head
    stream = Client(interface)
    stream.send(
        "GET /mcp HTTP/1.1",
        "Accept: text/event-stream",
        f"Mcp-Session-Id: {session}",
        "MCP-Protocol-Version: 2025-06-18",
    )
    stream.take(b"\r\n\r\n")
    return stream


async def test_open_connections_do_not_delay_the_stop(tmp_path: Path) -> None:
    env = settings(tmp_path, 60)
    async with one_interface("rest", env) as interface:
        idle, kept, half_a_head, half_a_body = (Client(interface) for _ in range(4))
        kept.send("GET /tools HTTP/1.1")
        kept.take(b"\r\n\r\n")
        half_a_head.socket.sendall(b"GET /runs HTTP/1.1\r\nHost:")
        half_a_body.send("POST /tools/nmap/execute HTTP/1.1", "Content-Length: 1000", body='{"target": "127')
        stream = open_stream(interface)
        events = Client(interface)
        events.send("GET /events HTTP/1.1", "Accept: text/event-stream")
        events.take(b"\r\n\r\n")
        await asyncio.sleep(0.3)
        asked = interface.signal(signal.SIGTERM)
        assert await interface.exit_code(SLACK_SEC) == 0
        assert time.monotonic() - asked < SLACK_SEC
        assert b"shutting_down" in half_a_body.rest()
        # The event stream ends normally: its last chunk is empty (RFC 9112, section 7.1).
        assert stream.rest().endswith(b"0\r\n\r\n")
        ended = events.rest()
        assert b"server.stopping" in ended
        assert ended.endswith(b"0\r\n\r\n")
        for client in (idle, half_a_head):
            assert client.rest() == b""
    assert "Traceback" not in interface.log.read_text()


async def test_a_client_that_never_reads_delays_the_stop_at_most_for_the_grace_period(tmp_path: Path) -> None:
    env = settings(tmp_path, 2)
    async with one_interface("rest", env) as interface:
        slow = [Client(interface) for _ in range(3)]
        for client in slow:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for _ in range(200):
                client.send("GET /openapi.json HTTP/1.1")
        await asyncio.sleep(0.5)
        asked = interface.signal(signal.SIGTERM)
        assert await interface.exit_code(2 + SLACK_SEC) == 0
        assert time.monotonic() - asked < 2 + SLACK_SEC
    assert "Traceback" not in interface.log.read_text()


async def test_probes_and_metrics_report_the_stop(tmp_path: Path) -> None:
    env, target = settings(tmp_path, 30), own_network().partition("/")[0]
    async with one_interface("rest", env) as interface:
        rest: Any = interface.rest  # type: ignore[attr-defined]  # only HTTP interfaces have it

        async def seen() -> tuple[int, int, bool]:
            alive, ready = [(await rest.get(path)).status_code for path in ("/livez", "/readyz")]
            return alive, ready, "\nmcp_server_ready 1.0" in (await rest.get("/metrics")).text

        end = time.monotonic() + 10
        while (before := await seen()) != (200, 200, True):
            assert time.monotonic() < end, before
            await asyncio.sleep(0.1)
        call = asyncio.create_task(interface.call("nmap", quick_scan(target)))
        await started(target)
        interface.signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        assert await seen() == (200, 503, False)
        assert (await call).error is None
        assert await interface.exit_code(SLACK_SEC) == 0


async def test_only_probes_are_exempt_from_the_checks_of_requests(tmp_path: Path) -> None:
    async with one_interface("rest", settings(tmp_path, 1)) as interface:
        for path, answered in (("/livez", True), ("/readyz", True), ("/health", False), ("/metrics", False)):
            client = Client(interface)
            client.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: probe.example\r\nConnection: close\r\n\r\n".encode())
            status = client.rest().split(b" ")[1]
            assert (status == b"403") is not answered, (path, status)
        client = Client(interface)
        client.socket.sendall(
            b"POST /livez HTTP/1.1\r\nHost: probe.example\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        assert client.rest().split(b" ")[1] == b"403"
