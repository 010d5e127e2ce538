"""How many runs go on at once: caps in all, per tool, caller and address, and a bounded line in front of them."""

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
from mcp_server.limits.admission_queue import Caps, Entry, Ticket, Waiting, WaitQueue
from mcp_server.logger import get_logger

__all__ = ["Admission", "Admitted", "Caps", "Load", "Ticket", "Waiting"]

logger = get_logger(__name__)

STOPPING_RETRY_SEC: Final = 5
"""When to call again at a server that stops: about how long one takes to come back."""
_LONGEST_RETRY_SEC: Final = 3600
_CHANGE_SHARE: Final = 0.2
"""A wait that changes by less than this share of itself is no news."""


@dataclass(frozen=True, slots=True)
class Load:
    """How many calls of one tool run and wait."""

    running: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """A place that was granted, after ``waited`` seconds."""

    waited: float


class Admission:
    """Lets a bounded number of runs through; the rest wait in line, and those beyond the line are refused.

    A call that cannot go yet holds up nobody who can, until later calls have overtaken it too often (`PATIENCE`).
    Caps count per event loop, and a loop's state goes with it. ``clock`` gives seconds and does not go back.
    """

    def __init__(self, caps: Caps, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._caps = caps
        self._clock = clock
        self._history = History()
        self._closed = False
        self._lock = threading.Lock()
        self._lines: WeakKeyDictionary[asyncio.AbstractEventLoop, WaitQueue] = WeakKeyDictionary()

    @asynccontextmanager
    async def slot(self, ticket: Ticket, on_wait: Callable[[Waiting], None] | None = None) -> AsyncIterator[Admitted]:
        """Hold the ticket's places for the length of the block, waiting for them in turn.

        ``on_wait`` is told where the call stands when it has to wait, and again when that changes; it must not block.
        Raises BusyError ``too_many_requests`` at once where the tool's line is full, ``shutting_down`` once closed,
        also for a call that waits, each with ``retry_after``. A cancelled wait leaves no trace; places that were
        granted in the same moment are given back.
        """
        line = self._line()
        entry = await self._enter(line, ticket, on_wait)
        started = entry.arrived if entry.started is None else entry.started
        try:
            yield Admitted(started - entry.arrived)
            # A run that ended by an error says little about the next one's length.
            self._history.note(ticket, self._clock() - started)
        finally:
            self._leave(line, entry)

    def load(self, tool: str) -> Load:
        """How many calls of the tool run and wait on the running event loop."""
        line = self._line()
        return Load(line.running_of[tool], line.waiting_of[tool])

    def snapshot(self) -> dict[str, Load]:
        """How many calls run and wait, by tool, over all event loops; tools without any are left out."""
        with self._lock:
            lines = list(self._lines.values())
        # Copied in one step each: this may be another thread than those that change them.
        running, waiting = [line.running_of.copy() for line in lines], [line.waiting_of.copy() for line in lines]
        return {
            tool: Load(sum(each[tool] for each in running), sum(each[tool] for each in waiting))
            for tool in sorted({tool for each in (*running, *waiting) for tool in each})
        }

    def refresh(self) -> None:
        """Decide again on the running event loop: caps that a reload raised are used at once, not at the next ending."""
        self._decide(self._line())

    def close(self) -> None:
        """Let nobody in any more: who waits is refused with ``shutting_down``, who runs goes on. Twice does no harm."""
        with self._lock:
            self._closed = True
            lines = list(self._lines.items())
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        for loop, line in lines:
            if loop is here:
                _turn_away(line)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(_turn_away, line)

    async def drained(self) -> None:
        """Wait until nothing runs on the running event loop; at once where nothing does."""
        await self._line().empty.wait()

    async def _enter(self, line: WaitQueue, ticket: Ticket, on_wait: Callable[[Waiting], None] | None) -> Entry:
        if self._closed:
            raise _stopping(ticket.tool)
        entry = line.add(ticket, on_wait, self._clock())
        try:
            self._decide(line)
            if not entry.granted.done():
                self._check_room(line, entry)
            await entry.granted
        except BaseException:
            self._leave(line, entry)
            raise
        return entry

    def _leave(self, line: WaitQueue, entry: Entry) -> None:
        line.remove(entry)
        self._decide(line)

    def _decide(self, line: WaitQueue) -> None:
        line.grant(self._clock())
        listener = next((entry for entry in line.waiting.values() if entry.on_wait is not None), None)
        # Not the running loop: a call may leave when it is collected, after its loop was closed.
        if listener is not None and not line.notifying and not listener.granted.get_loop().is_closed():
            # Once for all that happens in this turn of the loop.
            line.notifying = True
            listener.granted.get_loop().call_soon(self._notify, line)

    def _check_room(self, line: WaitQueue, entry: Entry) -> None:
        """Refuse a call that would have to wait where the line is full, or full for its caller."""
        tool, actor, most = entry.ticket.tool, entry.ticket.actor, self._caps.max_waiting()
        waiting, own = line.waiting_of[tool] - 1, line.waiting_for(actor, tool) - 1
        # A quarter of the line is for others than the caller who fills it.
        share = most - most // 4
        if waiting < most and own < share:
            return
        waits = expected_waits(line, self._history, self._clock())
        # There is room again when the first of those who wait goes.
        first = min((wait for each, wait in waits.items() if each.ticket.tool == tool), default=1.0)
        running = line.running_of[tool]
        full = "the line is full" if waiting >= most else f"{own} of them are this caller's, who may have {share}"
        raise BusyError(
            f"{tool}: {running} calls are running and {waiting} are waiting; {full}",
            tool=tool,
            running=running,
            waiting=waiting,
            retry_after=min(max(math.ceil(first), 1), _LONGEST_RETRY_SEC),
        )

    def _notify(self, line: WaitQueue) -> None:
        """Tell those who wait where they stand, where that is news."""
        line.notifying = False
        now = self._clock()
        waits = expected_waits(line, self._history, now)
        positions: dict[str, int] = {}
        for entry in [entry for entry in line.order() if not entry.granted.done() and entry in waits]:
            tool, wait = entry.ticket.tool, waits[entry]
            position = positions[tool] = positions.get(tool, 0) + 1
            if entry.on_wait is None or not _is_change(entry, position, wait, now):
                continue
            entry.told = (position, now + wait)
            try:
                entry.on_wait(Waiting(position, math.ceil(wait)))
            except Exception:
                # Whoever listens must not decide over the places of others.
                logger.exception("admission.on_wait_failed", tool=tool)
                entry.on_wait = None

    def _line(self) -> WaitQueue:
        """The line of the running loop. Waiters hold their loop, so those of closed loops are dropped by hand."""
        loop = asyncio.get_running_loop()
        with self._lock:
            line = self._lines.get(loop)
            if line is None:
                for other in [known for known in self._lines if known.is_closed()]:
                    del self._lines[other]
                line = self._lines[loop] = WaitQueue(self._caps)
            return line


def _is_change(entry: Entry, position: int, wait: float, now: float) -> bool:
    if entry.told is None:
        return True
    told_position, told_start = entry.told
    return position != told_position or abs(now + wait - told_start) >= max(_CHANGE_SHARE * wait, 1.0)


def _turn_away(line: WaitQueue) -> None:
    for entry in line.waiting.values():
        if not entry.granted.done():
            entry.granted.set_exception(_stopping(entry.ticket.tool))


def _stopping(tool: str) -> BusyError:
    return BusyError(
        f"{tool}: the server is stopping and starts nothing any more",
        code="shutting_down",
        tool=tool,
        retry_after=STOPPING_RETRY_SEC,
    )
