"""Whether a server that has answered many calls holds more than one that has answered few: memory, files, children."""

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
class Held:
    """What a process holds: resident bytes, open descriptors, processes below it."""

    resident: int
    files: int
    children: int

    @classmethod
    def by(cls, pid: int) -> Held:
        """What it holds now."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(pages * _PAGE, len(list(Path(f"/proc/{pid}/fd").iterdir())), len(list(descendants(pid))))


def measure() -> list[Result]:
    """Resident memory after 1,000 calls against after 200; descriptors and children must be the same."""
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
            notes=(f"the floor is the same server after {EARLY} calls; {rate:.0f} calls a second, one at a time",),
        ),
        Result(
            f"held after {LATE} calls",
            f"{late.files} files, {late.children} children",
            f"as after {EARLY}",
            (late.files, late.children) == (early.files, early.children),
            floor=f"{early.files} files, {early.children} children",
        ),
    ]


def _call(session: Session, count: int) -> None:
    for _ in range(count):
        session.call("nmap", target="127.0.0.1", mode="discover")


def _settled(session: Session) -> Held:
    """What the server holds a moment after the last call."""
    time.sleep(_SETTLE_SEC)
    return Held.by(session.process.pid)
