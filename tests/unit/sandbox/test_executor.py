"""The server's end of a runner."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from mcp_server.errors import BusyError, PlatformError
from mcp_server.sandbox.executor import Channel, Executor
from mcp_server.sandbox.process import ProcessLimits, run_process


async def run(at: Executor) -> int:
    return (await run_process(("/bin/true",), ProcessLimits(10), lambda _: None, executor=at)).returncode


async def test_a_runner_is_started_once_and_ends_with_its_place() -> None:
    where = Executor.here()
    assert where.runner_pid == -1
    assert where.alive
    where.start()
    first = where.runner_pid
    assert await run(where) == 0
    assert where.runner_pid == first
    where.close()
    where.close()
    assert not Path(f"/proc/{first}").exists()
    assert not where.alive
    with pytest.raises(PlatformError) as caught:
        await run(where)
    assert caught.value.code == "guard_unavailable"


async def test_a_runner_that_was_adopted_and_is_gone_is_not_replaced() -> None:
    ours, theirs = socket.socketpair()
    where = Executor.at("elsewhere", ours.detach())
    assert where.alive
    theirs.close()
    assert not where.alive
    with pytest.raises(PlatformError, match="elsewhere") as caught:
        await run(where)
    assert caught.value.code == "guard_unavailable"
    where.close()


async def test_an_interpreter_that_cannot_be_executed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(PlatformError, match="/nowhere/python") as caught:
        await run(Executor.here())
    assert "readable" in caught.value.hint


async def test_a_runner_that_does_not_keep_up_is_busy() -> None:
    """Nobody reads the other end: its buffer is full at some point, and nothing waits for it."""
    ours, theirs = socket.socketpair()
    where = Executor.at("stuck", ours.detach())
    channels: list[Channel] = []
    before = len(list(Path("/proc/self/fd").iterdir()))

    def fill() -> None:
        for _ in range(2000):
            channels.append(where.open("/bin/true"))  # noqa: PERF401 - what was made must be known when one fails

    with pytest.raises(BusyError, match="/bin/true was not started"):
        fill()
    for channel in channels:
        channel.close()
    where.close()
    theirs.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 2


async def test_a_forked_process_has_a_runner_of_its_own() -> None:
    where = Executor.here()
    where.start()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            before = where.runner_pid
            where.start()
            os.write(write, b"own" if where.runner_pid != before else b"shared")
            where.close()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        assert answer.read() == b"own"
    os.waitpid(pid, 0)
    assert await run(where) == 0
    where.close()
