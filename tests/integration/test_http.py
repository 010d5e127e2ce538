"""The HTTP interfaces on a real socket: protocol revisions, host names, tokens, body sizes, and the stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from mcp_server.api.http.connections import listen
from mcp_server.api.http.uvicorn_server import serve_http
from mcp_server.errors import ConfigError
from tests.support.clock import SOON
from tests.support.mcp_wire import (
    EVERYTHING,
    ROOT,
    HttpAnswer,
    call,
    everything_over_http,
    exchange,
    initialize,
    modern,
    post,
    read_answer,
    request,
)

TOKEN = "correct-horse-battery-staple-0123456789"
LIMIT = 4 * 1024 * 1024


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with everything_over_http() as number:
        yield number


@pytest.fixture(scope="module")
def guarded() -> Iterator[int]:
    with everything_over_http("--token", TOKEN) as number:
        yield number


def events(answer: HttpAnswer) -> list[Any]:
    """The messages of a stream of server-sent events, chunked or not."""
    lines = answer.body.decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


async def test_a_modern_call_is_one_exchange(port: int) -> None:
    answer = await exchange(port, post(port, call(1, "test_simple_text")))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert "mcp-session-id" not in answer.headers
    assert answer.json()["result"]["content"][0]["text"] == "This is a simple text response for testing."


async def test_progress_turns_a_modern_answer_into_a_stream(port: int) -> None:
    message = call(1, "test_tool_with_progress")
    message["params"]["_meta"] = {**message["params"]["_meta"], "progressToken": "p"}
    answer = await exchange(port, post(port, message))
    assert answer.headers["content-type"] == "text/event-stream"
    *progress, last = events(answer)
    assert [event["params"]["progress"] for event in progress] == [0, 50, 100]
    assert last["id"] == 1


@pytest.mark.parametrize("version", ["2025-03-26", "2025-06-18", "2025-11-25"])
async def test_an_older_client_gets_a_session(port: int, version: str) -> None:
    opened = await exchange(port, post(port, initialize(1, version)))
    assert events(opened)[0]["result"]["protocolVersion"] == version
    session = {"Mcp-Session-Id": opened.headers["mcp-session-id"], "MCP-Protocol-Version": version}
    called = await exchange(
        port, post(port, request(2, "tools/call", name="test_simple_text", arguments={}), headers=session)
    )
    assert events(called)[0]["id"] == 2
    ended = await exchange(port, post(port, b"", headers=session).replace(b"POST", b"DELETE", 1))
    assert ended.status == 200
    after = await exchange(port, post(port, request(3, "tools/list"), headers=session))
    assert after.status == 404


async def test_an_unknown_session_is_a_404(port: int) -> None:
    answer = await exchange(port, post(port, request(1, "tools/list"), headers={"Mcp-Session-Id": "0" * 32}))
    assert answer.status == 404


async def test_a_trailing_slash_makes_no_difference(port: int) -> None:
    assert (await exchange(port, post(port, modern(1, "server/discover"), path="/mcp/"))).status == 200


@pytest.mark.parametrize("path", ["/", "/mcpx", "/mcp/x", "/MCP", "//mcp"])
async def test_other_paths_are_not_mcp(port: int, path: str) -> None:
    assert (await exchange(port, post(port, modern(1, "server/discover"), path=path))).status == 404


GOOD_HOSTS = ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}", "LOCALHOST:{port}"]
BAD_HOSTS = [
    "127.0.0.1",
    "localhost",
    "localhost:{other}",
    "localhost.:{port}",
    "127.0.0.1.:{port}",
    "localhost:{port}@evil.example",
    "localhost:80@evil",
    "localhost:{port}.evil.example",
    "evil.example",
    "evil.example:{port}",
    "localhost:{port}, evil.example",
    "127.1:{port}",
    "2130706433:{port}",
    "0.0.0.0:{port}",
    "::1:{port}",
    "[0:0:0:0:0:0:0:1]:{port}",
    "[::ffff:127.0.0.1]:{port}",
    "localhost:0{port}",
    "localhost:{port}\t x",
    "[::1",
    "*",
]


@pytest.mark.parametrize("path", ["/mcp", "/health"])
@pytest.mark.parametrize("host", BAD_HOSTS)
async def test_a_foreign_host_is_refused_everywhere(port: int, host: str, path: str) -> None:
    name = host.format(port=port, other=port + 1)
    answer = await exchange(port, post(port, call(1, "test_simple_text"), path=path, host=name))
    assert_problem(answer, 403, "forbidden_origin")


@pytest.mark.parametrize("host", GOOD_HOSTS)
async def test_the_names_of_loopback_are_accepted(port: int, host: str) -> None:
    answer = await exchange(port, post(port, call(1, "test_simple_text"), host=host.format(port=port)))
    assert answer.status == 200


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(b"", id="missing"),
        pytest.param(b"Host: localhost:%d\r\nHost: localhost:%d\r\n", id="twice"),
        pytest.param(b"Host: localhost:%d\r\nHost: evil.example\r\n", id="two different"),
        pytest.param(b"Host:\r\n", id="empty"),
    ],
)
async def test_a_request_needs_exactly_one_host_header(port: int, lines: bytes) -> None:
    head = lines.replace(b"%d", str(port).encode())
    answer = await exchange(port, b"GET /mcp HTTP/1.1\r\n" + head + b"Connection: close\r\n\r\n")
    assert answer.status in {400, 403}, "the HTTP parser refuses some of these before the guard sees them"
    old = await exchange(port, b"GET /mcp HTTP/1.0\r\n" + head + b"\r\n")
    assert old.status in {400, 403}


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:{port}", 200),
        ("http://localhost:{port}", 200),
        ("HTTP://LOCALHOST:{port}", 200),
        ("https://localhost:{port}", 403),
        ("http://localhost", 403),
        ("http://localhost:{other}", 403),
        ("http://localhost:{port}/", 403),
        ("http://localhost:{port}@evil.example", 403),
        ("http://localhost:{port}.evil.example", 403),
        ("http://evil.example", 403),
        ("https://evil.example:{port}", 403),
        ("ftp://localhost:{port}", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_only_pages_of_this_server_may_call_it(port: int, origin: str, status: int) -> None:
    headers = {"Origin": origin.format(port=port, other=port + 1)}
    answer = await exchange(port, post(port, call(1, "test_simple_text"), headers=headers))
    assert answer.status == status
    if status == 403:
        assert_problem(answer, 403, "forbidden_origin")


@pytest.mark.parametrize("path", ["/mcp", "/", "/health", "/tools", f"/mcp?access_token={TOKEN}", f"/?token={TOKEN}"])
@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {TOKEN}"])
async def test_every_path_needs_the_token(guarded: int, path: str, authorization: str | None) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    answer = await exchange(guarded, post(guarded, call(1, "test_simple_text"), path=path, headers=headers))
    assert_problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_request_with_the_token_reaches_mcp(guarded: int) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert (await exchange(guarded, post(guarded, call(1, "test_simple_text"), headers=headers))).status == 200


async def test_the_host_is_checked_before_the_token(guarded: int) -> None:
    assert (await exchange(guarded, post(guarded, call(1, "test_simple_text"), host="evil.example"))).status == 403


def padded(size: int) -> bytes:
    message = json.dumps(call(1, "test_simple_text")).encode()
    return message + b" " * (size - len(message))


MODERN_HEADERS = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "test_simple_text"}


@pytest.mark.parametrize(("size", "status"), [(LIMIT, 200), (LIMIT + 1, 413), (LIMIT * 3, 413)])
async def test_a_body_with_a_declared_length_is_limited(port: int, size: int, status: int) -> None:
    answer = await exchange(port, post(port, padded(size), headers=MODERN_HEADERS))
    assert answer.status == status
    if status == 413:
        assert_problem(answer, 413, "body_too_large")


async def test_a_declared_length_alone_is_enough_to_refuse(port: int) -> None:
    head = post(port, b"", headers={**MODERN_HEADERS, "Content-Length": str(10**12)})
    assert_problem(await exchange(port, head), 413, "body_too_large")


@pytest.mark.parametrize("path", ["/mcp", "/tools/nmap/execute"])
@pytest.mark.parametrize(("size", "too_large"), [(LIMIT, False), (LIMIT + 1, True), (LIMIT * 3, True)])
async def test_a_chunked_body_is_limited(port: int, size: int, path: str, *, too_large: bool) -> None:
    body = padded(size)
    pieces = [body[start : start + 100_000] for start in range(0, size, 100_000)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    head = post(port, b"", path=path, headers={**MODERN_HEADERS, "Transfer-Encoding": "chunked"})
    head = head.replace(b"Content-Length: 0\r\n", b"")
    answer = await exchange(port, head + chunks + b"0\r\n\r\n")
    if too_large:
        assert_problem(answer, 413, "body_too_large")
    else:
        assert answer.status == (200 if path == "/mcp" else 404)


async def test_an_unknown_caller_gets_its_answer_before_its_body_is_read(guarded: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded)
    writer.write(post(guarded, b"", headers={"Content-Length": "1000"}))
    answer = await asyncio.wait_for(read_answer(reader), 5)
    writer.close()
    assert answer.status == 401


async def test_a_refusal_reaches_a_caller_that_sends_first_and_reads_later(guarded: int) -> None:
    answer = await exchange(guarded, post(guarded, padded(LIMIT), headers=MODERN_HEADERS))
    assert_problem(answer, 401, "unauthorized")


async def test_a_refused_body_that_never_ends_is_not_read_for_ever(guarded: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded)
    writer.write(post(guarded, b"x", headers={"Content-Length": "1000"}))
    assert (await read_answer(reader)).status == 401
    assert await asyncio.wait_for(reader.read(), 10) == b"", "the server closes the connection"
    writer.close()


async def test_a_slow_sender_does_not_delay_others(port: int) -> None:
    slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
    for _, writer in slow:
        writer.write(post(port, call(1, "test_simple_text"))[:-10])
        await writer.drain()
    started = time.monotonic()
    for number in range(10):
        assert (await exchange(port, post(port, call(number, "test_simple_text")))).status == 200
    assert time.monotonic() - started < SOON
    for _, writer in slow:
        writer.close()


async def test_a_slow_call_does_not_delay_others(port: int) -> None:
    slow = asyncio.create_task(exchange(port, post(port, call(1, "wait", seconds=SOON))))
    await asyncio.sleep(0.05)
    started = time.monotonic()
    assert (await exchange(port, post(port, call(2, "test_simple_text")))).status == 200
    assert time.monotonic() - started < SOON - 0.5
    assert (await slow).status == 200


async def test_a_client_that_disconnects_cancels_its_call(port: int, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(post(port, call(1, "run_child", pid_file=str(pid_file))))
    async with asyncio.timeout(10):
        while not (pid_file.exists() and pid_file.read_text()):
            await asyncio.sleep(0.01)
        writer.close()
        while Path(f"/proc/{pid_file.read_text()}").exists():
            await asyncio.sleep(0.01)


async def test_the_headers_do_not_name_the_server_software(port: int) -> None:
    answer = await exchange(port, post(port, call(1, "test_simple_text")))
    assert "server" not in answer.headers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_its_calls(number: signal.Signals, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with subprocess.Popen([*EVERYTHING, "http"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(post(port, call(1, "run_child", pid_file=str(pid_file))))
            deadline = time.monotonic() + 10
            while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(number)
            assert process.wait(timeout=5) == 0, "a clean end, so that the owner can close what it holds"
    assert not Path(f"/proc/{pid_file.read_text()}").exists()


def test_a_port_in_use_is_named() -> None:
    first = listen("127.0.0.1", 0)
    try:
        with pytest.raises(
            ConfigError, match=f"server.port {first.port} cannot be bound: the port is in use"
        ) as caught:
            listen("127.0.0.1", first.port)
        assert "--port" in caught.value.hint
    finally:
        first.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-name.invalid", "999.1.1.1", "fe80::1"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot be bound"):
        listen(host, 0)


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:"), ("::1", "http://[::1]:")]
)
def test_ready_gets_the_real_address(host: str, url: str) -> None:
    listener = listen(host, 0)
    try:
        assert listener.url == f"{url}{listener.port}"
        assert listener.port > 0
    finally:
        listener.close()


def assert_problem(answer: HttpAnswer, status: int, code: str) -> None:
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem.keys() >= {"code", "message", "hint", "retryable"}
    assert problem["code"] == code


async def test_a_connection_that_sends_no_request_is_closed() -> None:
    async def answer(_: Request) -> PlainTextResponse:
        return PlainTextResponse("here")

    listener = listen("127.0.0.1", 0)
    serving = asyncio.create_task(
        serve_http(Starlette(routes=[Route("/", answer)]), listener, head_sec=0.5, shutdown_grace=1)
    )
    await asyncio.sleep(0.1)
    idle = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(150)]
    for _, writer in idle[::2]:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
    assert (await exchange(listener.port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")).status == 200
    async with asyncio.timeout(SOON):
        assert {await reader.read() for reader, _ in idle} == {b""}
    for _, writer in idle:
        writer.close()
    os.kill(os.getpid(), signal.SIGTERM)
    await serving


async def test_a_connection_may_be_idle_between_requests() -> None:
    async def answer(_: Request) -> PlainTextResponse:
        return PlainTextResponse("here")

    async def ask(*parts: bytes) -> bytes:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.1)
        async with asyncio.timeout(SOON):
            return await reader.readuntil(b"here") if parts[-1].endswith(b"\r\n\r\n") else await reader.read()

    listener = listen("127.0.0.1", 0)
    serving = asyncio.create_task(
        serve_http(Starlette(routes=[Route("/", answer)]), listener, head_sec=0.5, shutdown_grace=1)
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    assert b"200" in await ask(whole)
    await asyncio.sleep(1)
    assert b"200" in await ask(whole[:5], whole[5:]), "the connection was closed while it rested"
    assert await ask(whole[:-2]) == b"", "half a head holds the connection after a rest"
    writer.close()
    os.kill(os.getpid(), signal.SIGTERM)
    await serving
