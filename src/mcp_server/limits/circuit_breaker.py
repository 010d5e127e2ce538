"""A breaker for each tool: one that fails again and again is left alone for a while, then tried with one call.

::

    closed ── failure_threshold failures in a row ──> open
    open ── recovery_timeout, longer after each relapse ──> half_open: one call at a time
    half_open ── half_open_success_threshold successes ──> closed;  one failure ──> open

What counts as a failure is the caller's to say. State is of this process alone, and a restart begins closed.
Source: M. Nygard, Release It!, chapter 5; M. Fowler, CircuitBreaker (2014).
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
"""What each relapse multiplies the time until the next trial by."""
LONGEST_SEC: Final = 300.0
"""Where that ends, unless recovery_timeout itself is longer."""
JITTER: Final = 0.1
"""The time until a trial is off by up to this share, so that servers that failed together do not try together."""
TRIAL_RETRY_SEC: Final = 5
"""When to call again while a trial is under way: how long it takes is not known."""


class State(StrEnum):
    """The states of a breaker."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Result(StrEnum):
    """How a call ended for the breaker; a call that ended with neither success nor failure has no result."""

    SUCCESS = "success"
    FAILURE = "failure"
    REFUSED = "refused"


class Settings(Protocol):
    """The numbers of a breaker, as ``circuit_breaker`` of the configuration has them."""

    @property
    def failure_threshold(self) -> int:
        """Failures in a row that open it."""
        ...

    @property
    def recovery_timeout(self) -> int:
        """Seconds until an open one lets a call through."""
        ...

    @property
    def half_open_success_threshold(self) -> int:
        """Successes that close a half-open one."""
        ...


class Observer(Protocol):
    """Who is told what breakers do; both are called once the breaker has its new state."""

    def breaker_called(self, name: str, result: Result) -> None:
        """A call was refused or ended with a verdict."""
        ...

    def breaker_changed(self, name: str, before: State, after: State) -> None:
        """The state changed."""
        ...


@dataclass(frozen=True, slots=True)
class BreakerView:
    """A breaker as it is now. ``forced`` says that an operator holds it; ``retry_after`` is in seconds, 0 when closed.

    ``failures`` are those in a row, ``relapses`` the trials that failed since it was last closed.
    """

    name: str
    state: State
    forced: bool
    failures: int
    relapses: int
    retry_after: int


