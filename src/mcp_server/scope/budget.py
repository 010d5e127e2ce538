"""The budget of packets in an hour: reserved before a run, corrected to what it really took."""

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
    """Packets set aside for one run."""

    packets: int
    _slot: _Slot


class PacketBudget:
    """What was reserved in the last hour, in memory: a server that starts again starts with the whole hour.

    ``now`` is in seconds of a clock that does not go back, `time.monotonic`. One budget outlives reloads: the limit
    is given with each reservation, and what ran before still counts.
    """

    def __init__(self) -> None:
        self._slots: deque[_Slot] = deque()

    def reserve(self, packets: int, limit: int | None, now: float) -> Reservation:
        """Set packets aside; None as limit only counts them.

        Raises BusyError ``budget_exceeded``. Its details hold ``limit``, ``left`` and, where waiting helps,
        ``retry_after`` in seconds.
        """
        used = self.used(now)
        if limit is not None and used + packets > limit:
            left = max(limit - used, 0)
            wait = self._wait(used + packets - limit, now)
            details = {"limit": limit, "left": left, "asked": packets}
            if wait is None or packets > limit:
                raise BusyError(
                    f"the call may take {packets} packets; the policy allows {limit} an hour",
                    code="budget_exceeded",
                    hint="Ask for fewer addresses or ports.",
                    **details,
                )
            raise BusyError(
                f"the call may take {packets} packets; of the {limit} an hour that the policy allows, {left} are left",
                code="budget_exceeded",
                hint=f"Ask for fewer addresses or ports, or call again in {wait} s.",
                retry_after=wait,
                **details,
            )
        if not self._slots or now - self._slots[-1].first >= SLOT:
            self._slots.append(_Slot(now, now, 0))
        slot = self._slots[-1]
        slot.last = now
        slot.packets += packets
        return Reservation(packets, slot)

    def adjust(self, reservation: Reservation, actual: int) -> None:
        """Correct a reservation to the packets that were really sent; they count from when they were reserved."""
        reservation._slot.packets += actual - reservation.packets  # noqa: SLF001 - the two classes are one thing
        reservation.packets = actual

    def release(self, reservation: Reservation) -> None:
        """Give a reservation back: nothing was sent."""
        self.adjust(reservation, 0)

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
