"""A circuit breaker for each tool: a tool that fails repeatedly is not called for a while, then tried with one call.

::

    closed ── failure_threshold failures in a row ──> open
    open ── recovery_timeout, longer after each relapse ──> half_open: one call at a time
    half_open ── half_open_success_threshold successes ──> closed;  one failure ──> open

The code that makes the call decides what a failure is. The state belongs to this process. After a restart every
breaker is closed. Source: M. Nygard, Release It!, chapter 5; M. Fowler, CircuitBreaker (2014).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

from mcp_server.errors import BusyError

BACKOFF: Final = 1.5
"""Each relapse multiplies the time until the next trial by this."""
LONGEST_SEC: Final = 300.0
"""The longest time until the next trial, unless recovery_timeout itself is longer."""
JITTER: Final = 0.1
"""The time until a trial varies by up to this share, so that servers that failed together do not retry together."""
TRIAL_RETRY_SEC: Final = 5
"""When to call again during a trial, whose duration is unknown."""


class State(StrEnum):
    """The states of a breaker."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Result(StrEnum):
    """The result of a call, as the breaker counts it. A call that shows nothing about its tool has no result."""

    SUCCESS = "success"
    FAILURE = "failure"
    REFUSED = "refused"


class BreakerSettings(Protocol):
    """The settings of a breaker: section ``circuit_breaker`` of the configuration."""

    @property
    def failure_threshold(self) -> int:
        """How many failures in a row open it."""
        ...

    @property
    def recovery_timeout(self) -> int:
        """Seconds until an open breaker lets a call through."""
        ...

    @property
    def half_open_success_threshold(self) -> int:
        """How many successes close a half-open breaker."""
        ...


class Observer(Protocol):
    """Observes breakers. Both methods are called after the breaker has its new state."""

    def breaker_called(self, name: str, result: Result) -> None:
        """A call was refused, or ended as a success or a failure."""
        ...

    def breaker_changed(self, name: str, before: State, after: State) -> None:
        """The state changed."""
        ...


@dataclass(frozen=True, slots=True)
class BreakerView:
    """The present state of a breaker. ``forced`` is true if an operator has set the state.

    ``failures`` counts failures in a row, ``relapses`` the trials that failed since it was last closed. ``retry_after``
    is in seconds, and 0 unless it is open.
    """

    name: str
    state: State
    forced: bool
    failures: int
    relapses: int
    retry_after: int


