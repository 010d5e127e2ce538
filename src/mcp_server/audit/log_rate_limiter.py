"""Collapses repeated records: the first of a kind is written, then at most one a minute with the number of repeats."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

WINDOW_SEC: Final = 60.0

K = TypeVar("K")


@dataclass(slots=True)
class _Repeats:
    """The time of the first record of a kind (seconds of the clock), its fields, and the repeats since then."""

    logged: float
    fields: dict[str, Any]
    repeats: int = 0


class LogRateLimiter(Generic[K]):
    """Counts records by their kind. Use it from one event loop.

    When the window of a kind is over, ``write`` gets the fields of its first record, with the number of repeats as
    ``repeats``; it must not raise. ``clock`` returns seconds.
    """

    def __init__(
        self, write: Callable[[dict[str, Any]], Awaitable[None]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._kinds: dict[K, _Repeats] = {}
        self._timer: asyncio.Task[None] | None = None

    def __contains__(self, kind: K) -> bool:
        """Return whether a record of this kind was written within the window."""
        return kind in self._kinds

    def __len__(self) -> int:
        """Return how many kinds are counted now."""
        return len(self._kinds)

    def count(self, kind: K, fields: dict[str, Any]) -> bool:
        """Count a record. Returns True for the first of its kind, which the caller must write."""
        counted = self._kinds.get(kind)
        if counted is not None:
            counted.repeats += 1
            return False
        self._kinds[kind] = _Repeats(self._clock(), fields)
        if self._timer is None or self._timer.done():
            self._timer = asyncio.create_task(self._write_repeats())
        return True

    async def close(self) -> None:
        """Write the counts that are pending. Safe to call twice."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            with suppress(asyncio.CancelledError):
                await timer
        await self._flush(before=float("inf"))

    async def _write_repeats(self) -> None:
        while self._kinds:
            await asyncio.sleep(WINDOW_SEC / 4)
            await self._flush(before=self._clock() - WINDOW_SEC)

    async def _flush(self, before: float) -> None:
        for kind, counted in list(self._kinds.items()):
            if counted.logged <= before:
                del self._kinds[kind]
                if counted.repeats:
                    await self._write(counted.fields | {"repeats": counted.repeats})
