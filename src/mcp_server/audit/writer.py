"""Appending records: one at a time under the lock of the log, synced to the disk before the call returns.

Several processes may append to the same log. Each keeps the position of the end of the log after its own last record.
If another process has written since then, the end of the chain is read from the last line. The last record that this
process wrote must be unchanged.

A line that a crash cut off was never acknowledged. It is overwritten by a ``repair`` record that holds its bytes.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from mcp_server.audit.files import (
    CURRENT,
    LEGACY,
    locked,
    open_regular,
    read_tail,
    rotated_name,
    rotated_numbers,
)
from mcp_server.audit.records import ChainHead, Receipt, line_of, read_record
from mcp_server.errors import PlatformError

TERMS: Final = ("scope_hash", "enforcement")
"""Fields that every record has: the policy and the enforcement in force when it was written."""
TORN_KEPT: Final = 16 * 1024
"""Bytes of an incomplete line that its ``repair`` record keeps."""


class _Position(NamedTuple):
    """The end of the log after the last record of this process: file, size, length of the last line, and chain."""

    device: int
    inode: int
    size: int
    line: int
    head: ChainHead


class _LogEnd(NamedTuple):
    """The start of an append: the offset, the end of the chain, and the incomplete line that a crash left, if any.

    ``first`` is set if the log has no record yet.
    """

    offset: int
    head: ChainHead
    torn: bytes = b""
    first: bool = False


class AuditWriter:
    """Appends records to the log in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._position: _Position | None = None

    def append(self, event: str, fields: Mapping[str, Any], max_file_size: int) -> Receipt:
        """Write and sync one record; ``fields`` must have passed `records.cleaned`.

        Raises PlatformError ``audit_unavailable`` or ``disk_full``, and ``audit_broken`` if the log has lost records.
        """
        try:
            with locked(self._folder) as folder:
                return self._append(folder, event, fields, max_file_size)
        except OSError as error:
            raise PlatformError(
                f"The audit log {self._folder / CURRENT} cannot be written: {error.strerror}.",
                code="disk_full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "audit_unavailable",
            ) from error

    def _append(self, folder: int, event: str, fields: Mapping[str, Any], max_file_size: int) -> Receipt:
        descriptor = open_regular(CURRENT, os.O_RDWR | os.O_CREAT, folder)
        try:
            end = self._find_end(folder, descriptor)
            if end is None:  # a log of an earlier version: rename it, so that record 0 can hold its hash
                os.rename(CURRENT, LEGACY, src_dir_fd=folder, dst_dir_fd=folder)
                descriptor = _reopen(folder, descriptor)
                end = _LogEnd(0, ChainHead(), first=True)
            lines, head = self._lines(folder, end, event, fields)
            if end.offset and not end.torn and end.offset + len(lines) > max_file_size:
                number = (rotated_numbers(folder) or [0])[-1] + 1
                os.rename(CURRENT, rotated_name(number), src_dir_fd=folder, dst_dir_fd=folder)
                descriptor = _reopen(folder, descriptor)
                end = _LogEnd(0, end.head)
            _write(descriptor, end, lines)
            if not end.offset:
                os.fsync(folder)  # the name of a new file must survive a power failure too
            found = os.fstat(descriptor)
            last = len(lines) - 1 - (lines.rfind(b"\n", 0, -1) + 1)
            self._position = _Position(found.st_dev, found.st_ino, found.st_size, last, head)
            return Receipt(head.seq - 1, head.prev)
        finally:
            os.close(descriptor)

    def _find_end(self, folder: int, descriptor: int) -> _LogEnd | None:
        """Return the end of the chain, or None if the file was written by a version without a chain."""
        found, position = os.fstat(descriptor), self._position
        if position and not _still_there(folder, descriptor, position):
            seq = position.head.seq - 1
            raise _broken(f"record {seq} is not what this process wrote, so records were removed or replaced")
        if position and (position.device, position.inode, position.size) == (found.st_dev, found.st_ino, found.st_size):
            return _LogEnd(position.size, position.head)
        tail = read_tail(descriptor, found.st_size)
        if tail.line is None:
            head = _end_of_full_files(folder)
        elif (read := _head_after(tail.line)) is not None:
            head = read
        elif position is None and not rotated_numbers(folder) and not _first_line_is_chained(descriptor):
            return None
        else:
            raise _broken(f"the last line of {CURRENT} is not a record of the chain")
        if position and head.seq < position.head.seq:
            before, now = position.head.seq - 1, head.seq - 1
            raise _broken(f"it ended with record {before} and now ends with record {now}, so records were removed")
        return _LogEnd(tail.end, head, tail.torn, first=head.seq == 0)

    def _lines(self, folder: int, end: _LogEnd, event: str, fields: Mapping[str, Any]) -> tuple[bytes, ChainHead]:
        lines, head = b"", end.head
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        # The genesis and repair records are written together with this one, so the same terms are in force.
        terms = {name: fields[name] for name in TERMS if name in fields}
        if end.first and (legacy := _hash_of_legacy(folder)):
            line, head = line_of(head, now, "genesis", legacy | terms)
            lines += line
        if end.torn:
            line, head = line_of(head, now, "repair", _describe_torn(end.torn) | terms)
            lines += line
        line, head = line_of(head, now, event, fields)
        return lines + line, head


