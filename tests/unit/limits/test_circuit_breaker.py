"""The circuit breaker: when it opens, which calls it allows, how long it waits, and states set by an operator."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from mcp_server.config.sections import CircuitBreakerConfig
from mcp_server.errors import BusyError
from mcp_server.limits.circuit_breaker import Breaker, Breakers, BreakerView, Result, State


@dataclass
class Numbers:
    """Settings that a test may change as a reload does."""

    failure_threshold: int = 3
    recovery_timeout: int = 60
    half_open_success_threshold: int = 1


@dataclass
class World:
    """Breakers with a clock, a draw and an observer that a test controls. A draw of 0.5 means no jitter."""

    numbers: Numbers = field(default_factory=Numbers)
    now: float = 0.0
    drawn: float = 0.5
    calls: list[tuple[str, str]] = field(default_factory=list)
    changes: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.breakers = Breakers(lambda: self.numbers, observer=self, clock=lambda: self.now, draw=lambda: self.drawn)

    @property
    def nmap(self) -> Breaker:
        return self.breakers.of("nmap")

    def state(self) -> str:
        return str(self.nmap.state)

    def breaker_called(self, name: str, result: Result) -> None:
        self.calls.append((name, str(result)))

    def breaker_changed(self, name: str, before: State, after: State) -> None:
        assert self.breakers.of(name).view().state is after  # it has its new state by then
        self.changes.append((name, str(before), str(after)))

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            with self.nmap.permit() as permit:
                permit.failure()

    def succeed(self) -> None:
        with self.nmap.permit() as permit:
            permit.success()

    def refused(self) -> BusyError:
        with pytest.raises(BusyError) as caught, self.nmap.permit():
            pass
        assert caught.value.code == "circuit_open"
        return caught.value


def test_the_breaker_opens_at_the_threshold_of_the_configuration() -> None:
    breaker = Breaker("nmap", CircuitBreakerConfig)
    for _ in range(CircuitBreakerConfig().failure_threshold):
        assert breaker.view().state is State.CLOSED
        with breaker.permit() as permit:
            permit.failure()
    assert breaker.view().state is State.OPEN


def test_the_breaker_opens_after_failures_in_a_row_and_gives_a_time_to_retry() -> None:
    world = World()
    world.fail(2)
    world.succeed()
    world.fail(2)
    assert world.state() == "closed"
    world.fail()
    assert world.state() == "open"
    world.now = 17.5
    error = world.refused()
    assert error.details == {"tool": "nmap", "state": "open", "retry_after": 43}
    assert error.retryable
    assert "3 times in a row" in error.message
    assert world.calls == [("nmap", r) for r in ("failure",) * 2 + ("success",) + ("failure",) * 3 + ("refused",)]
    assert world.changes == [("nmap", "closed", "open")]


def test_a_call_without_a_result_changes_nothing() -> None:
    world = World()
    world.fail(2)
    for error in (BusyError("no slot"), asyncio.CancelledError(), ValueError()):
        with pytest.raises(type(error)), world.nmap.permit():
            raise error
    with world.nmap.permit():
        pass
    assert world.nmap.view().failures == 2
    world.fail()
    assert world.state() == "open"
    assert len(world.calls) == 3


def test_only_the_first_result_of_a_call_counts() -> None:
    world = World()
    with world.nmap.permit() as permit:
        permit.failure()
        permit.failure()
        permit.success()
    assert world.nmap.view().failures == 1
    assert len(world.calls) == 1


def test_a_half_open_breaker_allows_one_call_and_closes_if_it_succeeds() -> None:
    world = World()
    world.fail(3)
    world.now = 59.9
    world.refused()
    world.now = 60
    assert world.state() == "half_open"
    with world.nmap.permit() as permit:
        error = world.refused()
        assert error.details == {"tool": "nmap", "state": "half_open", "retry_after": 5}
        with pytest.raises(BusyError):
            world.nmap.check()
        permit.success()
    assert world.state() == "closed"
    assert world.changes == [
        ("nmap", "closed", "open"),
        ("nmap", "open", "half_open"),
        ("nmap", "half_open", "closed"),
    ]
    world.fail(2)
    assert world.state() == "closed"  # it counts from zero again


def test_after_a_trial_without_a_result_the_next_call_is_the_trial() -> None:
    world = World()
    world.fail(3)
    world.now = 60
    for _ in range(2):
        with pytest.raises(asyncio.CancelledError), world.nmap.permit():
            raise asyncio.CancelledError
        assert world.state() == "half_open"
    world.succeed()
    assert world.state() == "closed"


def test_the_end_of_an_old_trial_does_not_end_the_next_trial() -> None:
    world = World()
    world.fail(3)
    world.now = 60
    first = world.nmap.permit()
    first.__enter__().failure()
    world.now = 150
    with world.nmap.permit() as second:
        first.__exit__(None, None, None)
        world.refused()
        second.success()
    assert world.state() == "closed"


def test_a_check_does_not_start_a_trial() -> None:
    world = World()
    world.fail(3)
    world.now = 60
    world.nmap.check()
    world.nmap.check()
    world.succeed()
    assert world.state() == "closed"


def test_closing_may_need_several_successes_one_at_a_time() -> None:
    world = World(Numbers(half_open_success_threshold=2))
    world.fail(3)
    world.now = 60
    world.succeed()
    assert world.state() == "half_open"
    world.succeed()
    assert world.state() == "closed"
    world.fail(3)
    world.now = 120
    world.succeed()
    world.fail()
    world.now = 210
    world.succeed()
    assert world.state() == "half_open"  # successes before the relapse do not count


def test_each_relapse_makes_the_wait_longer_up_to_five_minutes_and_closing_resets_it() -> None:
    world = World()
    world.fail(3)
    waits = []
    for _ in range(7):
        waits.append(world.nmap.view().retry_after)
        world.now += waits[-1]
        world.fail()
    assert waits == [60, 90, 135, 203, 300, 300, 300]
    assert "7 trials failed too" in world.refused().message
    world.now += 300
    world.succeed()
    world.fail(3)
    assert world.nmap.view().retry_after == 60


def test_a_recovery_timeout_above_five_minutes_is_not_changed() -> None:
    world = World(Numbers(recovery_timeout=600))
    world.fail(3)
    assert world.nmap.view().retry_after == 600
    world.now = 600
    world.fail()
    assert world.nmap.view().retry_after == 600


@pytest.mark.parametrize(("drawn", "wait"), [(0.0, 54), (0.25, 57), (0.5, 60), (1.0, 66)])
def test_the_wait_varies_by_at_most_a_tenth_and_stays_the_same(drawn: float, wait: int) -> None:
    world = World(drawn=drawn)
    world.fail(3)
    world.drawn = 0.5
    assert world.nmap.view().retry_after == wait
    world.now = wait - 0.1
    assert world.state() == "open"
    world.now = wait
    assert world.state() == "half_open"


def test_the_result_of_a_call_that_started_before_it_opened_does_not_count() -> None:
    world = World()
    with world.nmap.permit() as late, world.nmap.permit() as later:
        world.fail(3)
        world.now = 60
        assert world.state() == "half_open"
        with world.nmap.permit():
            late.success()
            assert world.state() == "half_open"
            later.failure()
            assert world.state() == "half_open"
            world.refused()  # and it does not end the trial
    assert world.calls[-3:] == [("nmap", "success"), ("nmap", "failure"), ("nmap", "refused")]


def test_a_call_that_waited_is_refused_if_the_breaker_has_opened() -> None:
    world = World()
    with world.nmap.permit() as permit:
        permit.confirm()
        world.fail(3)
        with pytest.raises(BusyError) as caught:
            permit.confirm()
    assert caught.value.details["retry_after"] == 60
    assert world.nmap.view().failures == 3


def test_a_call_that_waited_until_the_breaker_is_half_open_becomes_the_trial() -> None:
    world = World()
    with world.nmap.permit() as first, world.nmap.permit() as second:
        world.fail(3)
        world.now = 60
        first.confirm()
        first.confirm()
        with pytest.raises(BusyError, match="One call is testing it now"):
            second.confirm()
        first.failure()
        assert world.nmap.view().retry_after == 90
    world.now = 150
    world.succeed()
    assert world.state() == "closed"


def test_a_forced_open_breaker_stays_open_until_it_is_reset() -> None:
    world = World()
    world.nmap.force_open()
    world.now = 10_000
    error = world.refused()
    assert error.details == {"tool": "nmap", "state": "open", "forced": True, "retry_after": 60}
    assert "operator" in error.hint
    assert world.nmap.view() == BreakerView("nmap", State.OPEN, True, 0, 0, 60)
    world.nmap.reset()
    world.succeed()
    world.nmap.force_open()
    world.nmap.force_close()
    world.succeed()


def test_a_forced_closed_breaker_lets_every_call_through_until_it_is_reset() -> None:
    world = World()
    world.fail(3)
    world.nmap.force_close()
    world.fail(50)
    assert world.nmap.view() == BreakerView("nmap", State.CLOSED, True, 0, 0, 0)
    world.nmap.reset()
    world.fail(3)
    assert world.state() == "open"
    world.nmap.reset()
    assert world.nmap.view() == BreakerView("nmap", State.CLOSED, False, 0, 0, 0)


def test_a_trial_does_not_change_a_state_that_an_operator_forced() -> None:
    world = World()
    world.fail(3)
    world.now = 60
    with world.nmap.permit() as permit:
        world.nmap.force_open()
        permit.success()
    assert world.state() == "open"


def test_a_reload_applies_to_the_next_decision() -> None:
    world = World()
    world.fail(2)
    world.numbers.failure_threshold = 1
    world.fail()
    assert world.nmap.view().retry_after == 60
    world.numbers.recovery_timeout = 10
    assert world.nmap.view().retry_after == 10
    world.now = 10
    assert world.state() == "half_open"


def test_each_tool_has_its_own_breaker_and_the_snapshot_sorts_them_by_name() -> None:
    world = World()
    world.fail(3)
    with world.breakers.of("dig").permit() as permit:
        permit.failure()
    assert world.breakers.snapshot() == (
        BreakerView("dig", State.CLOSED, False, 1, 0, 0),
        BreakerView("nmap", State.OPEN, False, 3, 0, 60),
    )
    assert world.breakers.of("nmap") is world.nmap
