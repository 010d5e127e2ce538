"""Executors: the start and the end of a runner, and errors if it cannot be used."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from mcp_server.errors import BusyError, PlatformError
from mcp_server.sandbox.executor import Executor, RunConnection
from mcp_server.sandbox.process import ProcessLimits, run_process


async def run(executor: Executor) -> int:
    return (await run_process(("/bin/true",), ProcessLimits(10), lambda _: None, executor=executor)).returncode


async def test_a_runner_is_started_once_and_ends_with_its_executor() -> None:
    executor = Executor.here()
    assert executor.runner_pid == -1
    assert executor.alive
    executor.start()
    first = executor.runner_pid
    assert await run(executor) == 0
    assert executor.runner_pid == first
    executor.close()
    executor.close()
    assert not Path(f"/proc/{first}").exists()
    assert not executor.alive
    with pytest.raises(PlatformError) as caught:
        await run(executor)
    assert caught.value.code == "guard_unavailable"


async def test_an_adopted_runner_that_has_ended_is_not_replaced() -> None:
    ours, runner_end = socket.socketpair()
    executor = Executor.adopt("elsewhere", ours.detach())
    assert executor.alive
    runner_end.close()
    assert not executor.alive
    with pytest.raises(PlatformError, match="elsewhere") as caught:
        await run(executor)
    assert caught.value.code == "guard_unavailable"
    executor.close()


async def test_an_error_names_an_interpreter_that_cannot_be_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(PlatformError, match="/nowhere/python") as caught:
        await run(Executor.here())
    assert "readable" in caught.value.hint


async def test_a_run_is_refused_as_busy_if_the_runner_does_not_read() -> None:
    """The control socket has no reader here, so its buffer is full at some point."""
    ours, runner_end = socket.socketpair()
    executor = Executor.adopt("stuck", ours.detach())
    connections: list[RunConnection] = []
    before = len(list(Path("/proc/self/fd").iterdir()))

    def fill() -> None:
        for _ in range(2000):
            connections.append(executor.open("/bin/true"))  # noqa: PERF401 - those made before the error must be closed

    with pytest.raises(BusyError, match="/bin/true was not started"):
        fill()
    for connection in connections:
        connection.close()
    executor.close()
    runner_end.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 2


async def test_a_forked_process_has_its_own_runner() -> None:
    executor = Executor.here()
    executor.start()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            before = executor.runner_pid
            executor.start()
            os.write(write, b"own" if executor.runner_pid != before else b"shared")
            executor.close()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        assert answer.read() == b"own"
    os.waitpid(pid, 0)
    assert await run(executor) == 0
    executor.close()
