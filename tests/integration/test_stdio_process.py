"""The stdio interface as a child process: descriptors, signals, memory, and the end of input."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.clock import SOON, within_a_second
from tests.support.mcp_wire import EVERYTHING, ROOT, ServedProcess, call, initialize

STDIO = (*EVERYTHING, "stdio")


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def child_of(pid_file: Path) -> int:
    async with asyncio.timeout(20):
        while not (pid_file.exists() and pid_file.read_text()):
            await asyncio.sleep(0.01)
    return int(pid_file.read_text())


async def test_end_of_input_ends_the_process_and_its_child_within_a_second(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    async def attempt() -> float:
        pid_file.unlink(missing_ok=True)
        async with ServedProcess.open(*STDIO, stderr=subprocess.PIPE) as client:
            await client.send(call(1, "run_child", pid_file=str(pid_file)))
            pid = await child_of(pid_file)
            started = time.monotonic()
            client.close_input()
            assert await asyncio.wait_for(client.process.wait(), 2 * SOON) == 0
            took = time.monotonic() - started
            assert not alive(pid)
            assert client.process.stderr is not None
            assert await client.process.stderr.read() == b""
            return took

    await within_a_second(attempt)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_while_it_waits_for_input(number: signal.Signals) -> None:
    async with ServedProcess.open(*STDIO, stderr=subprocess.DEVNULL) as client:
        await client.send(call(1, "test_simple_text"))
        await client.receive()
        client.process.send_signal(number)
        await asyncio.wait_for(client.process.wait(), 1)


async def test_a_closed_output_ends_the_process_without_an_error(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    async with ServedProcess.open(*STDIO, stderr=subprocess.PIPE) as client:
        await client.send(call(1, "run_child", pid_file=str(pid_file)))
        pid = await child_of(pid_file)
        client.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # asyncio has no public way
        await client.send(call(2, "test_simple_text"))
        assert await asyncio.wait_for(client.process.wait(), 2 * SOON) == 0
        assert not alive(pid)
        assert client.process.stderr is not None
        assert b"Traceback" not in await client.process.stderr.read()


async def test_stray_output_and_children_cannot_reach_the_messages() -> None:
    async with ServedProcess.open(*STDIO, stderr=subprocess.PIPE) as client:
        await client.send(call(1, "stray_output"), call(2, "wait", seconds=0.3))
        assert set(await client.answers(2)) == {1, 2}
        client.close_input()
        assert client.process.stderr is not None
        stray = await client.process.stderr.read()
        assert await client.reader.read() == b""
    assert b"stray line of the server" in stray
    assert b"stray line of a child" in stray
    assert b"\n0\n" in b"\n" + stray, "the child read nothing of standard input"


async def test_a_child_does_not_inherit_the_descriptors() -> None:
    async with ServedProcess.open(*STDIO) as client:
        wire = {Path(f"/proc/{client.process.pid}/fd/{fd}").readlink().name for fd in (0, 1)}
        await client.send(call(1, "inherited_descriptors"))
        answer = await client.receive()
    listing = answer["result"]["content"][0]["text"]
    assert "/dev/null" in listing
    assert not [name for name in wire if name in listing]


async def test_a_line_of_fifty_megabytes_is_refused_in_flat_memory() -> None:
    async with ServedProcess.open(*STDIO) as client:
        await client.send(call(1, "test_simple_text"))
        await client.receive()
        before = peak_kib(client.process.pid)
        block = b"x" * (1024 * 1024)
        for _ in range(50):
            await client.send(block)
        await client.send(b"\n", call(2, "test_simple_text"))
        refusal, answer = await client.receive(), await client.receive()
        after = peak_kib(client.process.pid)
    assert refusal["error"]["data"]["code"] == "body_too_large"
    assert answer["id"] == 2
    assert after - before < 12 * 1024, "at most one line of 4 MiB is held"


def peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


async def test_a_line_of_four_mebibytes_is_read() -> None:
    message = json.dumps(call(1, "test_simple_text", filler="x" * 4_190_000)).encode()
    assert 4_190_000 < len(message) <= 4 * 1024 * 1024
    async with ServedProcess.open(*STDIO) as client:
        await client.send(message + b"\n")
        assert "result" in await client.receive()


def test_standard_input_may_be_a_file(tmp_path: Path) -> None:
    script = tmp_path / "requests"
    script.write_text(f"{json.dumps(initialize(1))}\n{json.dumps({'jsonrpc': '2.0', 'id': 2, 'method': 'ping'})}\n")
    output = tmp_path / "answers"
    with script.open("rb") as stdin, output.open("wb") as stdout:
        subprocess.run(STDIO, cwd=ROOT, stdin=stdin, stdout=stdout, timeout=10, check=True)
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == [1, 2]


def test_standard_input_may_be_empty() -> None:
    run = subprocess.run(STDIO, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=True)
    assert (run.stdout, run.stderr) == (b"", b"")
