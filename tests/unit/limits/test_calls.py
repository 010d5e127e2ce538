"""Active calls are counted, and ended when the server stops."""

from __future__ import annotations

import asyncio

import pytest

from mcp_server.errors import BusyError, NetworkToolsError
from mcp_server.limits.calls import Calls


async def call(calls: Calls, work: asyncio.Event, run_id: str | None = None) -> str:
    with calls.under_way():
        calls.check()
        if run_id is not None:
            calls.note_run(run_id)
        await work.wait()
        return "done"


async def test_calls_are_counted_from_their_start_to_their_end() -> None:
    calls, work = Calls(), asyncio.Event()
    assert calls.running == 0
    tasks = [asyncio.create_task(call(calls, work)) for _ in range(3)]
    await asyncio.sleep(0)
    assert calls.running == 3
    work.set()
    assert await asyncio.gather(*tasks) == ["done"] * 3
    assert calls.running == 0
    await asyncio.wait_for(calls.drained(), 1)


async def test_after_close_new_calls_are_refused_and_active_calls_continue() -> None:
    calls, work = Calls(), asyncio.Event()
    under_way = asyncio.create_task(call(calls, work))
    await asyncio.sleep(0)
    calls.close(10)
    calls.close(0)
    with pytest.raises(BusyError) as caught:
        await asyncio.create_task(call(calls, work))
    assert caught.value.code == "shutting_down"
    assert caught.value.retryable
    assert 10 < caught.value.details["retry_after"] <= 20, "the first grace period counts"
    assert calls.running == 1
    work.set()
    assert await under_way == "done"


async def test_a_call_that_is_cut_short_fails_with_the_id_of_its_run() -> None:
    calls, never = Calls(), asyncio.Event()
    named, unnamed = (asyncio.create_task(call(calls, never, run_id)) for run_id in ("r_1", None))
    await asyncio.sleep(0)
    assert await calls.end(1)
    for task, details in ((named, {"run_id": "r_1"}), (unnamed, {})):
        with pytest.raises(NetworkToolsError) as caught:
            await task
        assert caught.value.code == "shutting_down"
        assert {key: value for key, value in caught.value.details.items() if key != "retry_after"} == details
    assert calls.running == 0


async def test_a_cancelled_caller_gets_a_cancellation() -> None:
    calls, never = Calls(), asyncio.Event()
    task = asyncio.create_task(call(calls, never))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert calls.running == 0


async def test_a_cancellation_at_the_same_moment_is_not_lost() -> None:
    calls, never = Calls(), asyncio.Event()
    task = asyncio.create_task(call(calls, never))
    await asyncio.sleep(0)
    ending = asyncio.create_task(calls.end(1))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await ending


async def test_waiting_for_a_call_that_does_not_end_is_bounded() -> None:
    calls, release = Calls(), asyncio.Event()

    async def stubborn() -> None:
        with calls.under_way():
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    assert not await calls.end(0.05)
    assert calls.running == 1
    release.set()
    await task


async def test_a_call_that_completes_although_it_was_cancelled_keeps_its_result() -> None:
    calls, work = Calls(), asyncio.Event()

    async def nearly_done() -> str:
        with calls.under_way():
            try:
                await work.wait()
            except asyncio.CancelledError:
                return "done"
            return "not asked"

    task = asyncio.create_task(nearly_done())
    await asyncio.sleep(0)
    assert await calls.end(1)
    assert await task == "done"
