"""Check whether memory, descriptors and children of a server grow with the number of calls."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.descendants import descendants
from bench.result import Result
from bench.stdio import Session, served

EARLY: Final = 200
LATE: Final = 1000
GROWTH: Final = 1.05
_SETTLE_SEC: Final = 1.0
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class ResourceUse:
    """The resources of a process: resident bytes, open descriptors, descendants."""

    resident: int
    files: int
    children: int

    @classmethod
    def of(cls, pid: int) -> ResourceUse:
        """Read the current values of a process."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(pages * _PAGE, len(list(Path(f"/proc/{pid}/fd").iterdir())), len(list(descendants(pid))))


def measure() -> list[Result]:
    """Compare resident memory after 1,000 calls with that after 200; descriptors and children must be the same."""
    with served() as (session, _):
        _call(session, EARLY)
        early = _settled(session)
        started = time.perf_counter()
        _call(session, LATE - EARLY)
        rate = (LATE - EARLY) / (time.perf_counter() - started)
        late = _settled(session)
    ratio = late.resident / early.resident
    return [
        Result(
            f"memory after {LATE} calls",
            f"{late.resident / 1e6:.1f} MB",
            f"ratio <= {GROWTH}",
            ratio <= GROWTH,
            floor=f"{early.resident / 1e6:.1f} MB",
            ratio=ratio,
            notes=(f"the floor is the same server after {EARLY} calls; {rate:.0f} calls per second, one at a time",),
        ),
        Result(
            f"descriptors after {LATE} calls",
            f"{late.files} files, {late.children} children",
            f"as after {EARLY}",
            (late.files, late.children) == (early.files, early.children),
            floor=f"{early.files} files, {early.children} children",
        ),
    ]


def _call(session: Session, count: int) -> None:
    for _ in range(count):
        session.call("nmap", target="127.0.0.1", mode="discover")


def _settled(session: Session) -> ResourceUse:
    """Return the resources of the server a second after the last call."""
    time.sleep(_SETTLE_SEC)
    return ResourceUse.of(session.process.pid)