class Permit:
    """One call that was let through. Report its result once, or not at all if it shows nothing about the tool."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._reported = False
        # The state change that this call belongs to. Its result does not count for later states.
        self.generation = -1
        self.trial = False

    def confirm(self) -> None:
        """Check again after a wait. Raises BusyError ``circuit_open`` if the breaker has opened meanwhile.

        If it is half-open by now, the call becomes its trial.
        """
        self._breaker._confirm(self)  # noqa: SLF001 - the two classes belong together

    def success(self) -> None:
        """Report that the tool did its work."""
        self._report(Result.SUCCESS)

    def failure(self) -> None:
        """Report that the tool itself failed."""
        self._report(Result.FAILURE)

    def _report(self, result: Result) -> None:
        if not self._reported:
            self._reported = True
            self._breaker._ended(result, self.generation)  # noqa: SLF001 - as above


class Breaker:
    """The breaker of one tool. For the thread of one event loop.

    ``settings`` is called for every decision. ``clock`` returns seconds and never goes back. ``draw`` returns a number
    from 0 to 1 for the jitter.
    """

    def __init__(
        self,
        name: str,
        settings: Callable[[], BreakerSettings],
        *,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self._settings = settings
        self._observer = observer
        self._clock = clock
        self._draw = draw
        self._state = State.CLOSED
        self._forced = False
        # Increases with every change of state.
        self._generation = 0
        self._failures = self._relapses = self._successes = 0
        self._opened = 0.0
        self._jitter = 1.0
        self._trial = False

    @property
    def state(self) -> State:
        """The state. An open breaker becomes half-open when its time is over."""
        self._settle()
        return self._state

    def view(self) -> BreakerView:
        """Return the present state."""
        state = self.state
        wait = self._retry_after() if state is State.OPEN else 0
        return BreakerView(self.name, state, self._forced, self._failures, self._relapses, wait)

    def check(self) -> None:
        """Raise BusyError ``circuit_open`` if a call would be refused now. Starts no trial."""
        self._settle()
        if self._state is State.OPEN or (self._state is State.HALF_OPEN and self._trial):
            error = self._refusal()
            self._observe(Result.REFUSED)
            raise error

    @contextmanager
    def permit(self) -> Iterator[Permit]:
        """Let a call through for the length of the block, or raise BusyError ``circuit_open`` with ``retry_after``.

        A half-open breaker lets one call through at a time. A block that ends without a report (refused, cancelled, or
        an error of the caller) changes nothing.
        """
        permit = Permit(self)
        self._enter(permit)
        try:
            yield permit
        finally:
            if permit.trial and permit.generation == self._generation:
                self._trial = False

    def force_open(self) -> None:
        """Refuse every call until `force_close` or `reset`."""
        self._forced = True
        self._move(State.OPEN)

    def force_close(self) -> None:
        """Let every call through, whatever its result, until `force_open` or `reset`."""
        self._forced = True
        self._move(State.CLOSED)

    def reset(self) -> None:
        """Remove a forced state, and close the breaker as after a restart."""
        self._forced = False
        self._move(State.CLOSED)

    def _enter(self, permit: Permit) -> None:
        self.check()
        permit.generation, permit.trial = self._generation, self._state is State.HALF_OPEN
        self._trial = permit.trial

    def _confirm(self, permit: Permit) -> None:
        if permit.generation != self._generation:
            self._enter(permit)

    def _ended(self, result: Result, generation: int) -> None:
        if generation == self._generation and not self._forced:
            if self._state is State.CLOSED:
                self._failures = self._failures + 1 if result is Result.FAILURE else 0
                if self._failures >= self._settings().failure_threshold:
                    self._move(State.OPEN)
            elif result is Result.FAILURE:
                self._relapses += 1
                self._move(State.OPEN)
            else:
                self._successes += 1
                if self._successes >= self._settings().half_open_success_threshold:
                    self._move(State.CLOSED)
        self._observe(result)

    def _settle(self) -> None:
        if self._state is State.OPEN and not self._forced and self._clock() >= self._due():
            self._move(State.HALF_OPEN)

    def _due(self) -> float:
        base = float(self._settings().recovery_timeout)
        # The exponent is bounded so that the float does not overflow. The time reaches its own limit much earlier.
        grown = base * BACKOFF ** min(self._relapses, 64)
        return self._opened + min(grown, max(base, LONGEST_SEC)) * self._jitter

    def _move(self, state: State) -> None:
        before, self._state = self._state, state
        self._generation += 1
        self._trial = False
        self._successes = 0
        if state is State.OPEN:
            self._opened = self._clock()
            self._jitter = 1 + JITTER * (2 * self._draw() - 1)
        elif state is State.CLOSED:
            self._failures = self._relapses = 0
        if self._observer is not None and before is not state:
            self._observer.breaker_changed(self.name, before, state)

    def _observe(self, result: Result) -> None:
        if self._observer is not None:
            self._observer.breaker_called(self.name, result)

    def _retry_after(self) -> int:
        # The time when an operator closes a forced breaker is unknown, so recovery_timeout is reported instead.
        wait = self._settings().recovery_timeout if self._forced else self._due() - self._clock()
        return max(math.ceil(wait), 1)

    def _refusal(self) -> BusyError:
        if self._state is State.HALF_OPEN:
            return BusyError(
                f"{self.name} failed repeatedly. One call is testing it now.",
                code="circuit_open",
                tool=self.name,
                state=self._state.value,
                retry_after=TRIAL_RETRY_SEC,
            )
        details: dict[str, Any] = {
            "tool": self.name,
            "state": self._state.value,
            "retry_after": self._retry_after(),
        }
        if self._forced:
            return BusyError(
                f"An operator has opened the circuit breaker of {self.name}.",
                code="circuit_open",
                hint="Use another tool, or call again after an operator has closed it.",
                forced=True,
                **details,
            )
        times = f"{self._relapses} trials failed too" if self._relapses else f"{self._failures} times in a row"
        return BusyError(f"{self.name} failed repeatedly ({times}).", code="circuit_open", **details)


class Breakers:
    """The breakers of all tools. Each is made when its tool is first called."""

    def __init__(
        self,
        settings: Callable[[], BreakerSettings],
        *,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._observer = observer
        self._clock = clock
        self._draw = draw
        self._breakers: dict[str, Breaker] = {}

    def of(self, tool: str) -> Breaker:
        """Return the breaker of a tool. ``tool`` must be a name in the registry."""
        breaker = self._breakers.get(tool)
        if breaker is None:
            breaker = self._breakers[tool] = Breaker(
                tool, self._settings, observer=self._observer, clock=self._clock, draw=self._draw
            )
        return breaker

    def snapshot(self) -> tuple[BreakerView, ...]:
        """Return the present state of every breaker, sorted by name."""
        return tuple(self._breakers[name].view() for name in sorted(self._breakers))
