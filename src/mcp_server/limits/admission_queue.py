"""Who runs and who waits on one event loop, in which order, and what keeps a call from going."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mcp_server.errors import NetworkToolsError
from mcp_server.limits.admission_ranges import Ranges
from mcp_server.model.target import Network

PATIENCE: Final = 16
"""How many calls may take, out of turn, what another waits for. Then it is kept for that one."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a call asks places for.

    ``targets`` are the networks it will touch. ``exclusive`` are keys of which each is held by one run at a time.
    ``estimate_sec`` is about how long it will take, 0 where nobody knows.
    """

    tool: str
    actor: str = ""
    targets: tuple[Network, ...] = ()
    exclusive: tuple[str, ...] = ()
    estimate_sec: float = 0.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """Where a waiting call stands: its place in the tool's line, from 1, and about how many seconds are left."""

    position: int
    expected_sec: int


@dataclass(frozen=True, slots=True)
class Caps:
    """How many may go at once. Each number is asked for at every decision, so a reload holds from the next one on.

    ``per_host`` are runs that touch the same address. ``max_waiting`` are calls of one tool that wait.
    """

    total: Callable[[], int]
    per_tool: Callable[[str], int]
    per_actor: Callable[[], int]
    per_host: Callable[[], int]
    max_waiting: Callable[[], int]


@dataclass(slots=True, eq=False)
class Entry:
    """One call, from when it comes until it has left. ``started`` is None while it waits; times are of one clock.

    ``number`` counts calls as they come. ``turn`` is the round of the callers it takes part in (see `Line.order`).
    ``neighbours`` are the other calls in the line, running or waiting, that touch an address this one does.
    """

    number: int
    turn: int
    ticket: Ticket
    ranges: Ranges
    granted: asyncio.Future[None]
    on_wait: Callable[[Waiting], None] | None
    arrived: float
    started: float | None = None
    neighbours: set[Entry] = field(default_factory=set)
    overtaken: int = 0
    told: tuple[int, float] | None = None

    @property
    def position(self) -> tuple[int, int]:
        """Where it stands in the order of those who wait."""
        return self.turn, self.number

    def shares_with(self, other: Entry) -> bool:
        """Whether what the other takes may be what this one waits for."""
        mine, its = self.ticket, other.ticket
        return (
            mine.tool == its.tool
            or mine.actor == its.actor
            or other in self.neighbours
            or not set(mine.exclusive).isdisjoint(its.exclusive)
        )


class WaitQueue:
    """The calls of one event loop. Only that loop's thread changes it."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.running: set[Entry] = set()
        self.waiting: dict[int, Entry] = {}
        self.running_of: Counter[str] = Counter()
        self.waiting_of: Counter[str] = Counter()
        self.notifying = False
        self.empty = asyncio.Event()
        self.empty.set()
        self._actors: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._numbers = 0
        self._turn = 0

    def add(self, ticket: Ticket, on_wait: Callable[[Waiting], None] | None, now: float) -> Entry:
        """Put a call at the end of the line."""
        self._numbers += 1
        granted = asyncio.get_running_loop().create_future()
        own = (entry.turn for entry in self.waiting.values() if entry.ticket.actor == ticket.actor)
        turn = max(own, default=self._turn)
        entry = Entry(
            self._numbers, max(turn, self._turn) + 1, ticket, Ranges.of(ticket.targets), granted, on_wait, now
        )
        for other in (*self.running, *self.waiting.values()):
            if entry.ranges.overlaps(other.ranges):
                entry.neighbours.add(other)
                other.neighbours.add(entry)
        self.waiting[entry.number] = entry
        self.waiting_of[ticket.tool] += 1
        return entry

    def remove(self, entry: Entry) -> None:
        """Take a call out, whether it waits or runs; nothing of it stays."""
        tool = entry.ticket.tool
        if self.waiting.pop(entry.number, None) is not None:
            _less(self.waiting_of, tool)
        elif entry in self.running:
            self.running.remove(entry)
            _less(self.running_of, tool)
            _less(self._actors, entry.ticket.actor)
            for key in set(entry.ticket.exclusive):
                _less(self._held, key)
            if not self.running:
                self.empty.set()
        for other in entry.neighbours:
            other.neighbours.discard(entry)
        entry.neighbours.clear()

    def grant(self, now: float) -> None:
        """Let go all who may. A call whose tool has no cap any more fails with what the cap's function raised."""
        first = self._kept_for()
        for entry in self.order():
            if entry.granted.done() or entry.granted.get_loop().is_closed():
                continue
            try:
                able = self._able(entry, first)
            except NetworkToolsError as error:
                # A reload took the tool away. That is this call's end, not that of whoever gives a place back.
                entry.granted.set_exception(error)
                continue
            if able:
                self._start(entry, now)
                if entry is first:
                    first = None

    def order(self) -> list[Entry]:
        """Those who wait, in turn: one call of each caller as they came, then another of each, and so on.

        A call's turn is the one after its caller's last that waits, and never one that is over: a caller who fills
        the line is passed by others, and one who comes rarely gains nothing by it. (Start-time fair queueing, Goyal,
        Vin and Cheng 1996, with every call counted alike.)
        """
        return sorted(self.waiting.values(), key=lambda entry: entry.position)

    def waiting_for(self, actor: str, tool: str) -> int:
        """How many calls of the tool an actor has waiting."""
        return sum(entry.ticket.actor == actor and entry.ticket.tool == tool for entry in self.waiting.values())

    def _start(self, entry: Entry, now: float) -> None:
        for other in self.waiting.values():
            if other.position < entry.position and other.shares_with(entry):
                other.overtaken += 1
        del self.waiting[entry.number]
        _less(self.waiting_of, entry.ticket.tool)
        self.running.add(entry)
        self.running_of[entry.ticket.tool] += 1
        self._actors[entry.ticket.actor] += 1
        self._held.update(set(entry.ticket.exclusive))
        self.empty.clear()
        self._turn = max(self._turn, entry.turn)
        entry.started = now
        entry.granted.set_result(None)

    def _kept_for(self) -> Entry | None:
        """The first in order of those that were overtaken too often; what it asks for is kept from all after it."""
        # Nothing is kept for one that its own caller's runs are in the way of: others would stand still for them.
        tired = (e for e in self.waiting.values() if e.overtaken >= PATIENCE and self._actor_below_cap(e))
        return min(tired, key=lambda entry: entry.position, default=None)

    def _able(self, entry: Entry, first: Entry | None) -> bool:
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

    def _hosts_free(self, entry: Entry, other: Entry | None) -> bool:
        there = [each.ranges for each in entry.neighbours if each in self.running or each is other]
        limit = self.caps.per_host()
        if len(there) < limit:
            return True
        return limit > 1 and not entry.ranges.crowded(there, limit)

    def _actor_below_cap(self, entry: Entry) -> bool:
        return self._actors[entry.ticket.actor] < self.caps.per_actor()


def _less(counter: Counter[str], key: str) -> None:
    """Take one off; a name that has none left is forgotten."""
    if counter[key] <= 1:
        del counter[key]
    else:
        counter[key] -= 1
