"""Selecting records to show or to export. An unreadable line is reported as such, never skipped."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from mcp_server.audit.files import lines_of, log_files
from mcp_server.audit.records import read_record
from mcp_server.errors import ArgumentError

_AGO: Final = re.compile(r"([0-9]{1,6})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Conditions that a record must meet. None means no condition. ``since`` is a time with an offset."""

    since: datetime | None = None
    actor: str | None = None
    decision: str | None = None
    run: str | None = None

    def takes(self, record: dict[str, Any]) -> bool:
        """Return whether a record meets all conditions."""
        return (
            (self.actor is None or record.get("actor") == self.actor)
            and (self.decision is None or record.get("decision") == self.decision)
            and (self.run is None or record.get("run_id") == self.run)
            and (self.since is None or (time_of(record) or self.since) >= self.since)
        )


def time_of(record: dict[str, Any]) -> datetime | None:
    """Return when a record was written, or None if its time cannot be parsed."""
    try:
        time = datetime.fromisoformat(str(record.get("time")))
    except ValueError:
        return None
    return time if time.tzinfo else None


def read_since(text: str, now: datetime | None = None) -> datetime:
    """Parse ``90m``, ``2h``, ``1d`` or an ISO 8601 time, which is UTC if it has no offset. Raises ArgumentError."""
    try:
        if found := _AGO.fullmatch(text):
            return (now or datetime.now(UTC)) - timedelta(**{_UNITS[found[2]]: int(found[1])})
        time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        hint = "Give 90m, 2h, 1d or an ISO 8601 time such as 2026-01-31T12:00."
        raise ArgumentError(f"--since {text[:40]!r} is not a time.", hint=hint) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def records(folder: Path, wanted: RecordFilter) -> Iterator[dict[str, Any]]:
    """Yield the selected records in order; an unreadable line is ``{"unreadable": "FILE line N"}``. Raises OSError."""
    with log_files(folder) as found:
        for file in found:
            for number, line in enumerate(lines_of(file), 1):
                record = read_record(line.removesuffix(b"\n"))
                if record is None:
                    yield {"unreadable": f"{file.name} line {number}"}
                elif wanted.takes(record):
                    yield record


def newest(folder: Path, wanted: RecordFilter, limit: int) -> list[dict[str, Any]]:
    """Return the last ``limit`` selected records, in order."""
    return list(deque(records(folder, wanted), maxlen=limit))
