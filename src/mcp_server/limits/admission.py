"""Admission: limits on simultaneous runs in total and per tool, caller and address, with a bounded queue."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

from mcp_server.errors import BusyError
from mcp_server.limits.admission_forecast import History, expected_waits
from mcp_server.limits.admission_queue import Caps, QueueEntry, QueuePosition, Ticket, WaitQueue
from mcp_server.logger import get_logger

__all__ = ["Admission", "Admitted", "Caps", "Load", "QueuePosition", "Ticket"]

logger = get_logger(__name__)

STOPPING_RETRY_SEC: Final = 5
"""When to call again if the server is stopping: about the time that a restart takes."""
_LONGEST_RETRY_SEC: Final = 3600
_CHANGE_SHARE: Final = 0.2
"""The caller is not notified of a change of the expected wait by less than this share."""


@dataclass(frozen=True, slots=True)
class Load:
    """The numbers of running and waiting calls of one tool."""

    running: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """A slot that was granted, after ``waited`` seconds."""

    waited: float


class Admission:
    """Grants slots to a bounded number of runs. Other calls wait in a queue, and are refused if the queue is full.

    A call that cannot start yet does not delay later calls that can start, until `PATIENCE` calls have overtaken it.
    Limits apply to each event loop separately. ``clock`` returns seconds and never goes back.
    """

    def __init__(self, caps: Caps, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._caps = caps
        self._clock = clock
        self._history = History()
        self._closed = False
        self._lock = threading.Lock()
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, WaitQueue] = WeakKeyDictionary()

    @asynccontextmanager
    async def slot(
        self, ticket: Ticket, on_wait: Callable[[QueuePosition], None] | None = None
    ) -> AsyncIterator[Admitted]:
        """Hold a slot for the length of the block, after waiting for it in the queue.

        ``on_wait`` gets the position of the call if it has to wait, and again if that changes. It must not block.
        Raises BusyError with ``retry_after``: ``too_many_requests`` if the queue of the tool is full, ``shutting_down``
        after `close`, also for a call that waits. A cancelled call leaves the queue and releases its slot.
        """
        queue = self._queue()
        entry = await self._enter(queue, ticket, on_wait)
        started = entry.arrived if entry.started is None else entry.started
        try:
            yield Admitted(started - entry.arrived)
            # The duration of a run that ended with an error says little about the next run.
            self._history.note(ticket, self._clock() - started)
        finally:
            self._leave(queue, entry)

    def load(self, tool: str) -> Load:
        """Return how many calls of the tool run and wait on the running event loop."""
        queue = self._queue()
        return Load(queue.running_of[tool], queue.waiting_of[tool])

    def snapshot(self) -> dict[str, Load]:
        """Return how many calls run and wait, by tool, on all event loops. Tools without calls are left out."""
        with self._lock:
            queues = list(self._queues.values())
        # Each counter is copied in one step, because other threads may change them meanwhile.
        running = [queue.running_of.copy() for queue in queues]
        waiting = [queue.waiting_of.copy() for queue in queues]
        return {
            tool: Load(sum(each[tool] for each in running), sum(each[tool] for each in waiting))
            for tool in sorted({tool for each in (*running, *waiting) for tool in each})
        }

    def refresh(self) -> None:
        """Decide again for the running event loop, so that limits raised by a reload apply at once."""
        self._decide(self._queue())

    def close(self) -> None:
        """Refuse all waiting and later calls with ``shutting_down``. Running calls continue. May be called twice."""
        with self._lock:
            self._closed = True
            queues = list(self._queues.items())
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        for loop, queue in queues:
            if loop is here:
                _refuse_waiting(queue)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(_refuse_waiting, queue)

    async def drained(self) -> None:
        """Wait until no call runs on the running event loop."""
        await self._queue().empty.wait()

    async def _enter(
        self, queue: WaitQueue, ticket: Ticket, on_wait: Callable[[QueuePosition], None] | None
    ) -> QueueEntry:
        if self._closed:
            raise _stopping(ticket.tool)
        entry = queue.add(ticket, on_wait, self._clock())
        try:
            self._decide(queue)
            if not entry.granted.done():
                self._check_length(queue, entry)
            await entry.granted
        except BaseException:
            self._leave(queue, entry)
            raise
        return entry

    def _leave(self, queue: WaitQueue, entry: QueueEntry) -> None:
        queue.remove(entry)
        self._decide(queue)

    def _decide(self, queue: WaitQueue) -> None:
        queue.grant(self._clock())
        listener = next((entry for entry in queue.waiting.values() if entry.on_wait is not None), None)
        # Use the loop of the call, not the running one. A garbage-collected call leaves after its loop was closed.
        if listener is not None and not queue.notifying and not listener.granted.get_loop().is_closed():
            # One notification for everything that happens in this iteration of the loop.
            queue.notifying = True
            listener.granted.get_loop().call_soon(self._notify, queue)

    def _check_length(self, queue: WaitQueue, entry: QueueEntry) -> None:
        """Refuse a call that would have to wait if the queue is full, or if its caller has used up its share."""
        tool, actor, limit = entry.ticket.tool, entry.ticket.actor, self._caps.max_waiting()
        waiting, own = queue.waiting_of[tool] - 1, queue.waiting_for(actor, tool) - 1
        # A quarter of the queue is reserved for other callers.
        share = limit - limit // 4
        if waiting < limit and own < share:
            return
        waits = expected_waits(queue, self._history, self._clock())
        # The queue has space again when its first call starts.
        first = min((wait for each, wait in waits.items() if each.ticket.tool == tool), default=1.0)
        running = queue.running_of[tool]
        reason = "The queue is full." if waiting >= limit else f"This caller has {own} of them and may have {share}."
        raise BusyError(
            f"{tool}: {running} calls are running and {waiting} are waiting. {reason}",
            tool=tool,
            running=running,
            waiting=waiting,
            retry_after=min(max(math.ceil(first), 1), _LONGEST_RETRY_SEC),
        )

    def _notify(self, queue: WaitQueue) -> None:
        """Notify the waiting calls of their positions, if these changed."""
        queue.notifying = False
        now = self._clock()
        waits = expected_waits(queue, self._history, now)
        positions: dict[str, int] = {}
        for entry in [entry for entry in queue.order() if not entry.granted.done() and entry in waits]:
            tool, wait = entry.ticket.tool, waits[entry]
            position = positions[tool] = positions.get(tool, 0) + 1
            if entry.on_wait is None or not _has_changed(entry, position, wait, now):
                continue
            entry.notified = (position, now + wait)
            try:
                entry.on_wait(QueuePosition(position, math.ceil(wait)))
            except Exception:
                # A failing listener must not affect the slots of other calls.
                logger.exception("admission.on_wait_failed", tool=tool)
                entry.on_wait = None

    def _queue(self) -> WaitQueue:
        """Return the queue of the running loop, and remove closed loops, which waiting calls keep alive."""
        loop = asyncio.get_running_loop()
        with self._lock:
            queue = self._queues.get(loop)
            if queue is None:
                for other in [known for known in self._queues if known.is_closed()]:
                    del self._queues[other]
                queue = self._queues[loop] = WaitQueue(self._caps)
            return queue


def _has_changed(entry: QueueEntry, position: int, wait: float, now: float) -> bool:
    if entry.notified is None:
        return True
    last_position, expected_start = entry.notified
    return position != last_position or abs(now + wait - expected_start) >= max(_CHANGE_SHARE * wait, 1.0)


def _refuse_waiting(queue: WaitQueue) -> None:
    for entry in queue.waiting.values():
        if not entry.granted.done():
            entry.granted.set_exception(_stopping(entry.ticket.tool))


def _stopping(tool: str) -> BusyError:
    return BusyError(
        f"{tool}: the server is stopping and starts no more calls.",
        code="shutting_down",
        tool=tool,
        retry_after=STOPPING_RETRY_SEC,
    )
