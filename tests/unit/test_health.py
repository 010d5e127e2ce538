"""Health: how rounds are run, how long they count, and what is said when nothing fresh is known."""

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
    Finding,
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
    """A check whose finding the test sets; ``gate`` holds its answers back, ``asked`` counts."""

    def __init__(self, status: HealthStatus = HEALTHY) -> None:
        self.status = status
        self.error: BaseException | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = 0

    async def __call__(self) -> Finding:
        self.asked += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Finding(self.status, f"it is {self.status.value}")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> HealthCheckManager:
    return HealthCheckManager(lambda: HealthConfig(timeout=1), clock=clock)


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers wait for a moment only: what they would see after three seconds is seen at once."""
    monkeypatch.setattr(manager, "WAIT_SEC", 0.02)


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_the_words_are_those_people_look_for() -> None:
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
async def test_only_what_is_critical_makes_the_whole_unhealthy(
    health: HealthCheckManager, priority: HealthCheckPriority, status: HealthStatus, whole: HealthStatus
) -> None:
    health.register("other", CRITICAL, Switch())
    health.register("this", priority, Switch(status))
    assert (await health.current()).status is whole


async def test_a_finding_can_weigh_more_than_its_check(health: HealthCheckManager) -> None:
    async def last_tool() -> list[Finding]:
        return [Finding(UNHEALTHY, "gone", name="tool nmap", priority=CRITICAL), Finding(HEALTHY, "there", name="b")]

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
    assert check.asked == 2


async def test_checks_run_side_by_side(health: HealthCheckManager) -> None:
    meeting = asyncio.Barrier(3)

    async def meet() -> Finding:
        await meeting.wait()  # nobody gets past before all three are here
        return Finding(HEALTHY, "met")

    for name in "abc":
        health.register(name, CRITICAL, meet)
    assert (await health.check()).status is HEALTHY


async def test_callers_share_one_round(health: HealthCheckManager) -> None:
    check = Switch()
    check.gate.clear()
    health.register("x", CRITICAL, check)
    callers = [asyncio.create_task(health.current()) for _ in range(50)]
    await asyncio.sleep(0)
    check.gate.set()
    answers = await asyncio.gather(*callers)
    assert check.asked == 1
    assert len({id(answer) for answer in answers}) == 1


async def test_a_call_during_a_round_gets_what_is_fresh(health: HealthCheckManager, clock: Clock) -> None:
    check = Switch()
    health.register("x", CRITICAL, check)
    first = await health.check()
    check.gate.clear()
    clock.now += 30
    running = asyncio.create_task(health.check())
    await settled(lambda: check.asked == 2)
    assert (await health.current()) is first
    assert not running.done()
    check.gate.set()
    assert await running is not first


@pytest.mark.usefixtures("briefly")
async def test_what_is_old_is_never_given_unannounced(health: HealthCheckManager, clock: Clock) -> None:
    check = Switch()
    health.register("x", CRITICAL, check)
    assert (await health.current()).message == ""
    check.gate.clear()
    clock.now += 75
    old = await health.current()
    assert old.status is DEGRADED
    assert old.message == "the checks are still running; what they found last is 75 s old"
    assert [result.status for result in old.results] == [HEALTHY]
    assert old.as_dict()["checks"][0]["age_sec"] == 75.0
    check.gate.set()
    assert (await health.current()).message == ""


@pytest.mark.usefixtures("briefly")
async def test_an_old_result_does_not_look_better_than_it_was(health: HealthCheckManager, clock: Clock) -> None:
    check = Switch(UNHEALTHY)
    health.register("x", CRITICAL, check)
    await health.current()
    check.gate.clear()
    clock.now += 75
    assert (await health.current()).status is UNHEALTHY


@pytest.mark.usefixtures("briefly")
async def test_before_the_first_round_is_over_nothing_is_known(health: HealthCheckManager) -> None:
    check = Switch()
    check.gate.clear()
    health.register("x", CRITICAL, check)
    found = await health.current()
    assert (found.status, found.results) == (DEGRADED, ())
    assert found.message == "the first checks are still running"


async def test_what_is_doubted_is_looked_at_again(health: HealthCheckManager) -> None:
    check = Switch()
    health.register("x", CRITICAL, check)
    assert (await health.current()).status is HEALTHY
    check.status = UNHEALTHY
    assert (await health.current()).status is HEALTHY, "it is fresh"
    health.invalidate()
    assert (await health.current()).status is UNHEALTHY


async def test_a_round_that_was_begun_before_the_doubt_does_not_settle_it(
    health: HealthCheckManager, clock: Clock
) -> None:
    check = Switch()
    check.gate.clear()
    health.register("x", CRITICAL, check)
    early = asyncio.create_task(health.check())
    await settled(lambda: check.asked == 1)
    clock.now += 1
    health.invalidate()
    caller = asyncio.create_task(health.current())
    await asyncio.sleep(0)
    check.gate.set()
    await early
    assert (await caller).began > early.result().began
    assert check.asked == 2


async def test_constant_doubt_does_not_keep_a_caller_for_ever(health: HealthCheckManager) -> None:
    async def failing() -> Finding:
        health.invalidate()
        return Finding(DEGRADED, "calls fail all the time")

    health.register("x", CRITICAL, failing)
    assert (await health.current()).message == ""


async def test_a_check_that_takes_too_long_is_a_finding(health: HealthCheckManager) -> None:
    ended = []

    async def hang() -> Finding:
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
    assert again.results[0].status is UNHEALTHY, "once may be a busy moment"
    assert again.status is UNHEALTHY


async def test_a_check_that_will_not_be_cancelled_holds_up_nothing(health: HealthCheckManager) -> None:
    release = asyncio.Event()

    async def stubborn() -> Finding:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return Finding(HEALTHY, "late")

    health.register("x", CRITICAL, stubborn)
    async with asyncio.timeout(10):
        assert (await health.check()).results[0].detail == "no answer within 1 s"
    release.set()
    assert (await health.check()).status is HEALTHY


async def test_a_thread_that_hangs_is_left_alone_and_not_multiplied(health: HealthCheckManager) -> None:
    release = threading.Event()
    begun: list[str] = []

    def hang() -> Finding:
        begun.append(threading.current_thread().name)
        release.wait()
        return Finding(HEALTHY, "back")

    health.register("disk", CRITICAL, Threaded(hang))
    for expected in (DEGRADED, UNHEALTHY):
        assert (await health.check()).results[0].status is expected
    assert len(begun) == 1
    assert next(thread for thread in threading.enumerate() if thread.name == begun[0]).daemon, "it may outlive us"
    release.set()
    async with asyncio.timeout(10):
        while (await health.check()).status is not HEALTHY:
            pass


async def test_what_a_thread_raises_arrives() -> None:
    def fail() -> None:
        raise SystemExit(3)

    work = Threaded(fail)
    for _ in range(2):
        with pytest.raises(SystemExit):
            await work()


async def test_a_check_that_breaks_is_a_finding_and_logged_once(
    health: HealthCheckManager, caplog: pytest.LogCaptureFixture
) -> None:
    check = Switch()
    check.error = RuntimeError("secret internals")
    health.register("x", CRITICAL, check)
    first, second, third = [(await health.check()).results[0] for _ in range(3)]
    assert [first.status, second.status, third.status] == [DEGRADED, UNHEALTHY, UNHEALTHY]
    assert first.detail == "the check itself failed: RuntimeError"
    assert len([record for record in caplog.records if "health.check_failed check=x" in record.getMessage()]) == 1
    check.error = None
    assert (await health.check()).status is HEALTHY
    check.error = RuntimeError()
    assert (await health.check()).results[0].status is DEGRADED, "it is the first time again"


async def test_a_typed_error_says_what_to_do(health: HealthCheckManager) -> None:
    check = Switch()
    check.error = PlatformError("the licence server is away", code="store_unavailable", hint="Start it.")
    health.register("licence", IMPORTANT, check)
    (found,) = (await health.check()).results
    assert (found.status, found.detail, found.remedy) == (UNHEALTHY, "the licence server is away", "Start it.")


async def test_a_name_is_given_once(health: HealthCheckManager) -> None:
    health.register("x", CRITICAL, Switch(UNHEALTHY))
    with pytest.raises(ValueError, match="'x'"):
        health.register("x", IMPORTANT, Switch())
    assert (await health.current()).status is UNHEALTHY


async def test_history_is_bounded(health: HealthCheckManager) -> None:
    health.register("x", CRITICAL, Switch())
    for _ in range(HISTORY + 5):
        await health.check()
    assert len(health.history) == HISTORY
    assert health.history[-1] is health.latest


async def test_observers_hear_of_every_round_and_may_fail(
    health: HealthCheckManager, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[tuple[SystemHealth, SystemHealth | None]] = []

    def broken(_after: SystemHealth, _before: SystemHealth | None) -> None:
        raise RuntimeError

    health.observe(broken)
    health.observe(lambda after, before: heard.append((after, before)))
    check = Switch(DEGRADED)
    health.register("a b", IMPORTANT, check)
    first = await health.check()
    check.status = HEALTHY
    second = await health.check()
    assert heard == [(first, None), (second, first)]
    assert caplog.text.count("health.observer_failed") == 2
    assert list(gauges(first)) == [
        ("mcp_health_status", 1, {}),
        ("mcp_health_check_status", 1, {"check": "a b"}),
    ]


async def test_what_is_told_is_what_has_another_status_now(health: HealthCheckManager) -> None:
    found = [Finding(DEGRADED, "old", name="tool a"), Finding(HEALTHY, "there", name="tool b")]

    async def several() -> list[Finding]:
        return found

    check = Switch(DEGRADED)
    health.register("tools", INFORMATIONAL, several)
    health.register("x", CRITICAL, check)
    first = await health.check()
    told = {"status": "degraded", "before": "healthy", "checks": {"tool a": "degraded", "x": "degraded"}}
    assert health_change(None, first) == told
    found[0] = Finding(DEGRADED, "other words", name="tool a")
    second = await health.check()
    assert health_change(first, second) is None, "words are no news"
    found[1] = Finding(UNHEALTHY, "gone", name="tool b")
    third = await health.check()
    assert health_change(second, third) == {
        "status": "degraded",
        "before": "degraded",
        "checks": {"tool b": "unhealthy"},
    }
    del found[0]
    check.status = HEALTHY
    fourth = await health.check()
    assert changes(third, fourth)[-1].after is HEALTHY, "what is gone is no trouble any more"
    told = {"status": "degraded", "before": "degraded", "checks": {"x": "healthy", "tool a": "healthy"}}
    assert health_change(third, fourth) == told
    found[0] = Finding(UNHEALTHY, "gone", name="tool b", priority=CRITICAL)
    assert health_change(fourth, await health.check()) == {"status": "unhealthy", "before": "degraded", "checks": {}}


async def test_changes_are_logged_once(health: HealthCheckManager, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    health.observe(manager.log_changes)
    check = Switch()
    health.register("a b", CRITICAL, check)
    for status in (HEALTHY, UNHEALTHY, UNHEALTHY, HEALTHY):
        check.status = status
        await health.check()
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lines == [
        ("WARNING", "health.changed check=a_b before=ok after=failed: it is unhealthy"),
        ("INFO", "health.changed check=a_b before=failed after=ok: it is healthy"),
    ]


async def test_rounds_come_by_themselves_and_at_once_when_doubted(
    health: HealthCheckManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "MIN_PAUSE_SEC", 0.0)
    check = Switch()
    health.register("x", CRITICAL, check)
    health.start()
    health.start()
    await settled(lambda: check.asked == 1)
    await asyncio.sleep(0.05)
    assert check.asked == 1, "the next one is due in five seconds"
    health.invalidate()
    await settled(lambda: check.asked == 2)
    for _ in range(2):
        await health.stop()
    health.invalidate()
    await asyncio.sleep(0.05)
    assert check.asked == 2
    assert health.lag.longest >= 0


async def test_many_doubts_are_one_round(health: HealthCheckManager) -> None:
    check = Switch()
    health.register("x", CRITICAL, check)
    health.start()
    await settled(lambda: check.asked == 1)
    for _ in range(200):
        health.invalidate()
        await asyncio.sleep(0)
    assert check.asked == 1, "nobody waits for the next one, and it comes after a pause"
    await health.stop()


async def test_stop_ends_a_round_that_is_under_way(health: HealthCheckManager) -> None:
    check = Switch()
    check.gate.clear()
    health.register("x", CRITICAL, check)
    health.start()
    await settled(lambda: check.asked == 1)
    async with asyncio.timeout(5):
        await health.stop()


async def test_a_start_can_be_put_off(health: HealthCheckManager) -> None:
    check = Switch()
    health.register("x", CRITICAL, check)
    await health.check()  # so that nothing is in doubt
    health.start(delay=60)
    await asyncio.sleep(0.05)
    assert check.asked == 1
    await health.stop()


async def test_the_document_says_all_there_is(health: HealthCheckManager, clock: Clock) -> None:
    async def check() -> Finding:
        return Finding(DEGRADED, "half full", works="the other half", remedy="empty it")

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


async def test_the_loop_turns_while_a_check_blocks(health: HealthCheckManager) -> None:
    release = threading.Event()
    health.register("x", CRITICAL, Threaded(lambda: Finding(HEALTHY, str(release.wait(10)))))
    running = asyncio.create_task(health.check())
    for _ in range(100):
        await asyncio.sleep(0)
    assert not running.done()
    release.set()
    assert (await running).results[0].detail == "True"
