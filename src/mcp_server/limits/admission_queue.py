"""The calls that run and wait on one event loop, their order, and what prevents a call from starting."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mcp_server.errors import NetworkToolsError
from mcp_server.model.target import Network
from mcp_server.scope.address_ranges import AddressRanges

PATIENCE: Final = 16
"""How many later calls may overtake a waiting call. After that, the slots that it waits for are reserved for it."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request for a slot.

    ``targets`` are the networks that the call touches. Each key in ``exclusive`` is held by one run at a time.
    ``estimate_sec`` is the estimated duration of the run, or 0 if there is no estimate.
    """

    tool: str
    actor: str = ""
    targets: tuple[Network, ...] = ()
    exclusive: tuple[str, ...] = ()
    estimate_sec: float = 0.0


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """The position of a waiting call among the calls of its tool, from 1, and the expected wait in seconds."""

    position: int
    expected_sec: int


@dataclass(frozen=True, slots=True)
class Caps:
    """How many calls may run at once. Every decision reads the numbers again, so a reload applies to the next one.

    ``per_host`` limits the runs that touch the same address. ``max_waiting`` limits the waiting calls of one tool.
    """

    total: Callable[[], int]
    per_tool: Callable[[str], int]
    per_actor: Callable[[], int]
    per_host: Callable[[], int]
    max_waiting: Callable[[], int]


@dataclass(slots=True, eq=False)
class QueueEntry:
    """One call from its arrival to its end. ``started`` is None while it waits. All times are from the same clock.

    ``number`` counts calls in the order of arrival. ``turn`` is its round among the callers (see `WaitQueue.order`).
    ``neighbors`` are the other running and waiting calls that touch an address of this one. ``notified`` holds the
    position and the expected start that the caller was last notified of.
    """

    number: int
    turn: int
    ticket: Ticket
    ranges: AddressRanges
    granted: asyncio.Future[None]
    on_wait: Callable[[QueuePosition], None] | None
    arrived: float
    started: float | None = None
    neighbors: set[QueueEntry] = field(default_factory=set)
    overtaken: int = 0
    notified: tuple[int, float] | None = None

    @property
    def position(self) -> tuple[int, int]:
        """The sort key among the waiting calls."""
        return self.turn, self.number

    def competes_with(self, other: QueueEntry) -> bool:
        """Whether this call may wait for a slot that the other call takes."""
        mine, its = self.ticket, other.ticket
        return (
            mine.tool == its.tool
            or mine.actor == its.actor
            or other in self.neighbors
            or not set(mine.exclusive).isdisjoint(its.exclusive)
        )


class WaitQueue:
    """The calls of one event loop. Only the thread of that loop changes it."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.running: set[QueueEntry] = set()
        self.waiting: dict[int, QueueEntry] = {}
        self.running_of: Counter[str] = Counter()
        self.waiting_of: Counter[str] = Counter()
        self.notifying = False
        self.empty = asyncio.Event()
        self.empty.set()
        self._actors: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._numbers = 0
        self._turn = 0

    def add(self, ticket: Ticket, on_wait: Callable[[QueuePosition], None] | None, now: float) -> QueueEntry:
        """Add a call at the end of the queue."""
        self._numbers += 1
        granted = asyncio.get_running_loop().create_future()
        own = (entry.turn for entry in self.waiting.values() if entry.ticket.actor == ticket.actor)
        turn = max(own, default=self._turn)
        entry = QueueEntry(
            self._numbers, max(turn, self._turn) + 1, ticket, AddressRanges.of(ticket.targets), granted, on_wait, now
        )
        for other in (*self.running, *self.waiting.values()):
            if entry.ranges.overlaps(other.ranges):
                entry.neighbors.add(other)
                other.neighbors.add(entry)
        self.waiting[entry.number] = entry
        self.waiting_of[ticket.tool] += 1
        return entry

    def remove(self, entry: QueueEntry) -> None:
        """Remove a call, whether it waits or runs."""
        tool = entry.ticket.tool
        if self.waiting.pop(entry.number, None) is not None:
            _decrease(self.waiting_of, tool)
        elif entry in self.running:
            self.running.remove(entry)
            _decrease(self.running_of, tool)
            _decrease(self._actors, entry.ticket.actor)
            for key in set(entry.ticket.exclusive):
                _decrease(self._held, key)
            if not self.running:
                self.empty.set()
        for other in entry.neighbors:
            other.neighbors.discard(entry)
        entry.neighbors.clear()

    def grant(self, now: float) -> None:
        """Start every call that may start. A call whose tool has no cap any more fails with the error of that cap."""
        first = self._reserved_for()
        for entry in self.order():
            if entry.granted.done() or entry.granted.get_loop().is_closed():
                continue
            try:
                able = self._can_start(entry, first)
            except NetworkToolsError as error:
                # A reload removed the tool. This call must fail, not the call that releases a slot.
                entry.granted.set_exception(error)
                continue
            if able:
                self._start(entry, now)
                if entry is first:
                    first = None

    def order(self) -> list[QueueEntry]:
        """Return the waiting calls in their order: the first call of each caller, then the second of each, and so on.

        The turn of a call is one more than the turn of its caller's last waiting call, and is never a past turn. A
        caller that fills the queue is overtaken by others, and a caller that calls rarely gains no advantage.
        (Start-time fair queueing, Goyal, Vin and Cheng 1996, with equal weight for every call.)
        """
        return sorted(self.waiting.values(), key=lambda entry: entry.position)

    def waiting_for(self, actor: str, tool: str) -> int:
        """Return how many calls of the tool are waiting for an actor."""
        return sum(entry.ticket.actor == actor and entry.ticket.tool == tool for entry in self.waiting.values())

    def _start(self, entry: QueueEntry, now: float) -> None:
        for other in self.waiting.values():
            if other.position < entry.position and other.competes_with(entry):
                other.overtaken += 1
        del self.waiting[entry.number]
        _decrease(self.waiting_of, entry.ticket.tool)
        self.running.add(entry)
        self.running_of[entry.ticket.tool] += 1
        self._actors[entry.ticket.actor] += 1
        self._held.update(set(entry.ticket.exclusive))
        self.empty.clear()
        self._turn = max(self._turn, entry.turn)
        entry.started = now
        entry.granted.set_result(None)

    def _reserved_for(self) -> QueueEntry | None:
        """Return the first call that was overtaken too often. The slots that it waits for are reserved for it."""
        # Nothing is reserved for a call that waits for runs of its own caller, because others would wait without need.
        overtaken = (e for e in self.waiting.values() if e.overtaken >= PATIENCE and self._actor_below_cap(e))
        return min(overtaken, key=lambda entry: entry.position, default=None)

    def _can_start(self, entry: QueueEntry, first: QueueEntry | None) -> bool:
        ticket, caps = entry.ticket, self.caps
        other = first if first is not None and first.position < entry.position else None
        in_tool, of_actor = self.running_of[ticket.tool], self._actors[ticket.actor]
        if other is not None:
            in_tool += other.ticket.tool == ticket.tool
            of_actor += other.ticket.actor == ticket.actor
            if not set(ticket.exclusive).isdisjoint(other.ticket.exclusive):
                return False
        return (
            in_tool < caps.per_tool(ticket.tool)
            and len(self.running) < caps.total()
            and of_actor < caps.per_actor()
            and not any(key in self._held for key in ticket.exclusive)
            and self._hosts_free(entry, other)
        )

    def _hosts_free(self, entry: QueueEntry, other: QueueEntry | None) -> bool:
        ranges = [each.ranges for each in entry.neighbors if each in self.running or each is other]
        limit = self.caps.per_host()
        if len(ranges) < limit:
            return True
        return limit > 1 and not entry.ranges.crowded(ranges, limit)

    def _actor_below_cap(self, entry: QueueEntry) -> bool:
        return self._actors[entry.ticket.actor] < self.caps.per_actor()


def _decrease(counter: Counter[str], key: str) -> None:
    """Subtract one, and remove a key that reaches zero."""
    if counter[key] <= 1:
        del counter[key]
    else:
        counter[key] -= 1
