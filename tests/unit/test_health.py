"""Health: running rounds of checks, the age of results, and the answer if no fresh result exists."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mcp_server.config.sections import HealthConfig
from mcp_server.errors import PlatformError
from mcp_server.health import (
    HISTORY,
    CheckOutcome,
    HealthCheckManager,
    HealthCheckPriority,
    HealthStatus,
    SystemHealth,
    Threaded,
    changes,
    gauges,
    health_change,
    manager,
)

CRITICAL, IMPORTANT, INFORMATIONAL = HealthCheckPriority
HEALTHY, DEGRADED, UNHEALTHY = HealthStatus


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Switch:
    """A check whose outcome the test sets. It waits for ``answering``; ``runs`` counts its runs."""

    def __init__(self, status: HealthStatus = HEALTHY) -> None:
        self.status = status
        self.error: BaseException | None = None
        self.answering = asyncio.Event()
        self.answering.set()
        self.runs = 0

    async def __call__(self) -> CheckOutcome:
        self.runs += 1
        await self.answering.wait()
        if self.error is not None:
            raise self.error
        return CheckOutcome(self.status, f"it is {self.status.value}")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> HealthCheckManager:
    return HealthCheckManager(lambda: HealthConfig(timeout=1), clock=clock)


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let callers wait for a moment instead of three seconds."""
    monkeypatch.setattr(manager, "WAIT_SEC", 0.02)


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_the_names_of_statuses_and_priorities_are_fixed() -> None:
    assert [status.value for status in HealthStatus] == ["healthy", "degraded", "unhealthy"]
    assert {each.name: each.value for each in HealthCheckPriority} == {
        "CRITICAL": 0,
        "IMPORTANT": 1,
        "INFORMATIONAL": 2,
    }


@pytest.mark.parametrize(
    ("priority", "status", "whole"),
    [
        (CRITICAL, HEALTHY, HEALTHY),
        (CRITICAL, DEGRADED, DEGRADED),
        (CRITICAL, UNHEALTHY, UNHEALTHY),
        (IMPORTANT, UNHEALTHY, DEGRADED),
        (INFORMATIONAL, UNHEALTHY, DEGRADED),
        (INFORMATIONAL, DEGRADED, DEGRADED),
    ],
)
async def test_only_a_critical_check_makes_the_server_unhealthy(
    health: HealthCheckManager, priority: HealthCheckPriority, status: HealthStatus, whole: HealthStatus
) -> None:
    health.register("other", CRITICAL, Switch())
    health.register("this", priority, Switch(status))
    assert (await health.current()).status is whole


async def test_an_outcome_can_have_a_higher_priority_than_its_check(health: HealthCheckManager) -> None:
    async def last_tool() -> list[CheckOutcome]:
        return [
            CheckOutcome(UNHEALTHY, "gone", name="tool nmap", priority=CRITICAL),
            CheckOutcome(HEALTHY, "there", name="b"),
        ]

    health.register("tools", INFORMATIONAL, last_tool)
    found = await health.current()
    assert found.status is UNHEALTHY
    assert [(result.name, result.check, result.priority) for result in found.results] == [
        ("tool nmap", "tools", CRITICAL),
        ("b", "tools", INFORMATIONAL),
    ]


async def test_a_result_is_stale_after_a_minute(health: HealthCheckManager, clock: Clock) -> None:
    check = Switch()
    health.register("x", CRITICAL, check)
    first = await health.current()
    clock.now += 60
    assert not first.is_stale()
    assert first.is_stale(max_age_seconds=59)
    assert (await health.current()) is first
    clock.now += 0.1
    assert first.is_stale()
    assert (await health.current()) is not first
    assert check.runs == 2


async def test_checks_run_concurrently(health: HealthCheckManager) -> None:
    meeting = asyncio.Barrier(3)

    async def meet() -> CheckOutcome:
        await meeting.wait()  # returns when all three checks are here
        return CheckOutcome(HEALTHY, "met")

    for name in "abc":
        health.register(name, CRITICAL, meet)
    assert (await health.check()).status is HEALTHY


async def test_callers_share_one_round(health: HealthCheckManager) -> None:
    check = Switch()
    check.answering.clear()
    health.register("x", CRITICAL, check)
    callers = [asyncio.create_task(health.current()) for _ in range(50)]
    await asyncio.sleep(0)
    check.answering.set()
    answers = await asyncio.gather(*callers)
    assert check.runs == 1
    assert len({id(answer) for answer in answers}) == 1


