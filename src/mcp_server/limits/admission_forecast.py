"""Expected waits: the estimates of waiting calls, corrected by the durations of earlier runs of the tool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from mcp_server.errors import NetworkToolsError
from mcp_server.limits.admission_queue import Caps, QueueEntry, Ticket, WaitQueue

UNKNOWN_SECONDS: Final = 30.0
"""The expected duration of a run that has no estimate, if its tool has not run yet."""
_WEIGHT: Final = 0.3
"""The weight of the latest run against all earlier runs."""
_OVERRUN: Final = 0.1
"""A run that takes longer than expected is expected to need this share of its duration again."""
_HIGHEST_RATIO: Final = 100.0


@dataclass(slots=True)
class _Average:
    seconds: float
    ratio: float


class History:
    """Smoothed durations of the runs of each tool."""

    def __init__(self) -> None:
        self._averages: dict[str, _Average] = {}

    def note(self, ticket: Ticket, seconds: float) -> None:
        """Note the duration of a run."""
        ratio = 1.0
        if ticket.estimate_sec > 0:
            ratio = min(max(seconds / ticket.estimate_sec, 1 / _HIGHEST_RATIO), _HIGHEST_RATIO)
        average = self._averages.get(ticket.tool)
        if average is None:
            self._averages[ticket.tool] = _Average(seconds, ratio)
            return
        average.seconds += _WEIGHT * (seconds - average.seconds)
        if ticket.estimate_sec > 0:
            average.ratio += _WEIGHT * (ratio - average.ratio)

    def expect(self, ticket: Ticket) -> float:
        """Return the expected duration of a run, in seconds."""
        average = self._averages.get(ticket.tool)
        if ticket.estimate_sec > 0:
            return ticket.estimate_sec * (1.0 if average is None else average.ratio)
        return UNKNOWN_SECONDS if average is None else average.seconds

    def remaining(self, entry: QueueEntry, now: float) -> float:
        """Return how many seconds a run is expected to need from now on. At least 1 while it runs."""
        elapsed = 0.0 if entry.started is None else now - entry.started
        return max(self.expect(entry.ticket) - elapsed, _OVERRUN * elapsed, 1.0)


def expected_waits(queue: WaitQueue, history: History, now: float) -> dict[QueueEntry, float]:
    """Return the expected seconds until each waiting call starts. Calls are assumed to start in order of the queue."""
    ends = {entry: history.remaining(entry, now) for entry in queue.running}
    slots = _FreeSlots(queue.caps, ends)
    waits: dict[QueueEntry, float] = {}
    for entry in queue.order():
        try:
            free = slots.of(entry)
        except NetworkToolsError:  # the tool was removed, and the next decision refuses this call
            continue
        wait = max(heap[0] for heap in free)
        on_hosts = sorted(ends[each] for each in entry.neighbors if each in ends)
        excess = len(on_hosts) - queue.caps.per_host()
        if excess >= 0:
            wait = max(wait, on_hosts[excess])
        end = wait + history.expect(entry.ticket)
        for heap in free:
            heappop(heap)
            heappush(heap, end)
        waits[entry], ends[entry] = wait, end
    return waits


class _FreeSlots:
    """The times at which the slots of each kind are freed, in seconds from now, as heaps. Each is made on first use."""

    def __init__(self, caps: Caps, ends: Mapping[QueueEntry, float]) -> None:
        self._caps = caps
        self._running = dict(ends)
        self._heaps: dict[tuple[str, str], list[float]] = {}

    def of(self, entry: QueueEntry) -> list[list[float]]:
        """Return the heaps of the kinds of slots that a call needs. It takes one slot of each."""
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
            # After a cap was lowered, more calls may run than it allows. The first that end free no slot.
            taken = sorted(ends)
            heap = self._heaps[kind, name] = [0.0] * (cap - len(taken)) + taken[max(len(taken) - cap, 0) :]
        return heap
