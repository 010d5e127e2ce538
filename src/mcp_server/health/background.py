"""What goes on beside the checks: blocking work in threads of its own, and how late the event loop is."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Generic, TypeVar

LAG_SAMPLES: Final = 60
"""Seconds over which the lag of the event loop is taken."""

T = TypeVar("T")


class Threaded(Generic[T]):
    """Blocking work as a coroutine function, in a daemon thread of its own.

    There is one thread at most: while it hangs (a dead disk, say), calls wait for that one. Not the loop's pool, whose
    few places the log and the store need, and whose threads hold up the end of the process.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._running: Future[T] | None = None

    async def __call__(self) -> T:
        """The work's result, or what it raised."""
        if self._running is None or self._running.done():
            running: Future[T] = Future()
            running.set_running_or_notify_cancel()  # from here on, a waiter that goes away does not cancel it
            threading.Thread(target=self._run, args=(running,), name="health", daemon=True).start()
            self._running = running
        return await asyncio.wrap_future(self._running)

    def _run(self, running: Future[T]) -> None:
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the waiter has to hear of it
            running.set_exception(error)
        else:
            running.set_result(result)


class LoopLag:
    """How late the event loop comes to what is due, by a timer of one second: the longest and the mean, in seconds."""

    def __init__(self) -> None:
        self._late: deque[float] = deque(maxlen=LAG_SAMPLES)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def longest(self) -> float:
        """The longest of the last minute."""
        return max(self._late, default=0.0)

    @property
    def mean(self) -> float:
        """The mean of the last minute."""
        return sum(self._late) / len(self._late) if self._late else 0.0

    def start(self) -> None:
        """Begin to measure on the running loop."""
        self._arm(asyncio.get_running_loop())

    def stop(self) -> None:
        """Stop measuring; safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_at(loop.time() + 1, self._tick, loop, loop.time() + 1)

    def _tick(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._late.append(max(0.0, loop.time() - due))
        self._arm(loop)
