"""Rate limits: calls per minute, per caller and tool, and in total.

Calls are counted in memory, or in a Redis that several servers share. The library `limits` is imported at the first
call, in a thread.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from mcp_server.errors import BusyError
from mcp_server.logger import get_logger

if TYPE_CHECKING:
    from limits.aio.strategies import MovingWindowRateLimiter
    from redis.asyncio import ConnectionPool

    from mcp_server.config.sections import RateLimitConfig
    from mcp_server.limits.rate_limit_windows import CallTimes

logger = get_logger(__name__)

ANSWER_SEC: Final = 1.0
"""Seconds that a call waits for Redis. After that it is counted in memory."""
RETRY_SEC: Final = 5.0
"""Seconds without a request to Redis after it failed. Then one call tries it again."""


@dataclass(frozen=True, slots=True)
class _Limit:
    """At most ``calls`` calls within a minute under a key. 0 means no limit. ``problem`` is the refusal message."""

    calls: int
    key: tuple[str, ...]
    problem: str


_Refusal = tuple[_Limit, float]
"""The limit that is reached, and the seconds until a call is possible again."""


@dataclass(frozen=True, slots=True)
class _Reply:
    """Whether Redis answered, and the limit that it refused the call for."""

    answered: bool
    refusal: _Refusal | None = None


class RateLimiter:
    """Refuses a call that exceeds a limit within any minute. Refused calls are not counted.

    ``settings`` is called for every call, so a reload applies to the next call, and the counts stay. While Redis fails,
    calls are counted in this process only, including calls that this process let through before, and `problem` says
    so. ``clock`` returns seconds and never goes back.
    """

    def __init__(self, settings: Callable[[], RateLimitConfig], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._memory: MovingWindowRateLimiter | None = None
        self._times: CallTimes | None = None
        self._shared: MovingWindowRateLimiter | None = None
        self._pool: ConnectionPool | None = None
        self._url = ""
        self._problem: str | None = None
        self._retry_at = 0.0
        self._making = asyncio.Lock()

    @property
    def problem(self) -> str | None:
        """Why calls are not counted in Redis although it is configured. None if they are."""
        return self._problem if self._settings().storage_url else None

    async def hit(self, actor: str, tool: str, own_limit: int | None = None) -> None:
        """Count a call of ``tool`` by ``actor``. ``own_limit`` applies if it is lower than the configured limit.

        Raises BusyError ``rate_limited`` if the call exceeds a limit, with ``retry_after`` in seconds and ``limit``.
        """
        settings = self._settings()
        calls = min((each for each in (settings.calls_per_minute, own_limit) if each), default=0)
        problem = f"{actor} has called {tool} {calls} times within a minute, which is the limit."
        own = _Limit(calls, ("one", quote(actor, safe=""), tool), problem)
        calls = settings.total_calls_per_minute
        total = _Limit(calls, ("all",), f"Tools were called {calls} times within a minute, which is the limit.")
        if not own.calls and not total.calls:
            return
        memory = await self._local()
        shared = _Reply(answered=False)
        if settings.storage_url:
            shared = await self._ask(settings.storage_url, lambda windows: _count(windows, own, total, time.time))
        refusal = shared.refusal
        if refusal is None:
            # Calls that Redis let through are counted here too, so that an outage does not start from zero.
            local = await _count(memory, own, total, self._clock)
            refusal = None if shared.answered else local
        if refusal is not None:
            limit, wait = refusal
            raise BusyError(
                limit.problem,
                code="rate_limited",
                tool=tool,
                limit=limit.calls,
                retry_after=min(max(math.ceil(wait), 1), 60),
            )

    async def close(self) -> None:
        """Close the connections to Redis. May be called twice. A later call opens them again."""
        pool, self._pool, self._shared, self._url = self._pool, None, None, ""
        if pool is not None:
            await pool.disconnect()

    async def check(self) -> str | None:
        """Check whether Redis answers, if it is configured, and return `problem`. Takes at most `ANSWER_SEC`."""
        url = self._settings().storage_url
        if url:
            await self._local()
            await self._ask(url, _look)
        return self.problem

    async def _ask(self, url: str, question: Callable[[MovingWindowRateLimiter], Awaitable[_Refusal | None]]) -> _Reply:
        """Ask Redis. After a failure it is not asked again for `RETRY_SEC`."""
        if self._problem is not None and url == self._url and self._clock() < self._retry_at:
            return _Reply(answered=False)
        self._retry_at = self._clock() + RETRY_SEC  # only this call waits for the attempt
        try:
            windows = await self._redis(url)
            async with asyncio.timeout(ANSWER_SEC):
                refusal = await question(windows)
        except Exception as error:  # noqa: BLE001 - a driver or server may raise anything, and the call must not fail
            self._lost(error)
            return _Reply(answered=False)
        self._found()
        return _Reply(answered=True, refusal=refusal)

    async def _local(self) -> MovingWindowRateLimiter:
        if self._memory is None:
            await asyncio.to_thread(import_module, "mcp_server.limits.rate_limit_windows")
            from mcp_server.limits.rate_limit_windows import CallTimes, memory_windows

            if self._memory is None:  # another call did this meanwhile
                self._times = CallTimes(self._clock)
                self._memory = memory_windows(self._times)
        return self._memory

    async def _redis(self, url: str) -> MovingWindowRateLimiter:
        async with self._making:
            if self._shared is None or url != self._url:
                await self.close()
                self._url = url
                from mcp_server.limits.rate_limit_windows import redis_windows

                shared, self._pool = await asyncio.to_thread(redis_windows, url)
                self._shared = shared
            return self._shared

    def _lost(self, error: Exception) -> None:
        if self._problem is None:
            logger.warning("rate_limit.counting_in_memory", reason=_reason(error))
        self._problem = f"Calls are counted in this process only: {_reason(error)}."

    def _found(self) -> None:
        if self._problem is not None:
            logger.info("rate_limit.counting_in_redis")
        self._problem = None


async def _count(
    windows: MovingWindowRateLimiter, own: _Limit, total: _Limit, now: Callable[[], float]
) -> _Refusal | None:
    """Count a call under both limits. Returns the limit that is reached, if any."""
    from mcp_server.limits.rate_limit_windows import CallsPerMinute

    own_item, total_item = CallsPerMinute(own.calls), CallsPerMinute(total.calls)
    reached = None
    # The total limit is tested first, so that a call that it refuses does not count for the caller.
    if total.calls and not await windows.test(total_item, *total.key):
        reached = total, total_item
    elif own.calls and not await windows.hit(own_item, *own.key):
        reached = own, own_item
    elif total.calls and not await windows.hit(total_item, *total.key):
        reached = total, total_item
    if reached is None:
        return None
    limit, item = reached
    stats = await windows.get_window_stats(item, *limit.key)
    return limit, stats.reset_time - now()


async def _look(windows: MovingWindowRateLimiter) -> None:
    """Read one key, as every call does."""
    from mcp_server.limits.rate_limit_windows import CallsPerMinute

    await windows.test(CallsPerMinute(1), "all")


def _reason(error: Exception) -> str:
    """Return why Redis cannot be used. The URL is not repeated, because it may hold a password."""
    if isinstance(error, ImportError):
        return "the package redis is not installed (pip install 'mcp-network-tools[redis]')"
    if isinstance(error, ValueError):
        return "rate_limit.storage_url cannot be read"
    if isinstance(error, TimeoutError):
        return f"Redis did not answer within {ANSWER_SEC:g} s"
    return f"Redis failed: {error.__cause__ or error}"
