"""The phases of a server, and the order of its shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from mcp_server.errors import NetworkToolsError
from mcp_server.limits.calls import Calls
from mcp_server.server import lifecycle
from mcp_server.server.lifecycle import Lifecycle, Phase


class Server:
    """A lifecycle, the phases that it reported, and calls that run until a test ends them."""

    def __init__(self) -> None:
        self.calls = Calls()
        self.reported: list[tuple[Phase, bool]] = []
        self.lifecycle = Lifecycle(self.calls, lambda phase: self.reported.append((phase, self.calls.closed)))
        self.work = asyncio.Event()

    def call(self) -> asyncio.Task[None]:
        async def carry_out() -> None:
            with self.calls.under_way():
                await self.work.wait()

        return asyncio.create_task(carry_out())


@pytest.fixture
async def server() -> Server:
    return Server()


async def test_the_phases_follow_each_other_and_the_end_waits_for_calls(server: Server) -> None:
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
    # Calls are refused before the phase is reported.
    assert server.reported == [(Phase.READY, False), (Phase.STOPPING, True), (Phase.STOPPED, True)]


async def test_after_the_grace_period_calls_are_cancelled(server: Server) -> None:
    server.lifecycle.began()
    call = server.call()
    await asyncio.sleep(0)
    server.lifecycle.stop(0.05)
    with pytest.raises(NetworkToolsError, match="stopped before the call was complete"):
        await call
    await asyncio.wait_for(server.lifecycle.ended.wait(), 1)


async def test_a_second_request_ends_the_grace_period_unless_it_follows_at_once(
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


async def test_a_server_that_is_stopped_while_it_starts_is_never_ready(server: Server) -> None:
    server.lifecycle.stop(30)
    await asyncio.wait_for(server.lifecycle.ended.wait(), 1)
    server.lifecycle.began()
    assert server.lifecycle.phase is Phase.STOPPING


@pytest.mark.parametrize("end", [True, False])
async def test_a_stop_cancels_the_work_of_the_start(server: Server, end: bool) -> None:
    done: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(30 if end else 0.01)
            done.append("completed")
        except asyncio.CancelledError:
            done.append("cancelled")
            raise

    if end:
        asyncio.get_running_loop().call_later(0.02, server.lifecycle.stop, 0)
    await asyncio.wait_for(server.lifecycle.unless_ended(work()), 2)
    assert done == ["cancelled" if end else "completed"]


async def test_an_error_of_the_work_of_the_start_is_raised(server: Server) -> None:
    async def work() -> None:
        raise NetworkToolsError("no")

    with pytest.raises(NetworkToolsError, match="no"):
        await server.lifecycle.unless_ended(work())


async def test_the_end_does_not_wait_for_calls_that_ignore_cancellation(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
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
