"""How often tools may be called: so many times within a minute, by one caller for one tool and by all for all.

Counted in memory, or in a Redis that several servers share. `limits` is imported at the first call, in a thread.
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
    from mcp_server.limits.rate_limit_windows import Counts

logger = get_logger(__name__)

ANSWER_SEC: Final = 1.0
"""How long a call waits for Redis before it is counted in memory."""
RETRY_SEC: Final = 5.0
"""How long Redis is left alone after it failed; then one call tries it."""


@dataclass(frozen=True, slots=True)
class _Bound:
    """At most ``most`` calls within a minute under a key; 0: no bound."""

    most: int
    key: tuple[str, ...]
    words: str


_Refusal = tuple[_Bound, float]
"""The bound that has no room, and the seconds until it has."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Whether Redis answered, and what it refused."""

    answered: bool
    refusal: _Refusal | None = None


class RateLimiter:
    """Refuses the call that is one too many within any minute; what was refused is not counted.

    ``settings`` are asked for at every call, so a reload holds from the next one on, and keeps what was counted.
    While Redis fails, calls are counted in this process alone, from what it let through itself, and `problem` says so.
    ``clock`` gives seconds and does not go back.
    """

    def __init__(self, settings: Callable[[], RateLimitConfig], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._memory: MovingWindowRateLimiter | None = None
        self._counts: Counts | None = None
        self._shared: MovingWindowRateLimiter | None = None
        self._pool: ConnectionPool | None = None
        self._url = ""
        self._problem: str | None = None
        self._retry_at = 0.0
        self._making = asyncio.Lock()

    @property
    def problem(self) -> str | None:
        """Why calls are not counted where the configuration says, in a sentence; None while they are."""
        return self._problem if self._settings().storage_url else None

    async def hit(self, actor: str, tool: str, most: int | None = None) -> None:
        """Count a call of ``tool`` by ``actor``; ``most`` within a minute, where that is less than everybody's limit.

        Raises BusyError ``rate_limited`` where it is one too many, with ``retry_after`` in seconds and ``limit``.
        """
        settings = self._settings()
        own = _Bound(
            min((each for each in (settings.calls_per_minute, most) if each), default=0),
            ("one", quote(actor, safe=""), tool),
            f"{actor} has called {tool} {{}} times",
        )
        every = _Bound(settings.total_calls_per_minute, ("all",), "tools were called {} times")
        if not own.most and not every.most:
            return
        memory = await self._local()
        shared = _Asked(answered=False)
        if settings.storage_url:
            shared = await self._ask(settings.storage_url, lambda windows: _count(windows, own, every, time.time))
        refusal = shared.refusal
        if refusal is None:
            # Also what Redis let through, so that an outage does not begin with nothing.
            here = await _count(memory, own, every, self._clock)
            refusal = None if shared.answered else here
        if refusal is not None:
            bound, wait = refusal
            raise BusyError(
                f"{bound.words.format(bound.most)} within a minute, which is the limit",
                code="rate_limited",
                tool=tool,
                limit=bound.most,
                retry_after=min(max(math.ceil(wait), 1), 60),
            )

    async def close(self) -> None:
        """Close the connections to Redis. Twice does no harm; a later call opens them again."""
        pool, self._pool, self._shared, self._url = self._pool, None, None, ""
        if pool is not None:
            await pool.disconnect()

    async def check(self) -> str | None:
        """Ask Redis for an answer where it is configured, and return `problem`; takes `ANSWER_SEC` at most."""
        url = self._settings().storage_url
        if url:
            await self._local()
            await self._ask(url, _look)
        return self.problem

    async def _ask(self, url: str, question: Callable[[MovingWindowRateLimiter], Awaitable[_Refusal | None]]) -> _Asked:
        """What Redis says, or that it says nothing; after a failure it is asked again when `RETRY_SEC` are over."""
        if self._problem is not None and url == self._url and self._clock() < self._retry_at:
            return _Asked(answered=False)
        self._retry_at = self._clock() + RETRY_SEC  # the others do not wait for what this call tries
        try:
            windows = await self._redis(url)
            async with asyncio.timeout(ANSWER_SEC):
                refusal = await question(windows)
        except Exception as error:  # noqa: BLE001 - whatever a driver or a server may raise: a call must not fail by it
            self._lost(error)
            return _Asked(answered=False)
        self._found()
        return _Asked(answered=True, refusal=refusal)

    async def _local(self) -> MovingWindowRateLimiter:
        if self._memory is None:
            await asyncio.to_thread(import_module, "mcp_server.limits.rate_limit_windows")
            from mcp_server.limits.rate_limit_windows import Counts, memory_windows

            if self._memory is None:  # another call was as early
                self._counts = Counts(self._clock)
                self._memory = memory_windows(self._counts)
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
        self._problem = f"calls are counted in this process alone: {_reason(error)}"

    def _found(self) -> None:
        if self._problem is not None:
            logger.info("rate_limit.counting_in_redis")
        self._problem = None


async def _count(
    windows: MovingWindowRateLimiter, own: _Bound, every: _Bound, now: Callable[[], float]
) -> _Refusal | None:
    """Count a call under both bounds; or say which has no room, and the seconds until it has."""
    from mcp_server.limits.rate_limit_windows import CallsPerMinute

    one, every_one = CallsPerMinute(own.most), CallsPerMinute(every.most)
    full = None
    # Looked at first, so that a caller does not pay for a call that all the others have used up.
    if every.most and not await windows.test(every_one, *every.key):
        full = every, every_one
    elif own.most and not await windows.hit(one, *own.key):
        full = own, one
    elif every.most and not await windows.hit(every_one, *every.key):
        full = every, every_one
    if full is None:
        return None
    bound, item = full
    stats = await windows.get_window_stats(item, *bound.key)
    return bound, stats.reset_time - now()


async def _look(windows: MovingWindowRateLimiter) -> None:
    """Read a key, as a call does."""
    from mcp_server.limits.rate_limit_windows import CallsPerMinute

    await windows.test(CallsPerMinute(1), "all")


def _reason(error: Exception) -> str:
    """Why Redis cannot be used. What a URL holds, a password perhaps, is not repeated."""
    if isinstance(error, ImportError):
        return "the package redis is not installed (pip install 'mcp-network-tools[redis]')"
    if isinstance(error, ValueError):
        return "rate_limit.storage_url cannot be read"
    if isinstance(error, TimeoutError):
        return f"Redis did not answer within {ANSWER_SEC:g} s"
    return f"Redis failed: {error.__cause__ or error}"