async def test_a_caller_gets_fresh_results_while_a_round_runs(health: HealthCheckManager, clock: Clock) -> None:
    check = Switch()
    health.register("x", CRITICAL, check)
    first = await health.check()
    check.answering.clear()
    clock.now += 30
    running = asyncio.create_task(health.check())
    await settled(lambda: check.runs == 2)
    assert (await health.current()) is first
    assert not running.done()
    check.answering.set()
    assert await running is not first


@pytest.mark.usefixtures("short_wait")
async def test_old_results_have_a_message(health: HealthCheckManager, clock: Clock) -> None:
    check = Switch()
    health.register("x", CRITICAL, check)
    assert (await health.current()).message == ""
    check.answering.clear()
    clock.now += 75
    old = await health.current()
    assert old.status is DEGRADED
    assert old.message == "The checks are still running. The last results are 75 s old."
    assert [result.status for result in old.results] == [HEALTHY]
    assert old.as_dict()["checks"][0]["age_sec"] == 75.0
    check.answering.set()
    assert (await health.current()).message == ""


@pytest.mark.usefixtures("short_wait")
async def test_old_unhealthy_results_stay_unhealthy(health: HealthCheckManager, clock: Clock) -> None:
    check = Switch(UNHEALTHY)
    health.register("x", CRITICAL, check)
    await health.current()
    check.answering.clear()
    clock.now += 75
    assert (await health.current()).status is UNHEALTHY


@pytest.mark.usefixtures("short_wait")
async def test_before_the_first_round_the_server_is_degraded_without_results(health: HealthCheckManager) -> None:
    check = Switch()
    check.answering.clear()
    health.register("x", CRITICAL, check)
    found = await health.current()
    assert (found.status, found.results) == (DEGRADED, ())
    assert found.message == "The first checks are still running."


async def test_invalidated_results_are_not_used(health: HealthCheckManager) -> None:
    check = Switch()
    health.register("x", CRITICAL, check)
    assert (await health.current()).status is HEALTHY
    check.status = UNHEALTHY
    assert (await health.current()).status is HEALTHY, "a fresh result must be used"
    health.invalidate()
    assert (await health.current()).status is UNHEALTHY


async def test_a_round_that_started_before_the_invalidation_is_not_enough(
    health: HealthCheckManager, clock: Clock
) -> None:
    check = Switch()
    check.answering.clear()
    health.register("x", CRITICAL, check)
    early = asyncio.create_task(health.check())
    await settled(lambda: check.runs == 1)
    clock.now += 1
    health.invalidate()
    caller = asyncio.create_task(health.current())
    await asyncio.sleep(0)
    check.answering.set()
    await early
    assert (await caller).began > early.result().began
    assert check.runs == 2


async def test_constant_invalidation_does_not_block_a_caller(health: HealthCheckManager) -> None:
    async def failing() -> CheckOutcome:
        health.invalidate()
        return CheckOutcome(DEGRADED, "calls fail all the time")

    health.register("x", CRITICAL, failing)
    assert (await health.current()).message == ""


async def test_a_check_that_takes_too_long_is_degraded_and_then_unhealthy(health: HealthCheckManager) -> None:
    ended = []

    async def hang() -> CheckOutcome:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)
        raise AssertionError

    health.register("slow", CRITICAL, hang)
    health.register("quick", CRITICAL, Switch())
    slow, quick = (await health.check()).results
    assert (slow.status, slow.detail) == (DEGRADED, "no answer within 1 s")
    assert (quick.status, quick.name) == (HEALTHY, "quick")
    assert 1 <= slow.duration < 5
    assert ended == [True]
    again = await health.check()
    assert again.results[0].status is UNHEALTHY, "the second time in a row must be unhealthy"
    assert again.status is UNHEALTHY


async def test_a_check_that_ignores_its_cancellation_delays_nothing(health: HealthCheckManager) -> None:
    release = asyncio.Event()

    async def stubborn() -> CheckOutcome:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return CheckOutcome(HEALTHY, "late")

    health.register("x", CRITICAL, stubborn)
    async with asyncio.timeout(10):
        assert (await health.check()).results[0].detail == "no answer within 1 s"
    release.set()
    assert (await health.check()).status is HEALTHY


