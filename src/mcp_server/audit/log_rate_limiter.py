"""LogRateLimiter of records: of one kind the first is written, and then one a minute with the number of the rest."""

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
    """Records of one kind since ``logged`` (seconds of the clock) that were not written, and what one of them says."""

    logged: float
    fields: dict[str, Any]
    repeats: int = 0


class LogRateLimiter(Generic[K]):
    """Counts records by their kind; used from one event loop.

    ``write`` gets the fields of the first one again, with the number of the others as ``repeats``, when the window of
    the kind is over; it raises nothing. ``clock`` gives seconds.
    """

    def __init__(
        self, write: Callable[[dict[str, Any]], Awaitable[None]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._kinds: dict[K, _Repeats] = {}
        self._timer: asyncio.Task[None] | None = None

    def __contains__(self, kind: K) -> bool:
        """Whether a record of this kind was written within the window."""
        return kind in self._kinds

    def __len__(self) -> int:
        """How many kinds are counted now."""
        return len(self._kinds)

    def count(self, kind: K, fields: dict[str, Any]) -> bool:
        """Count a record; whether it is the first of its kind, which the caller writes."""
        flood = self._kinds.get(kind)
        if flood is not None:
            flood.repeats += 1
            return False
        self._kinds[kind] = _Repeats(self._clock(), fields)
        if self._timer is None or self._timer.done():
            self._timer = asyncio.create_task(self._write_repeats())
        return True

    async def close(self) -> None:
        """Write what is still counted; safe to call twice."""
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
        for kind, flood in list(self._kinds.items()):
            if flood.logged <= before:
                del self._kinds[kind]
                if flood.repeats:
                    await self._write(flood.fields | {"repeats": flood.repeats})
