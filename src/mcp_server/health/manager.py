"""Running the checks: side by side, each with its time limit, from time to time and when something is doubted."""

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

from mcp_server.logger import get_logger
from mcp_server.config.sections import HealthConfig
from mcp_server.errors import NetworkToolsError
from mcp_server.health.background import LoopLag
from mcp_server.health.model import (
    Finding,
    HealthCheckPriority,
    HealthCheckResult,
    HealthStatus,
    SystemHealth,
    changes,
    overall,
    worst,
)

logger = get_logger(__name__)

WAIT_SEC: Final = 3.0
"""How long a caller waits for checks that are under way where nothing fresh is known."""
MIN_PAUSE_SEC: Final = 1.0
"""Least time between two rounds of checks that nobody waits for, however often something fails meanwhile."""
HISTORY: Final = 120
"""Rounds that are kept: an hour at the default interval."""

Check = Callable[[], Awaitable[Finding | Sequence[Finding]]]
Observer = Callable[[SystemHealth, SystemHealth | None], None]


@dataclass(frozen=True, slots=True)
class _Registered:
    name: str
    priority: HealthCheckPriority
    check: Check


class HealthCheckManager:
    """Runs checks side by side and keeps what they found; used from one event loop.

    ``settings`` is asked at every round, so that a reload holds. A check is a coroutine function; blocking work is
    wrapped in `Threaded`. One that takes longer than ``health.timeout`` or raises is a finding itself: degraded, and
    unusable when that happens twice in a row.
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
        self._doubts = 0
        self._seen_doubts = 0
        self._invalidated = asyncio.Event()

    def register(self, name: str, priority: HealthCheckPriority, check: Check) -> None:
        """Add a check; its findings stand at this place among the others. ValueError for a name that is taken."""
        if name in self._checks:
            raise ValueError(f"a health check is already called {name!r}")
        self._checks[name] = _Registered(name, priority, check)
        self.invalidate()

    def observe(self, observer: Observer) -> None:
        """Have ``observer`` called after every round with it and the one before, for metrics and events."""
        self._observers.append(observer)

    def invalidate(self) -> None:
        """Something failed or was changed: what is known no longer counts, and the next round comes at once."""
        self._doubts += 1
        self._invalidated.set()

    async def current(self) -> SystemHealth:
        """What is known where that is fresh, else what the checks answer if that comes within `WAIT_SEC`.

        Otherwise what was known last, degraded at least, with a ``message`` that says how old it is.
        """
        if self.latest is not None and self._counts(self.latest):
            return self.latest
        asked = self._clock()
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SEC):
                while True:
                    health = await self.check()
                    # A round that was begun before the question may have been overtaken by what raised the doubt.
                    if health.began >= asked or self._counts(health):
                        return health
        return self._outdated()

    async def check(self) -> SystemHealth:
        """Run every check now, or wait for the round that is under way."""
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(self._check_all())
        return await asyncio.shield(self._round)

    def start(self, delay: float = 0.0) -> None:
        """Check every ``health.check_interval`` seconds, first after ``delay`` seconds; safe to call twice."""
        if self._watching is None:
            self.lag.start()
            self._watching = asyncio.create_task(self._watch(delay))

    async def stop(self) -> None:
        """End the checks; safe to call twice. A thread that hangs is left behind, and holds nothing up."""
        self.lag.stop()
        tasks = [task for task in (self._watching, self._round) if task is not None]
        self._watching = self._round = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _counts(self, health: SystemHealth) -> bool:
        return self._seen_doubts == self._doubts and not health.is_stale()

    def _outdated(self) -> SystemHealth:
        now, latest = datetime.now(UTC), self.latest
        if latest is None:
            text = "the first checks are still running"
            return SystemHealth(HealthStatus.DEGRADED, (), now, self._clock(), text, self._clock)
        text = f"the checks are still running; what they found last is {latest.age_seconds:.0f} s old"
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
        """Wait, but not longer than until something is doubted that no round has seen."""
        if seconds > 0 and self._seen_doubts == self._doubts:
            self._invalidated.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._invalidated.wait(), seconds)

    async def _check_all(self) -> SystemHealth:
        began, at, doubts = self._clock(), datetime.now(UTC), self._doubts
        groups = await asyncio.gather(*(self._check_one(check) for check in tuple(self._checks.values())))
        results = tuple(result for group in groups for result in group)
        health = SystemHealth(overall(results), results, at, began, clock=self._clock)
        before, self.latest, self._seen_doubts = self.latest, health, doubts
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
            # Not wait_for, which waits for a task that it has cancelled however long that takes.
            await asyncio.wait({task}, timeout=timeout)
        finally:
            task.cancel()
            task.add_done_callback(_forget)
        if not task.done():
            found: Sequence[Finding] = [
                self._miss(registered, f"no answer within {timeout} s", "see what it waits for")
            ]
        else:
            found = self._result_of(task, registered)
        duration = time.perf_counter() - began
        return [
            HealthCheckResult(
                finding.name or registered.name,
                finding.status,
                finding.detail,
                registered.priority if finding.priority is None else finding.priority,
                registered.name,
                at,
                duration,
                finding.works,
                finding.remedy,
            )
            for finding in found
        ]

    def _result_of(
        self, task: asyncio.Future[Finding | Sequence[Finding]], registered: _Registered
    ) -> Sequence[Finding]:
        try:
            found = task.result()
        except NetworkToolsError as error:
            self._missed.pop(registered.name, None)
            return [Finding(HealthStatus.UNHEALTHY, error.message, remedy=error.hint)]
        except (Exception, asyncio.CancelledError) as error:
            if not self._missed[registered.name]:
                logger.warning("health.check_failed", check=registered.name, exc_info=error)
            return [
                self._miss(registered, f"the check itself failed: {type(error).__name__}", "the log has the reason")
            ]
        self._missed.pop(registered.name, None)
        return [found] if isinstance(found, Finding) else found

    def _miss(self, registered: _Registered, detail: str, remedy: str) -> Finding:
        """Once may be a busy moment; twice is a part that cannot be relied on."""
        self._missed[registered.name] += 1
        status = HealthStatus.DEGRADED if self._missed[registered.name] == 1 else HealthStatus.UNHEALTHY
        return Finding(status, detail, remedy=remedy)


def log_changes(after: SystemHealth, before: SystemHealth | None) -> None:
    """An observer that writes one line for each finding that is another one now."""
    for change in changes(before, after):
        severity = logging.INFO if change.after is HealthStatus.HEALTHY else logging.WARNING
        name, words = change.name.replace(" ", "_"), (change.before.word, change.after.word)
        logger.log(severity, "health.changed check=%s before=%s after=%s: %s", name, *words, change.detail)


def _forget(task: asyncio.Future[Any]) -> None:
    """Ask a finished task for its exception, which nobody else will."""
    if not task.cancelled():
        task.exception()