async def test_a_hanging_thread_is_not_started_twice(health: HealthCheckManager) -> None:
    release = threading.Event()
    begun: list[str] = []

    def hang() -> CheckOutcome:
        begun.append(threading.current_thread().name)
        release.wait()
        return CheckOutcome(HEALTHY, "back")

    health.register("disk", CRITICAL, Threaded(hang))
    for expected in (DEGRADED, UNHEALTHY):
        assert (await health.check()).results[0].status is expected
    assert len(begun) == 1
    (thread,) = (thread for thread in threading.enumerate() if thread.name == begun[0])
    assert thread.daemon, "the thread must not delay the exit"
    release.set()
    async with asyncio.timeout(10):
        while (await health.check()).status is not HEALTHY:
            pass


async def test_an_exception_of_the_thread_reaches_the_caller() -> None:
    def fail() -> None:
        raise SystemExit(3)

    work = Threaded(fail)
    for _ in range(2):
        with pytest.raises(SystemExit):
            await work()


async def test_a_check_that_raises_is_degraded_and_then_unhealthy_and_logged_once(
    health: HealthCheckManager, caplog: pytest.LogCaptureFixture
) -> None:
    check = Switch()
    check.error = RuntimeError("secret internals")
    health.register("x", CRITICAL, check)
    first, second, third = [(await health.check()).results[0] for _ in range(3)]
    assert [first.status, second.status, third.status] == [DEGRADED, UNHEALTHY, UNHEALTHY]
    assert first.detail == "the check itself failed: RuntimeError"
    assert len([record for record in caplog.records if "health.check_failed" in record.getMessage()]) == 1
    check.error = None
    assert (await health.check()).status is HEALTHY
    check.error = RuntimeError()
    assert (await health.check()).results[0].status is DEGRADED, "a success must reset the count"


async def test_the_hint_of_a_typed_error_is_the_remedy(health: HealthCheckManager) -> None:
    check = Switch()
    check.error = PlatformError("the license server is down", code="store_unavailable", hint="Start it.")
    health.register("license", IMPORTANT, check)
    (found,) = (await health.check()).results
    assert (found.status, found.detail, found.remedy) == (UNHEALTHY, "the license server is down", "Start it.")


async def test_a_second_check_with_the_same_name_is_refused(health: HealthCheckManager) -> None:
    health.register("x", CRITICAL, Switch(UNHEALTHY))
    with pytest.raises(ValueError, match="'x'"):
        health.register("x", IMPORTANT, Switch())
    assert (await health.current()).status is UNHEALTHY


async def test_the_history_is_bounded(health: HealthCheckManager) -> None:
    health.register("x", CRITICAL, Switch())
    for _ in range(HISTORY + 5):
        await health.check()
    assert len(health.history) == HISTORY
    assert health.history[-1] is health.latest


async def test_observers_are_called_after_every_round_and_may_raise(
    health: HealthCheckManager, caplog: pytest.LogCaptureFixture
) -> None:
    observed: list[tuple[SystemHealth, SystemHealth | None]] = []

    def broken(_after: SystemHealth, _before: SystemHealth | None) -> None:
        raise RuntimeError

    health.observe(broken)
    health.observe(lambda after, before: observed.append((after, before)))
    check = Switch(DEGRADED)
    health.register("a b", IMPORTANT, check)
    first = await health.check()
    check.status = HEALTHY
    second = await health.check()
    assert observed == [(first, None), (second, first)]
    assert caplog.text.count("health.observer_failed") == 2
    assert list(gauges(first)) == [
        ("mcp_health_status", 1, {}),
        ("mcp_health_check_status", 1, {"check": "a b"}),
    ]


async def test_the_change_holds_only_results_with_a_new_status(health: HealthCheckManager) -> None:
    found = [CheckOutcome(DEGRADED, "old", name="tool a"), CheckOutcome(HEALTHY, "there", name="tool b")]

    async def several() -> list[CheckOutcome]:
        return found

    check = Switch(DEGRADED)
    health.register("tools", INFORMATIONAL, several)
    health.register("x", CRITICAL, check)
    first = await health.check()
    expected = {"status": "degraded", "before": "healthy", "checks": {"tool a": "degraded", "x": "degraded"}}
    assert health_change(None, first) == expected
    found[0] = CheckOutcome(DEGRADED, "other words", name="tool a")
    second = await health.check()
    assert health_change(first, second) is None, "a new detail does not change the status"
    found[1] = CheckOutcome(UNHEALTHY, "gone", name="tool b")
    third = await health.check()
    assert health_change(second, third) == {
        "status": "degraded",
        "before": "degraded",
        "checks": {"tool b": "unhealthy"},
    }
    del found[0]
    check.status = HEALTHY
    fourth = await health.check()
    assert changes(third, fourth)[-1].after is HEALTHY, "a result that disappeared counts as healthy"
    expected = {"status": "degraded", "before": "degraded", "checks": {"x": "healthy", "tool a": "healthy"}}
    assert health_change(third, fourth) == expected
    found[0] = CheckOutcome(UNHEALTHY, "gone", name="tool b", priority=CRITICAL)
    assert health_change(fourth, await health.check()) == {"status": "unhealthy", "before": "degraded", "checks": {}}


