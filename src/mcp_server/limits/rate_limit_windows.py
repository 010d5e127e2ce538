"""Where calls are counted: in this process's memory or in Redis, both behind the moving window of `limits`.

Imports `limits`, which takes some 50 ms: import this where it is used. The library's own memory storage is not used: it
reads the wall clock, so a clock that is set back shuts callers out for as long, and each call makes it go over every
key it holds, with a thread for each (docs/decisions/0012-admission.md has the figures).
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
"""What every key in Redis begins with."""
_SOCKET_SEC: Final = 0.5
_CONNECTIONS: Final = 64


class CallsPerMinute(RateLimitItemPerMinute):
    """A number of calls within a minute. The number is no part of the key, so a new one keeps what was counted."""

    def key_for(self, *identifiers: bytes | str | float) -> str:
        """The key that calls of this kind are counted under."""
        return "/".join(("calls", *map(str, identifiers)))


class Counts(MemoryStorage):
    """When calls were let through, by key, on a clock that does not go back; a key idle for its window is forgotten."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        # By the time of the last call: whoever has been idle the longest stands first.
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
        """The time of the oldest call that counts, and how many count, ``limit`` at most."""
        now = self._clock()
        calls = self._within(key, now - expiry)
        # A limit that was lowered leaves more calls than it allows: room is made when the newest `limit` are fewer.
        over = max(len(calls) - limit, 0)
        return next(islice(calls, over, None), now), len(calls) - over

    def _within(self, key: str, after: float) -> deque[float]:
        """The calls of a key later than ``after``; keys without any are dropped on the way, oldest first."""
        while self._calls and next(iter(self._calls.values()))[-1] <= after:
            self._calls.popitem(last=False)
        calls = self._calls.get(key, deque())
        while calls and calls[0] <= after:
            calls.popleft()
        return calls


def memory_windows(counts: Counts) -> MovingWindowRateLimiter:
    """Windows over counts in memory."""
    return MovingWindowRateLimiter(counts)


def redis_windows(url: str) -> tuple[MovingWindowRateLimiter, ConnectionPool]:
    """Windows in Redis, and the pool to disconnect at the end. Connects at the first call.

    Raises ImportError where the package is not installed, ValueError for a URL that cannot be read.
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
        # Once more at once, for a connection that Redis has closed meanwhile.
        retry=Retry(NoBackoff(), 1),
    )
    options: dict[str, Any] = {"connection_pool": pool}
    storage = RedisStorage(f"async+{url}", wrap_exceptions=True, implementation="redispy", key_prefix=PREFIX, **options)
    return MovingWindowRateLimiter(storage), pool
