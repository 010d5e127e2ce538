"""Finding records to show or to export; a line that is none is passed on as such, never left out."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from mcp_server.audit.reading import lines_of, segments
from mcp_server.audit.records import read_record
from mcp_server.errors import ArgumentError

_AGO: Final = re.compile(r"([0-9]{1,6})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records are wanted; None means all. ``since`` is an aware time."""

    since: datetime | None = None
    actor: str | None = None
    decision: str | None = None
    run: str | None = None

    def takes(self, record: dict[str, Any]) -> bool:
        """Whether a record is wanted."""
        return (
            (self.actor is None or record.get("actor") == self.actor)
            and (self.decision is None or record.get("decision") == self.decision)
            and (self.run is None or record.get("run_id") == self.run)
            and (self.since is None or (time_of(record) or self.since) >= self.since)
        )


def time_of(record: dict[str, Any]) -> datetime | None:
    """When a record was written, or None where that cannot be read."""
    try:
        time = datetime.fromisoformat(str(record.get("time")))
    except ValueError:
        return None
    return time if time.tzinfo else None


def read_since(text: str, now: datetime | None = None) -> datetime:
    """Read ``90m``, ``2h``, ``1d`` or an ISO 8601 time (UTC without an offset); raises ArgumentError."""
    try:
        if found := _AGO.fullmatch(text):
            return (now or datetime.now(UTC)) - timedelta(**{_UNITS[found[2]]: int(found[1])})
        time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        hint = "Give 90m, 2h, 1d or an ISO 8601 time such as 2026-01-31T12:00."
        raise ArgumentError("--since is no time", hint=hint) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def records(folder: Path, wanted: Filter) -> Iterator[dict[str, Any]]:
    """The wanted records in order; an unreadable line is ``{"unreadable": "FILE line N"}``. Raises OSError."""
    with segments(folder) as found:
        for segment in found:
            for number, line in enumerate(lines_of(segment), 1):
                record = read_record(line.removesuffix(b"\n"))
                if record is None:
                    yield {"unreadable": f"{segment.name} line {number}"}
                elif wanted.takes(record):
                    yield record


def newest(folder: Path, wanted: Filter, limit: int) -> list[dict[str, Any]]:
    """The last ``limit`` of the wanted records, in order."""
    return list(deque(records(folder, wanted), maxlen=limit))
