"""How long a waiting call will wait: estimates, put right by how long runs of the tool really took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from mcp_server.errors import NetworkToolsError
from mcp_server.limits.admission_queue import Caps, Entry, Ticket, WaitQueue

UNKNOWN_SECONDS: Final = 30.0
"""What a run is taken for that has no estimate, of a tool that has not run yet."""
_WEIGHT: Final = 0.3
"""How much the latest run counts against all before it."""
_OVERRUN: Final = 0.1
"""A run past its time is expected to take this share of what it has taken, again."""
_WIDEST: Final = 100.0


@dataclass(slots=True)
class _Past:
    seconds: float
    ratio: float


class History:
    """Smoothed times of the runs of each tool."""

    def __init__(self) -> None:
        self._past: dict[str, _Past] = {}

    def note(self, ticket: Ticket, seconds: float) -> None:
        """Take in how long a run took."""
        ratio = 1.0
        if ticket.estimate_sec > 0:
            ratio = min(max(seconds / ticket.estimate_sec, 1 / _WIDEST), _WIDEST)
        past = self._past.get(ticket.tool)
        if past is None:
            self._past[ticket.tool] = _Past(seconds, ratio)
            return
        past.seconds += _WEIGHT * (seconds - past.seconds)
        if ticket.estimate_sec > 0:
            past.ratio += _WEIGHT * (ratio - past.ratio)

    def expect(self, ticket: Ticket) -> float:
        """About how many seconds a run will take."""
        past = self._past.get(ticket.tool)
        if ticket.estimate_sec > 0:
            return ticket.estimate_sec * (1.0 if past is None else past.ratio)
        return UNKNOWN_SECONDS if past is None else past.seconds

    def left(self, entry: Entry, now: float) -> float:
        """About how many seconds a run has still to go; more than none while it runs."""
        gone = 0.0 if entry.started is None else now - entry.started
        return max(self.expect(entry.ticket) - gone, _OVERRUN * gone, 1.0)


def expected_waits(line: WaitQueue, history: History, now: float) -> dict[Entry, float]:
    """Seconds until each waiting call is expected to go, by letting them go in order as places fall free."""
    ends = {entry: history.left(entry, now) for entry in line.running}
    positions = _FreeSlots(line.caps, ends)
    waits: dict[Entry, float] = {}
    for entry in line.order():
        try:
            free = positions.of(entry)
        except NetworkToolsError:  # its tool is gone, and the next decision says so
            continue
        wait = max(heap[0] for heap in free)
        there = sorted(ends[each] for each in entry.neighbours if each in ends)
        over = len(there) - line.caps.per_host()
        if over >= 0:
            wait = max(wait, there[over])
        end = wait + history.expect(entry.ticket)
        for heap in free:
            heappop(heap)
            heappush(heap, end)
        waits[entry], ends[entry] = wait, end
    return waits


class _FreeSlots:
    """When each place of each kind falls free, in seconds from now, as heaps; made as they are asked for."""

    def __init__(self, caps: Caps, ends: Mapping[Entry, float]) -> None:
        self._caps = caps
        self._running = dict(ends)
        self._heaps: dict[tuple[str, str], list[float]] = {}

    def of(self, entry: Entry) -> list[list[float]]:
        """The heaps a call takes one place each of."""
        tool, actor = entry.ticket.tool, entry.ticket.actor
        running = self._running.items()
        return [
            self._heap("total", "", self._caps.total(), (end for _, end in running)),
            self._heap("tool", tool, self._caps.per_tool(tool), (end for e, end in running if e.ticket.tool == tool)),
            self._heap("actor", actor, self._caps.per_actor(), (end for e, end in running if e.ticket.actor == actor)),
            *(
                self._heap("key", key, 1, (end for e, end in running if key in e.ticket.exclusive))
                for key in set(entry.ticket.exclusive)
            ),
        ]

    def _heap(self, kind: str, name: str, cap: int, ends: Iterable[float]) -> list[float]:
        heap = self._heaps.get((kind, name))
        if heap is None:
            cap = max(cap, 1)
            # More may run than a cap that was lowered since allows: the first to end leave no place.
            taken = sorted(ends)
            heap = self._heaps[kind, name] = [0.0] * (cap - len(taken)) + taken[max(len(taken) - cap, 0) :]
        return heap
