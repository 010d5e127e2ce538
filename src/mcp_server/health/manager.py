"""`HealthCheckManager` runs the checks: concurrently, each with a time limit, at an interval and after a failure."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from mcp_server.config.sections import HealthConfig
from mcp_server.errors import NetworkToolsError
from mcp_server.health.background import LoopLag
from mcp_server.health.model import (
    CheckOutcome,
    HealthCheckPriority,
    HealthCheckResult,
    HealthStatus,
    SystemHealth,
    changes,
    overall,
    worst,
)
from mcp_server.logger import get_logger

logger = get_logger(__name__)

WAIT_SEC: Final = 3.0
"""Seconds that a caller waits for running checks if there is no fresh result."""
MIN_PAUSE_SEC: Final = 1.0
"""Shortest time between two rounds that no caller waits for, however often something fails."""
HISTORY: Final = 120
"""Rounds that are kept: one hour at the default interval."""

Check = Callable[[], Awaitable[CheckOutcome | Sequence[CheckOutcome]]]
Observer = Callable[[SystemHealth, SystemHealth | None], None]


@dataclass(frozen=True, slots=True)
class _Registered:
    name: str
    priority: HealthCheckPriority
    check: Check


class HealthCheckManager:
    """Runs checks concurrently and keeps their results. Use it from one event loop.

    ``settings`` is called at every round, so that a reload takes effect. A check is a coroutine function; wrap blocking
    work in `Threaded`. A check that takes longer than ``health.timeout`` or raises is degraded, and unhealthy if that
    happens twice in a row.
    """

    def __init__(self, settings: Callable[[], HealthConfig], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.latest: SystemHealth | None = None
        """The last round that was finished."""
        self.history: deque[SystemHealth] = deque(maxlen=HISTORY)
        """The last rounds, oldest first."""
        self.lag = LoopLag()
        self._settings = settings
        self._clock = clock
        self._checks: dict[str, _Registered] = {}
        self._observers: list[Observer] = []
        self._missed: Counter[str] = Counter()
        self._round: asyncio.Task[SystemHealth] | None = None
        self._watching: asyncio.Task[None] | None = None
        # Number of calls of `invalidate`: all of them, and those before the last finished round was started.
        self._invalidations = 0
        self._checked_invalidations = 0
        self._invalidated = asyncio.Event()

    def register(self, name: str, priority: HealthCheckPriority, check: Check) -> None:
        """Add a check after those that are registered. Raises ValueError if the name is taken."""
        if name in self._checks:
            raise ValueError(f"a health check is already called {name!r}")
        self._checks[name] = _Registered(name, priority, check)
        self.invalidate()

    def observe(self, observer: Observer) -> None:
        """Call ``observer`` after every round with its health and that of the previous round."""
        self._observers.append(observer)

    def invalidate(self) -> None:
        """Discard the present results because something failed or was changed; the next round starts at once."""
        self._invalidations += 1
        self._invalidated.set()

    async def current(self) -> SystemHealth:
        """Return the last results if they are fresh, otherwise new results if they are ready within `WAIT_SEC`.

        If they are not, the last results are returned, degraded at least, with a ``message`` that states their age.
        """
        if self.latest is not None and self._is_valid(self.latest):
            return self.latest
        asked = self._clock()
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SEC):
                while True:
                    health = await self.check()
                    # A round that was started before this call may have missed the failure that invalidated it.
                    if health.began >= asked or self._is_valid(health):
                        return health
        return self._outdated()

    async def check(self) -> SystemHealth:
        """Run every check now. If a round is running, wait for that one instead."""
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(self._check_all())
        return await asyncio.shield(self._round)

    def start(self, delay: float = 0.0) -> None:
        """Run the checks every ``health.check_interval`` seconds, first after ``delay`` seconds. Safe to call twice."""
        if self._watching is None:
            self.lag.start()
            self._watching = asyncio.create_task(self._watch(delay))

    async def stop(self) -> None:
        """Stop the checks. Safe to call twice. A thread that hangs is abandoned and delays nothing."""
        self.lag.stop()
        tasks = [task for task in (self._watching, self._round) if task is not None]
        self._watching = self._round = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_valid(self, health: SystemHealth) -> bool:
        return self._checked_invalidations == self._invalidations and not health.is_stale()

    def _outdated(self) -> SystemHealth:
        now, latest = datetime.now(UTC), self.latest
        if latest is None:
            text = "The first checks are still running."
            return SystemHealth(HealthStatus.DEGRADED, (), now, self._clock(), text, self._clock)
        text = f"The checks are still running. The last results are {latest.age_seconds:.0f} s old."
        status = worst(latest.status, HealthStatus.DEGRADED)
        return SystemHealth(status, latest.results, latest.checked_at, latest.began, text, self._clock)

    async def _watch(self, delay: float) -> None:
        await self._pause(delay)
        while True:
            began = self._clock()
            try:
                await self.check()
            except Exception:
                logger.exception("health.round_failed")
            await asyncio.sleep(MIN_PAUSE_SEC)
            await self._pause(self._settings().check_interval - (self._clock() - began))

    async def _pause(self, seconds: float) -> None:
        """Wait for ``seconds``, or until the results are invalidated."""
        if seconds > 0 and self._checked_invalidations == self._invalidations:
            self._invalidated.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._invalidated.wait(), seconds)

    async def _check_all(self) -> SystemHealth:
        began, at, invalidations = self._clock(), datetime.now(UTC), self._invalidations
        groups = await asyncio.gather(*(self._check_one(check) for check in tuple(self._checks.values())))
        results = tuple(result for group in groups for result in group)
        health = SystemHealth(overall(results), results, at, began, clock=self._clock)
        before, self.latest, self._checked_invalidations = self.latest, health, invalidations
        self.history.append(health)
        for observer in self._observers:
            try:
                observer(health, before)
            except Exception:
                logger.exception("health.observer_failed")
        return health

    async def _check_one(self, registered: _Registered) -> list[HealthCheckResult]:
        began, at, timeout = time.perf_counter(), datetime.now(UTC), self._settings().timeout
        task = asyncio.ensure_future(registered.check())
        try:
            # Not wait_for: it would wait, without a limit, for the task that it has cancelled.
            await asyncio.wait({task}, timeout=timeout)
        finally:
            task.cancel()
            task.add_done_callback(_retrieve_exception)
        if not task.done():
            outcomes: Sequence[CheckOutcome] = [
                self._miss(registered, f"no answer within {timeout} s", "find out what it waits for")
            ]
        else:
            outcomes = self._outcomes_of(task, registered)
        duration = time.perf_counter() - began
        return [
            HealthCheckResult(
                outcome.name or registered.name,
                outcome.status,
                outcome.detail,
                registered.priority if outcome.priority is None else outcome.priority,
                registered.name,
                at,
                duration,
                outcome.works,
                outcome.remedy,
            )
            for outcome in outcomes
        ]

    def _outcomes_of(
        self, task: asyncio.Future[CheckOutcome | Sequence[CheckOutcome]], registered: _Registered
    ) -> Sequence[CheckOutcome]:
        try:
            found = task.result()
        except NetworkToolsError as error:
            self._missed.pop(registered.name, None)
            return [CheckOutcome(HealthStatus.UNHEALTHY, error.message, remedy=error.hint)]
        except (Exception, asyncio.CancelledError) as error:
            if not self._missed[registered.name]:
                logger.warning("health.check_failed", check=registered.name, exc_info=error)
            return [self._miss(registered, f"the check itself failed: {type(error).__name__}", "see the log")]
        self._missed.pop(registered.name, None)
        return [found] if isinstance(found, CheckOutcome) else found

    def _miss(self, registered: _Registered, detail: str, remedy: str) -> CheckOutcome:
        """Return degraded for the first miss, which may be a busy moment, and unhealthy for the next ones."""
        self._missed[registered.name] += 1
        status = HealthStatus.DEGRADED if self._missed[registered.name] == 1 else HealthStatus.UNHEALTHY
        return CheckOutcome(status, detail, remedy=remedy)


def log_changes(after: SystemHealth, before: SystemHealth | None) -> None:
    """Log one line for each result whose status changed. It is an observer of `HealthCheckManager`."""
    for change in changes(before, after):
        severity = logging.INFO if change.after is HealthStatus.HEALTHY else logging.WARNING
        logger.log(
            severity,
            "health.changed",
            check=change.name,
            before=change.before.word,
            after=change.after.word,
            message=change.detail,
        )


def _retrieve_exception(task: asyncio.Future[Any]) -> None:
    """Read the exception of a finished task, so that asyncio does not log it as never retrieved."""
    if not task.cancelled():
        task.exception()
