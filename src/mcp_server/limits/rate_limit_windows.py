"""Counts calls in the memory of this process or in Redis, with the moving window of the library `limits`.

Importing `limits` takes about 50 ms, so import this module inside functions. The library's own memory storage is not
used. It reads the wall clock, so it would refuse callers after the clock is set back. It also visits every key at each
call (docs/decisions/0012-admission.md has the measurements).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

PREFIX: Final = "mcp-network-tools"
"""The prefix of every key in Redis."""
_SOCKET_SEC: Final = 0.5
_CONNECTIONS: Final = 64


class CallsPerMinute(RateLimitItemPerMinute):
    """A number of calls within a minute. The number is not part of the key, so the counts stay if it changes."""

    def key_for(self, *identifiers: bytes | str | float) -> str:
        """Return the key under which calls of this kind are counted."""
        return "/".join(("calls", *map(str, identifiers)))


class CallTimes(MemoryStorage):
    """The times of the calls that were let through, by key, on a clock that never goes back. Idle keys are removed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        # Sorted by the time of the last call, so the key that was idle longest comes first.
        self._calls: OrderedDict[str, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._calls)

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count ``amount`` calls, unless there would be more than ``limit`` within ``expiry`` seconds."""
        now = self._clock()
        calls = self._within(key, now - expiry)
        if len(calls) + amount > limit:
            return False
        calls.extend([now] * amount)
        self._calls[key] = calls
        self._calls.move_to_end(key)
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Return the time of the oldest call that counts, and how many calls count, at most ``limit``."""
        now = self._clock()
        calls = self._within(key, now - expiry)
        # After a limit was lowered there may be more calls than it allows. Only the newest `limit` of them count.
        over = max(len(calls) - limit, 0)
        return next(islice(calls, over, None), now), len(calls) - over

    def _within(self, key: str, after: float) -> deque[float]:
        """Return the calls of a key later than ``after``. Removes keys that have none, oldest first."""
        while self._calls and next(iter(self._calls.values()))[-1] <= after:
            self._calls.popitem(last=False)
        calls = self._calls.get(key, deque())
        while calls and calls[0] <= after:
            calls.popleft()
        return calls


def memory_windows(counts: CallTimes) -> MovingWindowRateLimiter:
    """Return a rate limiter over counts in memory."""
    return MovingWindowRateLimiter(counts)


def redis_windows(url: str) -> tuple[MovingWindowRateLimiter, ConnectionPool]:
    """Return a rate limiter over counts in Redis, and the pool to disconnect at the end. Connects at the first call.

    Raises ImportError if the package is not installed, ValueError if the URL cannot be read.
    """
    from redis.asyncio import BlockingConnectionPool
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS,
        timeout=_SOCKET_SEC,
        socket_timeout=_SOCKET_SEC,
        socket_connect_timeout=_SOCKET_SEC,
        # One retry without a pause, for a connection that Redis has closed meanwhile.
        retry=Retry(NoBackoff(), 1),
    )
    options: dict[str, Any] = {"connection_pool": pool}
    storage = RedisStorage(f"async+{url}", wrap_exceptions=True, implementation="redispy", key_prefix=PREFIX, **options)
    return MovingWindowRateLimiter(storage), pool