class Permit:
    """One call that was let through. Say once how it ended, or nothing where it tells nothing about the tool."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._told = False
        # What it was let through in: a call says nothing about what the breaker has become since.
        self.revision = -1
        self.trial = False

    def confirm(self) -> None:
        """Ask again after a wait: raises BusyError ``circuit_open`` where the breaker has opened meanwhile.

        Where it is half-open by now, the call becomes its trial.
        """
        self._breaker._confirm(self)  # noqa: SLF001 - the two classes are one thing

    def success(self) -> None:
        """The tool did its work."""
        self._notify(Result.SUCCESS)

    def failure(self) -> None:
        """The tool failed, by its own fault."""
        self._notify(Result.FAILURE)

    def _notify(self, result: Result) -> None:
        if not self._told:
            self._told = True
            self._breaker._ended(result, self.revision)  # noqa: SLF001 - as above


class Breaker:
    """The breaker of one tool; for one event loop's thread.

    ``settings`` are asked for at every decision. ``clock`` gives seconds and does not go back, ``draw`` a number
    from 0 to 1 for the jitter.
    """

    def __init__(
        self,
        name: str,
        settings: Callable[[], Settings],
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
        # Goes up with every change of state.
        self._revision = 0
        self._failures = self._relapses = self._successes = 0
        self._opened = 0.0
        self._jitter = 1.0
        self._trial = False

    @property
    def state(self) -> State:
        """The state; an open breaker whose time is over is half-open."""
        self._settle()
        return self._state

    def view(self) -> BreakerView:
        """The breaker as it is now."""
        state = self.state
        wait = self._retry_after() if state is State.OPEN else 0
        return BreakerView(self.name, state, self._forced, self._failures, self._relapses, wait)

    def check(self) -> None:
        """Raise BusyError ``circuit_open`` where a call would be refused now, without taking the trial's place."""
        self._settle()
        if self._state is State.OPEN or (self._state is State.HALF_OPEN and self._trial):
            error = self._refusal()
            self._notify(Result.REFUSED)
            raise error

    @contextmanager
    def permit(self) -> Iterator[Permit]:
        """Let a call through for the length of the block, or raise BusyError ``circuit_open`` with ``retry_after``.

        A half-open breaker lets one in at a time. A block that ends without a verdict (refused, cancelled, or the
        caller's own error) gives the place back and changes nothing.
        """
        permit = Permit(self)
        self._enter(permit)
        try:
            yield permit
        finally:
            if permit.trial and permit.revision == self._revision:
                self._trial = False

    def force_open(self) -> None:
        """Refuse every call until `force_close` or `reset`."""
        self._forced = True
        self._move(State.OPEN)

    def force_close(self) -> None:
        """Let every call through, whatever fails, until `force_open` or `reset`."""
        self._forced = True
        self._move(State.CLOSED)

    def reset(self) -> None:
        """Lift what was forced and begin closed, as after a restart."""
        self._forced = False
        self._move(State.CLOSED)

    def _enter(self, permit: Permit) -> None:
        self.check()
        permit.revision, permit.trial = self._revision, self._state is State.HALF_OPEN
        self._trial = permit.trial

    def _confirm(self, permit: Permit) -> None:
        if permit.revision != self._revision:
            self._enter(permit)

    def _ended(self, result: Result, revision: int) -> None:
        if revision == self._revision and not self._forced:
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
        self._notify(result)

    def _settle(self) -> None:
        if self._state is State.OPEN and not self._forced and self._clock() >= self._due():
            self._move(State.HALF_OPEN)

    def _due(self) -> float:
        base = float(self._settings().recovery_timeout)
        # The exponent is bounded for the sake of the float; the product is, long before.
        grown = base * BACKOFF ** min(self._relapses, 64)
        return self._opened + min(grown, max(base, LONGEST_SEC)) * self._jitter

    def _move(self, state: State) -> None:
        before, self._state = self._state, state
        self._revision += 1
        self._trial = False
        self._successes = 0
        if state is State.OPEN:
            self._opened = self._clock()
            self._jitter = 1 + JITTER * (2 * self._draw() - 1)
        elif state is State.CLOSED:
            self._failures = self._relapses = 0
        if self._observer is not None and before is not state:
            self._observer.breaker_changed(self.name, before, state)

    def _notify(self, result: Result) -> None:
        if self._observer is not None:
            self._observer.breaker_called(self.name, result)

    def _retry_after(self) -> int:
        # An operator's word has no end that is known; recovery_timeout is as good a time to ask again as any.
        wait = self._settings().recovery_timeout if self._forced else self._due() - self._clock()
        return max(math.ceil(wait), 1)

    def _refusal(self) -> BusyError:
        if self._state is State.HALF_OPEN:
            return BusyError(
                f"{self.name} failed again and again; one call is trying it now",
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
                f"{self.name}: an operator has opened its circuit breaker",
                code="circuit_open",
                hint="Use another tool, or call again when an operator has closed it.",
                forced=True,
                **details,
            )
        times = f"{self._relapses} trials since failed too" if self._relapses else f"{self._failures} times in a row"
        return BusyError(f"{self.name} failed again and again ({times})", code="circuit_open", **details)


class Breakers:
    """The breakers of all tools, each made when its tool is first called."""

    def __init__(
        self,
        settings: Callable[[], Settings],
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
        """The breaker of a tool; the name must be one of the registry."""
        breaker = self._breakers.get(tool)
        if breaker is None:
            breaker = self._breakers[tool] = Breaker(
                tool, self._settings, observer=self._observer, clock=self._clock, draw=self._draw
            )
        return breaker

    def snapshot(self) -> tuple[BreakerView, ...]:
        """Every breaker there is as it is now, by name."""
        return tuple(self._breakers[name].view() for name in sorted(self._breakers))