def _write(descriptor: int, end: _LogEnd, lines: bytes) -> None:
    """Write everything and sync. If that fails, restore the file and raise OSError."""
    try:
        _write_all(descriptor, lines, end.offset)
        if len(lines) < len(end.torn):
            os.ftruncate(descriptor, end.offset + len(lines))
        os.fdatasync(descriptor)
    except OSError:
        # An incomplete line must not pass for a record, and the bytes that a crash left must stay for a later repair.
        with suppress(OSError):
            os.ftruncate(descriptor, end.offset)
            if end.torn:
                os.pwrite(descriptor, end.torn, end.offset)
        raise


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    if os.pwrite(descriptor, data, offset) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _reopen(folder: int, descriptor: int) -> int:
    fresh = open_regular(CURRENT, os.O_RDWR | os.O_CREAT | os.O_EXCL, folder)
    os.close(descriptor)
    return fresh


def _still_there(folder: int, current: int, position: _Position) -> bool:
    """Return whether the last record of this process is unchanged, in the current file or in a full one."""
    found = os.fstat(current)
    if (found.st_dev, found.st_ino) == (position.device, position.inode):
        return _holds(current, position)
    for number in reversed(rotated_numbers(folder)):
        full = open_regular(rotated_name(number), os.O_RDONLY, folder)
        try:
            found = os.fstat(full)
            if (found.st_dev, found.st_ino) == (position.device, position.inode):
                return _holds(full, position)
        finally:
            os.close(full)
    return False


def _holds(descriptor: int, position: _Position) -> bool:
    line = os.pread(descriptor, position.line + 1, position.size - position.line - 1)
    return line.endswith(b"\n") and hashlib.sha256(line[:-1]).hexdigest() == position.head.prev


def _head_after(line: bytes) -> ChainHead | None:
    record = read_record(line)
    return None if record is None else ChainHead(record["seq"] + 1, hashlib.sha256(line).hexdigest())


def _end_of_full_files(folder: int) -> ChainHead:
    numbers = rotated_numbers(folder)
    if not numbers:
        return ChainHead()
    name = rotated_name(numbers[-1])
    descriptor = open_regular(name, os.O_RDONLY, folder)
    try:
        tail = read_tail(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)
    head = None if tail.line is None or tail.torn else _head_after(tail.line)
    if head is None:
        raise _broken(f"{name} does not end with a record of the chain")
    return head


def _first_line_is_chained(descriptor: int) -> bool:
    first = os.pread(descriptor, 1024 * 1024, 0).split(b"\n", 1)[0]
    return read_record(first) is not None


def _hash_of_legacy(folder: int) -> dict[str, Any] | None:
    try:
        descriptor = open_regular(LEGACY, os.O_RDONLY, folder)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"legacy_file": LEGACY, "legacy_bytes": os.fstat(file.fileno()).st_size, "legacy_sha256": digest}


def _describe_torn(torn: bytes) -> dict[str, Any]:
    return {
        "torn_bytes": len(torn),
        "torn_sha256": hashlib.sha256(torn).hexdigest(),
        "torn": base64.b64encode(torn[:TORN_KEPT]).decode(),
    }


def _broken(what: str) -> PlatformError:
    return PlatformError(f"The audit log is broken: {what}.", code="audit_broken")
