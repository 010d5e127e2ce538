"""Helpers of the checks: `Threaded` runs blocking work in a thread, `LoopLag` measures how late the event loop is."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Generic, TypeVar

LAG_SAMPLES: Final = 60
"""Samples of the lag that are kept, one a second."""

T = TypeVar("T")


class Threaded(Generic[T]):
    """Runs blocking work as a coroutine function, in its own daemon thread.

    There is at most one thread. While it hangs, for example on a dead disk, all calls wait for it. The event loop's
    thread pool is not used: the log and the store need its few threads, and a hanging one would delay the exit.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._running: Future[T] | None = None

    async def __call__(self) -> T:
        """Return the result of the work, or raise its exception."""
        if self._running is None or self._running.done():
            running: Future[T] = Future()
            running.set_running_or_notify_cancel()  # a caller that is cancelled must not cancel it for the others
            threading.Thread(target=self._run, args=(running,), name="health", daemon=True).start()
            self._running = running
        return await asyncio.wrap_future(self._running)

    def _run(self, running: Future[T]) -> None:
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001 - every exception must reach the caller
            running.set_exception(error)
        else:
            running.set_result(result)


class LoopLag:
    """Measures how late the event loop runs a timer of one second. All values are in seconds."""

    def __init__(self) -> None:
        self._late: deque[float] = deque(maxlen=LAG_SAMPLES)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def longest(self) -> float:
        """The longest lag of the last minute."""
        return max(self._late, default=0.0)

    @property
    def mean(self) -> float:
        """The mean lag of the last minute."""
        return sum(self._late) / len(self._late) if self._late else 0.0

    def start(self) -> None:
        """Start to measure on the running loop."""
        self._arm(asyncio.get_running_loop())

    def stop(self) -> None:
        """Stop measuring. Safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_at(loop.time() + 1, self._tick, loop, loop.time() + 1)

    def _tick(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._late.append(max(0.0, loop.time() - due))
        self._arm(loop)
