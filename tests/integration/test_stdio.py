"""The stdio interface in the process of the test: protocol revisions, malformed lines, and the end of the input."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mcp_server.api.mcp.stdio import serve_stdio
from mcp_server.errors import PlatformError
from tests.contract.everything import everything_server
from tests.support.clock import SOON
from tests.support.mcp_wire import INITIALIZED, ServedPipes, call, initialize, modern, request

MAX_LINE = 64 * 1024


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["result"]["content"][0]["text"]
    return text


async def test_a_client_of_revision_2026_07_28_needs_no_handshake() -> None:
    async with ServedPipes.open(everything_server()) as client:
        await client.send(call(1, "test_simple_text"))
        answer = await client.receive()
    assert text_of(answer) == "This is a simple text response for testing."
    assert answer["result"]["resultType"] == "complete"


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_a_client_of_an_older_revision_initializes(version: str) -> None:
    async with ServedPipes.open(everything_server()) as client:
        await client.send(initialize("a", version))
        assert (await client.receive())["result"]["protocolVersion"] == version
        await client.send(INITIALIZED, request("b", "tools/call", name="test_simple_text", arguments={}))
        assert text_of(await client.receive()) == "This is a simple text response for testing."


@pytest.mark.parametrize("probes", [1, 2, 3])
async def test_a_client_can_discover_and_then_initialize(probes: int) -> None:
    async with ServedPipes.open(everything_server()) as client:
        for number in range(probes):
            await client.send(modern(number, "server/discover"))
            assert (await client.receive())["result"]["supportedVersions"] == ["2026-07-28"]
        await client.send(initialize(10))
        assert (await client.receive())["result"]["protocolVersion"] == "2025-06-18"
        await client.send(INITIALIZED, request(11, "tools/call", name="test_simple_text", arguments={}))
        assert text_of(await client.receive()) == "This is a simple text response for testing."


async def test_a_client_can_discover_and_then_call_without_initializing() -> None:
    async with ServedPipes.open(everything_server()) as client:
        await client.send(modern(1, "server/discover"), call(2, "test_simple_text"), modern(3, "server/discover"))
        answers = await client.answers(3)
    assert text_of(answers[2]) == "This is a simple text response for testing."
    assert answers[1]["result"]["supportedVersions"] == answers[3]["result"]["supportedVersions"]


async def test_a_discovery_without_its_metadata_is_refused_and_initialize_still_works() -> None:
    async with ServedPipes.open(everything_server()) as client:
        await client.send(request(1, "server/discover"))
        assert (await client.receive())["error"]["code"] == -32601
        await client.send(initialize(2))
        assert (await client.receive())["result"]["protocolVersion"] == "2025-06-18"


async def test_the_protocol_revision_cannot_change_after_the_first_call() -> None:
    async with ServedPipes.open(everything_server()) as client:
        await client.send(call(1, "test_simple_text"))
        await client.receive()
        await client.send(initialize(2))
        assert (await client.receive())["error"]["code"] == -32022


async def test_all_requests_can_be_sent_at_once() -> None:
    async with ServedPipes.open(everything_server()) as client:
        await client.send(
            modern(1, "server/discover"), initialize(2), INITIALIZED, *(request(n, "tools/list") for n in range(3, 40))
        )
        answers = await client.answers(39)
    assert all("result" in answer for answer in answers.values())


async def test_a_slow_call_does_not_delay_a_quick_one() -> None:
    async with ServedPipes.open(everything_server(), drain=0) as client:
        await client.send(call("slow", "wait", seconds=30), call("quick", "test_simple_text"))
        assert (await client.receive())["id"] == "quick"


async def test_a_cancelled_call_ends_its_child(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    async with ServedPipes.open(everything_server()) as client:
        await client.send(call(1, "run_child", pid_file=str(pid_file)))
        pid = await child_of(pid_file)
        await client.send(
            {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}},
            call(2, "test_simple_text"),
        )
        assert (await client.receive())["id"] == 2, "a cancelled request was answered"
        await gone(pid)


MALFORMED = [
    pytest.param(b"nonsense", -32700, None, id="not JSON"),
    pytest.param(b"{", -32700, None, id="cut short"),
    pytest.param(b'{"jsonrpc":"2.0","id":1,"method":"\xff"}', -32700, None, id="not UTF-8"),
    pytest.param(b"\xef\xbb\xbf{}", -32700, None, id="byte order mark"),
    pytest.param(b"[" * 10_000, -32700, None, id="deep nesting"),
    pytest.param(b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}', -32700, None, id="half a surrogate pair"),
    pytest.param(b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600, None, id="batch"),
    pytest.param(b"[]", -32600, None, id="empty batch"),
    pytest.param(b"7", -32600, None, id="number"),
    pytest.param(b'"tools/list"', -32600, None, id="string"),
    pytest.param(b"null", -32600, None, id="null"),
    pytest.param(b"{}", -32600, None, id="empty object"),
    pytest.param(b'{"jsonrpc":"1.0","id":5,"method":"ping"}', -32600, 5, id="JSON-RPC 1.0"),
    pytest.param(b'{"jsonrpc":"2.0","id":"six","method":7}', -32600, "six", id="method is a number"),
    pytest.param(b'{"jsonrpc":"2.0","id":7,"method":"ping","params":[1]}', -32600, 7, id="params by position"),
    pytest.param(b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600, None, id="id is null"),
    pytest.param(b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600, None, id="id is a fraction"),
    pytest.param(b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600, None, id="id is a boolean"),
    pytest.param(b'{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600, None, id="id is an object"),
    pytest.param(b"x" * (MAX_LINE + 1), -32600, None, id="too long by one"),
    pytest.param(b"x" * (MAX_LINE * 9), -32600, None, id="too long by far"),
]


@pytest.mark.parametrize(("line", "code", "request_id"), MALFORMED)
async def test_a_malformed_line_is_refused_and_the_next_call_works(
    line: bytes, code: int, request_id: int | str | None
) -> None:
    async with ServedPipes.open(everything_server(), max_line=MAX_LINE) as client:
        await client.send(line + b"\n")
        refusal = await client.receive()
        assert "id" in refusal
        assert refusal["id"] == request_id
        assert refusal["error"]["code"] == code
        assert refusal["error"]["data"].keys() == {"code", "message", "hint", "retryable"}
        await client.send(call(1, "test_simple_text"))
        assert (await client.receive())["id"] == 1


async def test_the_error_for_a_long_line_names_the_limit() -> None:
    async with ServedPipes.open(everything_server(), max_line=100) as client:
        await client.send(b"x" * 101 + b"\n")
        error = (await client.receive())["error"]
    assert error["data"]["code"] == "body_too_large"
    assert "100 bytes" in error["message"]


async def test_a_line_of_exactly_the_limit_is_read() -> None:
    message = call(1, "test_simple_text")
    padding = MAX_LINE - len(json.dumps(message))
    line = json.dumps(message).encode() + b" " * padding
    assert len(line) == MAX_LINE
    async with ServedPipes.open(everything_server(), max_line=MAX_LINE) as client:
        await client.send(line + b"\n")
        assert "result" in await client.receive()


async def test_blank_lines_and_carriage_returns_are_ignored() -> None:
    async with ServedPipes.open(everything_server()) as client:
        await client.send(b"\n\r\n  \n", json.dumps(call(1, "test_simple_text")).encode() + b"\r\n")
        assert (await client.receive())["id"] == 1


async def test_a_line_can_arrive_byte_by_byte() -> None:
    async with ServedPipes.open(everything_server()) as client:
        for byte in json.dumps(call(1, "test_simple_text")).encode() + b"\n":
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.receive())["id"] == 1


async def test_a_response_larger_than_the_pipe_is_complete() -> None:
    async with ServedPipes.open(everything_server()) as client:
        await client.send(call(1, "long_text", size=3_000_000))
        assert len(text_of(await client.receive())) == 3_000_000


async def test_the_end_of_input_cancels_running_calls(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    async with ServedPipes.open(everything_server()) as client:
        await client.send(call(1, "run_child", pid_file=str(pid_file)))
        pid = await child_of(pid_file)
        client.close_input()
        await client.ended(within=SOON)
    assert not alive(pid)


async def test_a_quick_response_is_sent_after_the_end_of_input() -> None:
    async with ServedPipes.open(everything_server()) as client:
        await client.send(call(1, "wait", seconds=0.05))
        client.close_input()
        assert text_of(await client.receive()) == "waited"
        await client.ended(within=SOON)


async def test_a_last_line_without_a_newline_is_read() -> None:
    async with ServedPipes.open(everything_server()) as client:
        await client.send(json.dumps(call(1, "test_simple_text")).encode())
        client.close_input()
        assert (await client.receive())["id"] == 1


async def test_the_end_of_input_is_noticed_if_the_client_reads_nothing(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    async with ServedPipes.open(everything_server()) as client:
        client.read_transport.pause_reading()
        await client.send(call(1, "run_child", pid_file=str(pid_file)))
        pid = await child_of(pid_file)
        await client.send(*(call(n, "long_text", size=100_000) for n in range(2, 400)), *[b"nonsense\n"] * 2000)
        client.close_input()
        await client.ended(within=SOON)
    assert not alive(pid)


async def test_a_client_that_closes_the_output_ends_the_service(caplog: pytest.LogCaptureFixture) -> None:
    async with ServedPipes.open(everything_server()) as client:
        await client.send(call(1, "wait", seconds=30))
        client.read_transport.close()
        await client.send(*(call(n, "test_simple_text") for n in range(2, 30)))
        await client.ended(within=5)
    assert not [record for record in caplog.records if record.exc_info or "Traceback" in record.getMessage()], (
        "no traceback for a client that left"
    )


async def test_serving_can_be_cancelled_while_nothing_arrives() -> None:
    async with ServedPipes.open(everything_server()) as client:
        await client.send(call(1, "test_simple_text"))
        await client.receive()
        client.serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.ended(within=SOON)


async def test_a_closed_descriptor_is_a_platform_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        with pytest.raises(PlatformError, match=f"Descriptor {read_end} is not open"):
            await serve_stdio(everything_server(), stdin_fd=read_end, stdout_fd=write_end)
    finally:
        os.close(write_end)


async def child_of(pid_file: Path) -> int:
    async with asyncio.timeout(10):
        while not (pid_file.exists() and pid_file.read_text()):
            await asyncio.sleep(0.01)
    return int(pid_file.read_text())


async def gone(pid: int) -> None:
    async with asyncio.timeout(5):
        while alive(pid):
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("request_id", [{}, [], None, 1.5, True, "9" * 1000, {"a": [1]}])
async def test_an_invalid_cancellation_is_ignored(request_id: object) -> None:
    async with ServedPipes.open(everything_server()) as client:
        await client.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}})
        await client.send({"jsonrpc": "2.0", "method": "notifications/cancelled"})
        await client.send(call(1, "test_simple_text"))
        assert (await client.receive())["id"] == 1