async def test_a_change_is_logged_once(health: HealthCheckManager, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    health.observe(manager.log_changes)
    check = Switch()
    health.register("a b", CRITICAL, check)
    change = {"event": "health.changed", "check": "a b"}
    for status in (HEALTHY, UNHEALTHY, UNHEALTHY, HEALTHY):
        check.status = status
        await health.check()
    lines = [(record.levelname, record.msg) for record in caplog.records]
    assert lines == [
        ("WARNING", {**change, "before": "ok", "after": "failed", "message": "it is unhealthy"}),
        ("INFO", {**change, "before": "failed", "after": "ok", "message": "it is healthy"}),
    ]


async def test_rounds_run_at_the_interval_and_at_once_after_an_invalidation(
    health: HealthCheckManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "MIN_PAUSE_SEC", 0.0)
    check = Switch()
    health.register("x", CRITICAL, check)
    health.start()
    health.start()
    await settled(lambda: check.runs == 1)
    await asyncio.sleep(0.05)
    assert check.runs == 1, "the next round is due in five seconds"
    health.invalidate()
    await settled(lambda: check.runs == 2)
    for _ in range(2):
        await health.stop()
    health.invalidate()
    await asyncio.sleep(0.05)
    assert check.runs == 2
    assert health.lag.longest >= 0


async def test_many_invalidations_start_one_round(health: HealthCheckManager) -> None:
    check = Switch()
    health.register("x", CRITICAL, check)
    health.start()
    await settled(lambda: check.runs == 1)
    for _ in range(200):
        health.invalidate()
        await asyncio.sleep(0)
    assert check.runs == 1, "no caller waits for the next round, so it starts after a pause"
    await health.stop()


async def test_stop_cancels_a_running_round(health: HealthCheckManager) -> None:
    check = Switch()
    check.answering.clear()
    health.register("x", CRITICAL, check)
    health.start()
    await settled(lambda: check.runs == 1)
    async with asyncio.timeout(5):
        await health.stop()


async def test_a_start_can_be_delayed(health: HealthCheckManager) -> None:
    check = Switch()
    health.register("x", CRITICAL, check)
    await health.check()  # so that the results are valid
    health.start(delay=60)
    await asyncio.sleep(0.05)
    assert check.runs == 1
    await health.stop()


async def test_the_document_has_every_field(health: HealthCheckManager, clock: Clock) -> None:
    async def check() -> CheckOutcome:
        return CheckOutcome(DEGRADED, "half full", works="the other half", remedy="empty it")

    health.register("glass", IMPORTANT, check)
    await health.check()
    clock.now += 2.5
    document: dict[str, Any] = (await health.current()).as_dict()
    (glass,) = document["checks"]
    assert document == {"status": "degraded", "checks": [glass]}
    assert {key: glass[key] for key in ("name", "state", "detail", "works", "remedy", "priority", "age_sec")} == {
        "name": "glass", "state": "degraded", "detail": "half full", "works": "the other half", "remedy": "empty it",
        "priority": "important", "age_sec": 2.5,
    }  # fmt: skip
    assert glass["checked_at"].endswith("+00:00")
    assert glass["duration_ms"] >= 0


async def test_the_event_loop_runs_while_a_check_blocks(health: HealthCheckManager) -> None:
    release = threading.Event()
    health.register("x", CRITICAL, Threaded(lambda: CheckOutcome(HEALTHY, str(release.wait(10)))))
    running = asyncio.create_task(health.check())
    for _ in range(100):
        await asyncio.sleep(0)
    assert not running.done()
    release.set()
    assert (await running).results[0].detail == "True"
