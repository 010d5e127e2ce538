"""The phases of a server, and the order of its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from mcp_server.errors import NetworkToolsError
from mcp_server.limits.calls import Calls
from mcp_server.server import lifecycle
from mcp_server.server.lifecycle import Lifecycle, Phase


class Server:
    """A lifecycle with calls that go on until they are told to end."""

    def __init__(self) -> None:
        self.calls = Calls()
        self.told: list[tuple[Phase, bool]] = []
        self.lifecycle = Lifecycle(self.calls, lambda phase: self.told.append((phase, self.calls.closed)))
        self.work = asyncio.Event()

    def call(self) -> asyncio.Task[None]:
        async def carry_out() -> None:
            with self.calls.under_way():
                await self.work.wait()

        return asyncio.create_task(carry_out())


@pytest.fixture
async def server() -> Server:
    return Server()


async def test_from_the_start_to_the_end(server: Server) -> None:
    assert server.lifecycle.phase is Phase.STARTING
    server.lifecycle.began()
    call = server.call()
    await asyncio.sleep(0)
    server.lifecycle.stop(30)
    await asyncio.sleep(0.05)
    assert not server.lifecycle.ended.is_set()
    server.work.set()
    await asyncio.wait_for(server.lifecycle.ended.wait(), 1)
    await call
    server.lifecycle.finished()
    server.lifecycle.finished()
    # No new call has been let in by the time that anybody hears of the stop.
    assert server.told == [(Phase.READY, False), (Phase.STOPPING, True), (Phase.STOPPED, True)]


async def test_after_the_grace_period_calls_are_cut_short(server: Server) -> None:
    server.lifecycle.began()
    call = server.call()
    await asyncio.sleep(0)
    server.lifecycle.stop(0.05)
    with pytest.raises(NetworkToolsError, match="stopped before the call was complete"):
        await call
    await asyncio.wait_for(server.lifecycle.ended.wait(), 1)


async def test_a_second_request_ends_the_grace_period_but_its_echo_does_not(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.lifecycle.began()
    call = server.call()
    await asyncio.sleep(0)
    server.lifecycle.stop(30)
    server.lifecycle.stop(30)
    await asyncio.sleep(0.05)
    assert not server.lifecycle.hurried.is_set()
    assert not call.done()
    assert server.lifecycle.left > 20
    monkeypatch.setattr(lifecycle, "_SAME_SEC", 0.01)
    server.lifecycle.stop(30)
    assert server.lifecycle.left < 1
    with pytest.raises(NetworkToolsError):
        await call
    await asyncio.wait_for(server.lifecycle.ended.wait(), 1)


async def test_a_start_that_is_told_to_stop_is_never_ready(server: Server) -> None:
    server.lifecycle.stop(30)
    await asyncio.wait_for(server.lifecycle.ended.wait(), 1)
    server.lifecycle.began()
    assert server.lifecycle.phase is Phase.STOPPING


@pytest.mark.parametrize("end", [True, False])
async def test_work_of_the_start_is_left_off_at_the_end(server: Server, end: bool) -> None:
    done: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(30 if end else 0.01)
            done.append("whole")
        except asyncio.CancelledError:
            done.append("left off")
            raise

    if end:
        asyncio.get_running_loop().call_later(0.02, server.lifecycle.stop, 0)
    await asyncio.wait_for(server.lifecycle.unless_ended(work()), 2)
    assert done == ["left off" if end else "whole"]


async def test_what_fails_at_the_start_is_raised(server: Server) -> None:
    async def work() -> None:
        raise NetworkToolsError("no")

    with pytest.raises(NetworkToolsError, match="no"):
        await server.lifecycle.unless_ended(work())


async def test_calls_that_do_not_end_hold_nothing_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "CANCEL_SEC", 0.05)
    release = asyncio.Event()

    async def stubborn(until: Callable[[], bool]) -> None:
        with server.calls.under_way():
            while not until():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

    task = asyncio.create_task(stubborn(release.is_set))
    await asyncio.sleep(0)
    server.lifecycle.stop(0)
    await asyncio.wait_for(server.lifecycle.ended.wait(), 1)
    release.set()
    await task
