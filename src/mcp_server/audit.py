"""The decision log: append-only JSON lines, one record before anything is spawned and one when it has ended.

A record is one line, appended under a lock and synced, so that records of several processes do not mix. No log, no
run: a record that cannot be written raises `PlatformError` and the call stops there.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import math
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mcp_server.errors import PlatformError
from mcp_server.model.untrusted import neutralise

ARGUMENT_LIMIT = 4096
"""Characters of one argument kept in a record; a longer one is cut with its length noted."""


def printable(value: Any, limit: int = ARGUMENT_LIMIT, *, levels: int = 8) -> Any:
    """Return JSON-ready ``value`` with every string neutralised and bounded, 64 entries a level, ``levels`` deep.

    What JSON has no number for (NaN, infinity, integers beyond 64 bits) is described in words instead.
    """
    if not isinstance(value, dict | list | tuple):
        return _scalar(value, limit)
    if not levels:
        return f"a {type(value).__name__} nested too deeply"
    if isinstance(value, dict):
        entries = list(value.items())[:64]
        return {neutralise(str(key), 64): printable(item, limit, levels=levels - 1) for key, item in entries}
    return [printable(item, limit, levels=levels - 1) for item in value[:64]]


def _scalar(value: Any, limit: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= 64 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return neutralise(value if isinstance(value, str) else repr(value), limit)


# Not through a link, and not waiting for a reader where somebody put a pipe in the log's place.
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


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
            descriptor = os.open(self.path, _FLAGS, 0o600)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "it is not a regular file")
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # given back with the descriptor
                self._write_whole(descriptor, line)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise PlatformError(
                f"the decision log {self.path} cannot be written: {error.strerror}",
                code="disk_full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "audit_unavailable",
            ) from error

    @staticmethod
    def _write_whole(descriptor: int, line: bytes) -> None:
        start = os.fstat(descriptor).st_size
        if start and os.pread(descriptor, 1, start - 1) != b"\n":
            # A record that a crash cut off must not swallow this one.
            line = b"\n" + line
        if os.write(descriptor, line) != len(line):
            # A torn line must not be mistaken for a record: take it back, then report the full disk.
            os.ftruncate(descriptor, start)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
