"""The phases of a server from its start to its end, and the order of a stop.

::

    starting ── began ──> ready ── stop ──> stopping ── finished ──> stopped
        └───────────────── stop ───────────────┘

A stop does this in order:

1. New calls are refused. Reads are still answered.
2. Running calls get the grace period to end. A second request to stop ends the grace period.
3. Calls that still run are cancelled. What they have found so far is stored.
4. `Lifecycle.ended` is set, and the interfaces close.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from mcp_server.errors import ExitCode
from mcp_server.logger import get_logger

if TYPE_CHECKING:
    from mcp_server.limits.calls import Calls

logger = get_logger(__name__)

CANCEL_SEC: Final = 1.2
"""Seconds for cancelled calls to write their results. Their programs have half a second of this before SIGKILL."""
OVERDUE_SEC: Final = 1.9
"""Seconds after the grace period at which the process ends, whatever is still running."""
_SAME_SEC: Final = 0.5
"""Two signals within this time count as one, because process groups and guard helpers deliver a signal twice."""
_MIN_LEFT_SEC: Final = 0.3


class Phase(StrEnum):
    """The phase of a server."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Lifecycle:
    """The phase of one server, and its stop. ``notify`` is called with every new phase. For one event loop."""

    def __init__(self, calls: Calls, notify: Callable[[Phase], None]) -> None:
        self.phase = Phase.STARTING
        self.served = False
        """Whether the server has ever been ready."""
        self.ended = asyncio.Event()
        """Set when no call is running any more. The interfaces close then."""
        self.hurried = asyncio.Event()
        """Set by the second request to stop."""
        self._calls = calls
        self._notify = notify
        self._asked = self._until = math.inf
        self._ending: asyncio.Task[None] | None = None
        self._overdue: threading.Timer | None = None

    @property
    def ready(self) -> bool:
        """Whether the server accepts calls: it has started and is not stopping."""
        return self.phase is Phase.READY

    @property
    def left(self) -> float:
        """Seconds that requests other than calls may still run: the rest of the grace period, or `_MIN_LEFT_SEC`."""
        return _MIN_LEFT_SEC if self.hurried.is_set() else max(self._until - time.monotonic(), _MIN_LEFT_SEC)

    def began(self) -> None:
        """Enter the phase READY, because requests are answered now."""
        if self.phase is Phase.STARTING:
            self.served = True
            self._enter(Phase.READY)

    def stop(self, grace_sec: float) -> None:
        """Begin to stop. If the server is stopping already, end the grace period."""
        if self.phase in {Phase.STARTING, Phase.READY}:
            self._asked = time.monotonic()
            self._until = self._asked + grace_sec
            self._calls.close(grace_sec)
            self._enter(Phase.STOPPING)
            self._ending = asyncio.create_task(self._end_calls(grace_sec))
        elif time.monotonic() - self._asked > _SAME_SEC and not self.hurried.is_set():
            self.hurried.set()
            logger.warning("server.hurried", calls=self._calls.running)

    def stop_by_signal(self, grace_sec: float) -> None:
        """Stop as `stop` does, and end this process `OVERDUE_SEC` after the grace period at the latest."""
        self.stop(grace_sec)
        if self._overdue is not None:
            self._overdue.cancel()
        left = max(0.0, self._until - time.monotonic()) if not self.hurried.is_set() else 0.0
        self._overdue = threading.Timer(left + OVERDUE_SEC, _give_up)
        self._overdue.daemon = True
        self._overdue.start()

    async def unless_ended(self, work: Coroutine[Any, Any, None]) -> None:
        """Await ``work``, and cancel it if the server ends meanwhile."""
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
        """Enter the phase STOPPED. Call this when everything is released."""
        if self.phase is not Phase.STOPPED:
            self._enter(Phase.STOPPED)

    async def _end_calls(self, grace_sec: float) -> None:
        try:
            drained, hurried = (asyncio.create_task(each) for each in (self._calls.drained(), self.hurried.wait()))
            await asyncio.wait({drained, hurried}, timeout=grace_sec, return_when=asyncio.FIRST_COMPLETED)
            for task in (drained, hurried):
                task.cancel()
            if (running := self._calls.running) and not await self._calls.end(CANCEL_SEC):
                logger.error("server.calls_did_not_end", calls=self._calls.running, of=running)
        finally:
            self.ended.set()

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._notify(phase)


def _give_up() -> None:
    """End the process at once. The next start repairs unwritten records, as after SIGKILL."""
    # Written directly, because the process may be waiting for the lock of the log.
    os.write(2, b"server.stop_overdue: the process ends now; the next start repairs what was not written\n")
    os._exit(ExitCode.INCOMPLETE)
