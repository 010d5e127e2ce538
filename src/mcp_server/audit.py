"""The decision log: append-only JSON lines, one record before anything is spawned and one when it has ended.

A record is one line written with a single ``write`` to a descriptor opened for appending, then synced, so
records of several processes do not mix (POSIX ``write(2)``, ``O_APPEND``). No log, no run: a record that
cannot be written raises `PlatformError` and the call stops there.
"""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mcp_server.errors import PlatformError
from mcp_server.model.untrusted import neutralise

ARGUMENT_LIMIT = 4096
"""Characters of one argument kept in a record; a longer one is cut with its length noted."""


def printable(value: Any, limit: int = ARGUMENT_LIMIT) -> Any:
    """Return JSON-ready ``value`` with every string neutralised and bounded, at most 64 entries a level."""
    if isinstance(value, str):
        return neutralise(value, limit)
    if isinstance(value, dict):
        return {neutralise(str(key), 64): printable(item, limit) for key, item in list(value.items())[:64]}
    if isinstance(value, list | tuple):
        return [printable(item, limit) for item in value[:64]]
    if value is None or isinstance(value, bool | int | float):
        return value
    return neutralise(repr(value), limit)


class AuditLog:
    """Appends decision records to ``audit.jsonl`` in the state folder, mode 0600."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "audit.jsonl"

    async def append(self, event: str, **fields: Any) -> None:
        """Write one synced record; raises PlatformError ``audit_unavailable`` or ``disk_full``."""
        record = {"time": datetime.now(UTC).isoformat(timespec="microseconds"), "event": event, **fields}
        line = json.dumps(record, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode() + b"\n"
        await asyncio.to_thread(self._write, line)

    def _write(self, line: bytes) -> None:
        try:
            descriptor = os.open(
                self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                self._write_whole(descriptor, line)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise PlatformError(
                f"the decision log {self.path} cannot be written: {error.strerror}", code="audit_unavailable"
            ) from error

    @staticmethod
    def _write_whole(descriptor: int, line: bytes) -> None:
        start = os.fstat(descriptor).st_size
        if os.write(descriptor, line) != len(line):
            # A torn line must not be mistaken for a record: take it back, then report the full disk.
            os.ftruncate(descriptor, start)
            raise OSError(28, "No space left on device")
