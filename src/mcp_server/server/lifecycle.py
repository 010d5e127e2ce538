"""From a server's start to its end: where it stands, and what a stop does in which order.

::

    starting ── began ──> ready ── stop ──> stopping ── finished ──> stopped
        └───────────────── stop ───────────────┘

Stopping: new calls are refused (reads are answered) → calls under way get the grace period → the rest is cancelled
and keeps what it had → `ended` is set, on which the interfaces close. A second request to stop ends the grace period.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from mcp_server.errors import ExitCode

if TYPE_CHECKING:
    from mcp_server.limits.calls import Calls

logger = logging.getLogger(__name__)

CANCEL_SEC: Final = 1.2
"""Seconds cancelled calls get to write what they had: a program has half of one before it is killed."""
OVERDUE_SEC: Final = 1.9
"""Seconds after the grace period at which the process ends whatever still holds it up."""
_SAME_SEC: Final = 0.5
"""Two signals so close together are one request: process groups and guard helpers deliver them twice."""
_LEAST_LEFT_SEC: Final = 0.3


class Phase(StrEnum):
    """Where a server stands."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Lifecycle:
    """The phase of one server, and its stop. ``tell`` hears of every new phase; for one event loop."""

    def __init__(self, calls: Calls, notify: Callable[[Phase], None]) -> None:
        self.phase = Phase.STARTING
        self.served = False
        """Whether it has ever been ready."""
        self.ended = asyncio.Event()
        """Set when no call is under way any more: the interfaces close then."""
        self.hurried = asyncio.Event()
        """Set when whoever asked to stop asked again."""
        self._calls = calls
        self._notify = notify
        self._asked = self._until = math.inf
        self._ending: asyncio.Task[None] | None = None
        self._overdue: threading.Timer | None = None

    @property
    def ready(self) -> bool:
        """Whether calls are taken: the server has started, and is not stopping."""
        return self.phase is Phase.READY

    @property
    def left(self) -> float:
        """Seconds that whatever is no call has until it is cut off; the grace period's rest, and a moment at least."""
        return _LEAST_LEFT_SEC if self.hurried.is_set() else max(self._until - time.monotonic(), _LEAST_LEFT_SEC)

    def began(self) -> None:
        """Note that requests are answered."""
        if self.phase is Phase.STARTING:
            self.served = True
            self._enter(Phase.READY)

    def stop(self, grace_sec: float) -> None:
        """Begin to stop, or where that was asked before, do not wait any longer."""
        if self.phase in {Phase.STARTING, Phase.READY}:
            self._asked = time.monotonic()
            self._until = self._asked + grace_sec
            self._calls.close(grace_sec)
            self._enter(Phase.STOPPING)
            self._ending = asyncio.create_task(self._end_calls(grace_sec))
        elif time.monotonic() - self._asked > _SAME_SEC and not self.hurried.is_set():
            self.hurried.set()
            logger.warning("server.hurried calls=%d", self._calls.running)

    def stop_by_signal(self, grace_sec: float) -> None:
        """As `stop`, for a process of the server's own: it ends `OVERDUE_SEC` after the grace period at the latest."""
        self.stop(grace_sec)
        if self._overdue is not None:
            self._overdue.cancel()
        left = max(0.0, self._until - time.monotonic()) if not self.hurried.is_set() else 0.0
        self._overdue = threading.Timer(left + OVERDUE_SEC, _give_up)
        self._overdue.daemon = True
        self._overdue.start()

    async def unless_ended(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work``, and leave off where the server ends meanwhile."""
        working, ended = asyncio.create_task(work), asyncio.create_task(self.ended.wait())
        try:
            await asyncio.wait({working, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working})
        if not working.cancelled():
            working.result()

    def finished(self) -> None:
        """Note that everything is released."""
        if self.phase is not Phase.STOPPED:
            self._enter(Phase.STOPPED)

    async def _end_calls(self, grace_sec: float) -> None:
        try:
            drained, hurried = (asyncio.create_task(each) for each in (self._calls.drained(), self.hurried.wait()))
            await asyncio.wait({drained, hurried}, timeout=grace_sec, return_when=asyncio.FIRST_COMPLETED)
            for task in (drained, hurried):
                task.cancel()
            if (running := self._calls.running) and not await self._calls.end(CANCEL_SEC):
                logger.error("server.calls_did_not_end calls=%d of=%d", self._calls.running, running)
        finally:
            self.ended.set()

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._notify(phase)


def _give_up() -> None:
    """End the process: nothing is lost by it that a kill would not lose, and the next start repairs that."""
    # Not through the log, whose lock may be what holds the process up.
    os.write(2, b"server.stop_overdue: the process ends now; what was not written is repaired at the next start\n")
    os._exit(ExitCode.INCOMPLETE)
