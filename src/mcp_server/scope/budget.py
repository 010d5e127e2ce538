"""The packet budgets of one hour, in total and per actor. Packets are reserved before a run and corrected after it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from mcp_server.errors import BusyError

HOUR: Final = 3600.0
SLOT: Final = 10.0
"""Seconds of reservations that share one slot, so that an hour has at most 361 slots."""


@dataclass(slots=True)
class _Slot:
    first: float
    last: float
    packets: int


@dataclass(slots=True, eq=False)
class Reservation:
    """Packets that are reserved for one run, in the total budget and in the actor's budget."""

    packets: int
    _slots: tuple[_Slot, ...]


class PacketBudget:
    """Counts the packets of the last hour in memory. After a restart, the count starts at 0.

    ``now`` is in seconds of `time.monotonic`. The limit is passed with each reservation, so one budget outlives
    reloads, and earlier packets still count.
    """

    def __init__(self) -> None:
        self._all = _Hour("the policy allows")
        self._by_actor: dict[str, _Hour] = {}

    def reserve(
        self, packets: int, limit: int | None, now: float, *, actor: str = "", own_limit: int | None = None
    ) -> Reservation:
        """Reserve packets under ``limit``, and for ``actor`` under ``own_limit``; None as a limit only counts them.

        Raises BusyError ``budget_exceeded``. Its details hold ``limit``, ``left`` and, if waiting helps,
        ``retry_after`` in seconds.
        """
        own = self._hour_of(actor, now)
        own.check(packets, own_limit, now)
        self._all.check(packets, limit, now)
        return Reservation(packets, tuple(hour.add(packets, now) for hour in (self._all, own)))

    def adjust(self, reservation: Reservation, actual: int) -> None:
        """Set a reservation to the number of packets that were sent. They count from the time of the reservation."""
        for slot in reservation._slots:  # noqa: SLF001 - both classes are part of this budget
            slot.packets += actual - reservation.packets
        reservation.packets = actual

    def release(self, reservation: Reservation) -> None:
        """Give back a reservation, because no packet was sent."""
        self.adjust(reservation, 0)

    def used(self, now: float) -> int:
        """Return the packets that all actors reserved in the hour before ``now``."""
        return self._all.used(now)

    def _hour_of(self, actor: str, now: float) -> _Hour:
        if actor not in self._by_actor:
            # Count actors without a limit too: a reload may give them one. Drop actors without packets in this hour.
            self._by_actor = {name: hour for name, hour in self._by_actor.items() if hour.used(now)}
            self._by_actor[actor] = _Hour("this caller may send")
        return self._by_actor[actor]


class _Hour:
    """The packets of one hour. ``allowed`` names who set the limit, for the message of a refusal."""

    def __init__(self, allowed: str) -> None:
        self._allowed = allowed
        self._slots: deque[_Slot] = deque()

    def check(self, packets: int, limit: int | None, now: float) -> None:
        """Raise BusyError if ``packets`` more would exceed ``limit``."""
        used = self.used(now)
        if limit is None or used + packets <= limit:
            return
        left = max(limit - used, 0)
        details: dict[str, Any] = {"limit": limit, "left": left, "asked": packets}
        message = f"The call needs up to {packets} packets; {self._allowed} {limit} per hour, and {left} are left."
        hint = "Ask for fewer addresses or ports."
        if packets <= limit and (wait := self._wait(used + packets - limit, now)) is not None:
            hint = f"Ask for fewer addresses or ports, or call again in {wait} s."
            details["retry_after"] = wait
        raise BusyError(message, code="budget_exceeded", hint=hint, **details)

    def add(self, packets: int, now: float) -> _Slot:
        """Reserve ``packets`` and return the slot that counts them."""
        if not self._slots or now - self._slots[-1].first >= SLOT:
            self._slots.append(_Slot(now, now, 0))
        slot = self._slots[-1]
        slot.last = now
        slot.packets += packets
        return slot

    def used(self, now: float) -> int:
        """Return the packets reserved in the hour before ``now``."""
        while self._slots and now - self._slots[0].last >= HOUR:
            self._slots.popleft()
        return sum(slot.packets for slot in self._slots)

    def _wait(self, excess: int, now: float) -> int | None:
        """Whole seconds until ``excess`` packets are more than an hour old, or None if fewer are counted."""
        for slot in self._slots:
            excess -= slot.packets
            if excess <= 0:
                return max(int(slot.last + HOUR - now) + 1, 1)
        return None
