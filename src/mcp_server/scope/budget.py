"""The budgets of packets in an hour, of all and of each actor: reserved before a run, corrected to what it took."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from mcp_server.errors import BusyError

HOUR: Final = 3600.0
SLOT: Final = 10.0
"""Reservations of this many seconds are kept as one, so an hour costs at most 361 of them."""


@dataclass(slots=True)
class _Slot:
    first: float
    last: float
    packets: int


@dataclass(slots=True, eq=False)
class Reservation:
    """Packets set aside for one run; in the actor's own budget too."""

    packets: int
    _slots: tuple[_Slot, ...]


class PacketBudget:
    """What was reserved in the last hour, in memory: a server that starts again starts with the whole hour.

    ``now`` is in seconds of a clock that does not go back, `time.monotonic`. One budget outlives reloads: the limit
    is given with each reservation, and what ran before still counts.
    """

    def __init__(self) -> None:
        self._all = _Hour("the policy allows")
        self._own: dict[str, _Hour] = {}

    def reserve(
        self, packets: int, limit: int | None, now: float, *, actor: str = "", own_limit: int | None = None
    ) -> Reservation:
        """Set packets aside under ``limit``, and for ``actor`` under its own; None as limit only counts them.

        Raises BusyError ``budget_exceeded``. Its details hold ``limit``, ``left`` and, where waiting helps,
        ``retry_after`` in seconds.
        """
        own = self._hour_of(actor, now)
        own.check(packets, own_limit, now)
        self._all.check(packets, limit, now)
        return Reservation(packets, tuple(hour.add(packets, now) for hour in (self._all, own)))

    def adjust(self, reservation: Reservation, actual: int) -> None:
        """Correct a reservation to the packets that were really sent; they count from when they were reserved."""
        for slot in reservation._slots:  # noqa: SLF001 - the two classes are one thing
            slot.packets += actual - reservation.packets
        reservation.packets = actual

    def release(self, reservation: Reservation) -> None:
        """Give a reservation back: nothing was sent."""
        self.adjust(reservation, 0)

    def used(self, now: float) -> int:
        """Packets reserved in the hour before ``now``, by all."""
        return self._all.used(now)

    def _hour_of(self, actor: str, now: float) -> _Hour:
        if actor not in self._own:
            # Also of actors without a limit, which may get one. Each costs a run, and those of an hour are kept.
            self._own = {name: hour for name, hour in self._own.items() if hour.used(now)}
            self._own[actor] = _Hour("this caller may send")
        return self._own[actor]


class _Hour:
    """What was reserved within an hour; ``allowed`` says who set the limit, as a refusal begins."""

    def __init__(self, allowed: str) -> None:
        self._allowed = allowed
        self._slots: deque[_Slot] = deque()

    def check(self, packets: int, limit: int | None, now: float) -> None:
        """Raise BusyError where there is no room for ``packets``."""
        used = self.used(now)
        if limit is not None and used + packets > limit:
            left = max(limit - used, 0)
            wait = self._wait(used + packets - limit, now)
            details = {"limit": limit, "left": left, "asked": packets}
            if wait is None or packets > limit:
                raise BusyError(
                    f"the call may take {packets} packets; {self._allowed} {limit} an hour",
                    code="budget_exceeded",
                    hint="Ask for fewer addresses or ports.",
                    **details,
                )
            raise BusyError(
                f"the call may take {packets} packets; of the {limit} an hour that {self._allowed}, {left} are left",
                code="budget_exceeded",
                hint=f"Ask for fewer addresses or ports, or call again in {wait} s.",
                retry_after=wait,
                **details,
            )

    def add(self, packets: int, now: float) -> _Slot:
        """Reserve them, and return the slot they are counted in."""
        if not self._slots or now - self._slots[-1].first >= SLOT:
            self._slots.append(_Slot(now, now, 0))
        slot = self._slots[-1]
        slot.last = now
        slot.packets += packets
        return slot

    def used(self, now: float) -> int:
        """Packets reserved in the hour before ``now``."""
        while self._slots and now - self._slots[0].last >= HOUR:
            self._slots.popleft()
        return sum(slot.packets for slot in self._slots)

    def _wait(self, excess: int, now: float) -> int | None:
        """Whole seconds until ``excess`` packets have left the hour, or None where they never will."""
        for slot in self._slots:
            excess -= slot.packets
            if excess <= 0:
                return max(int(slot.last + HOUR - now) + 1, 1)
        return None
