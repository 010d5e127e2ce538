"""Verifying a log: the chain from record 0, every file in order, and the checkpoints against the tree.

The chain alone shows an edit, a deletion or a change of order. A log that was cut off at its end, or written again with
correct hashes, is shown only by a checkpoint that was kept where the log's writer could not change it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from mcp_server.audit.files import (
    CURRENT,
    LEGACY,
    TAIL_LIMIT,
    LogFile,
    lines_of,
    log_files,
    open_regular,
    rotated_name,
)
from mcp_server.audit.notes import Note, VerifierKey
from mcp_server.audit.records import FIRST_PREV, is_canonical, read_record
from mcp_server.audit.tree import Frontier


class BreakKind(StrEnum):
    """The kinds of error in a log."""

    EDITED = "edited"
    DELETED = "deleted"
    REORDERED = "reordered"
    TORN = "torn"
    TRUNCATED = "truncated"
    RECHAINED = "rechained"
    FORGED = "forged"


@dataclass(frozen=True, slots=True)
class Break:
    """The first error in a log: its kind, the file and line (from 1), and the number of the record."""

    kind: BreakKind
    file: str
    line: int
    seq: int
    detail: str


@dataclass(slots=True)
class Verification:
    """The result of `verify`: ``size`` valid records, the root of their tree, and the first error, if any.

    ``checked`` is the number of checkpoints that agree with the log, ``sealed`` the number of records that they cover,
    and ``backwards`` the number of records whose time is before that of the previous record.
    """

    size: int = 0
    root: str = ""
    files: int = 0
    first_time: str | None = None
    last_time: str | None = None
    repairs: int = 0
    backwards: int = 0
    checked: int = 0
    sealed: int = 0
    broken: Break | None = None

    def add(self, record: dict[str, Any]) -> None:
        """Count a valid record."""
        time = str(record.get("time", ""))
        self.first_time = self.first_time or time
        if self.last_time is not None and time < self.last_time:
            self.backwards += 1
        self.last_time = time
        self.repairs += record["event"] == "repair"


@dataclass(slots=True)
class _Walk:
    """The state of reading the log from its beginning."""

    report: Verification = field(default_factory=Verification)
    frontier: Frontier = field(default_factory=Frontier)
    roots: dict[int, bytes] = field(default_factory=dict)
    prev: str = FIRST_PREV
    file: str = ""
    line: int = 0
    previous: tuple[str, int] = ("", 0)

    def stop(self, kind: BreakKind, detail: str, *, at: tuple[str, int] | None = None, seq: int | None = None) -> None:
        """Set the first error, at the present line unless ``at`` is set."""
        file, line = at or (self.file, self.line)
        self.report.broken = Break(kind, file, line, self.frontier.size if seq is None else seq, detail)


_SEARCH_LIMIT: Final = 10_000_000
"""Records that are searched for a record that is missing at its position."""


def verify(folder: Path, notes: Sequence[Note] = (), key: VerifierKey | None = None) -> Verification:
    """Verify the log in a folder, and compare it with the checkpoints that ``key`` signed. Raises OSError.

    It only reads files, so a server may write to the log at the same time.
    """
    walk = _Walk()
    wanted = {note.size for note in notes}
    with log_files(folder) as found:
        for file in found:
            walk.report.files += 1
            _walk_file(walk, folder, file, wanted)
            if walk.report.broken:
                break
    report = walk.report
    report.size, report.root = walk.frontier.size, walk.frontier.root().hex()
    walk.roots.setdefault(report.size, walk.frontier.root())
    if report.broken is None:
        _compare(walk, notes, key)
    return report


def _walk_file(walk: _Walk, folder: Path, file: LogFile, wanted: set[int]) -> None:
    walk.previous = (walk.file, walk.line)
    walk.file, walk.line = file.name, 0
    lines = lines_of(file)
    for raw in lines:
        walk.line += 1
        line = raw.removesuffix(b"\n")
        if not raw.endswith(b"\n"):
            if file.name == CURRENT and len(raw) < TAIL_LIMIT:
                detail = f"the last {len(raw)} bytes are an incomplete line, which the next record will repair"
                walk.stop(BreakKind.TORN, detail)
            else:
                walk.stop(BreakKind.EDITED, "the line has no end, or is longer than any record")
            return
        record = read_record(line)
        if record is None or not is_canonical(line, record):
            walk.stop(BreakKind.EDITED, "the line is not a record in canonical form")
        elif record["seq"] != walk.frontier.size:
            _out_of_order(walk, folder, record["seq"])
        elif record["prev"] != walk.prev:
            _prev_differs(walk, line, next(lines, b""))
        elif record["event"] == "genesis":
            _check_legacy(walk, folder, record)
        if walk.report.broken or record is None:
            return
        walk.previous = (walk.file, walk.line)
        walk.prev = hashlib.sha256(line).hexdigest()
        walk.frontier.add(line)
        if walk.frontier.size in wanted:
            walk.roots[walk.frontier.size] = walk.frontier.root()
        walk.report.add(record)


def _out_of_order(walk: _Walk, folder: Path, seq: int) -> None:
    expected = walk.frontier.size
    if seq < expected:
        walk.stop(BreakKind.REORDERED, f"record {seq} is where record {expected} should be", seq=expected)
        return
    elsewhere = _find(folder, expected)
    if elsewhere:
        detail = f"record {seq} is where record {expected} should be, which is in {elsewhere}"
        walk.stop(BreakKind.REORDERED, detail)
        return
    one = seq == expected + 1
    missing = f"record {expected} is missing" if one else f"records {expected} to {seq - 1} are missing"
    walk.stop(BreakKind.DELETED, missing + (_missing_file(folder) if walk.line == 1 else ""))


def _missing_file(folder: Path) -> str:
    with log_files(folder) as found:
        for number, file in enumerate(found, 1):
            if file.number != number:
                return f"; the file {rotated_name(number)} is missing"
            if file.name == CURRENT:
                return f"; they may have been in a file {rotated_name(number)}"
    return ""


def _find(folder: Path, seq: int) -> str:
    """Return the file and line of a record, or an empty string if it is not found."""
    searched = 0
    with log_files(folder) as found:
        for file in found:
            for number, line in enumerate(lines_of(file), 1):
                record = read_record(line.removesuffix(b"\n"))
                if record is not None and record["seq"] == seq:
                    return f"{file.name} line {number}"
                searched += 1
                if searched >= _SEARCH_LIMIT:
                    return ""
    return ""


def _prev_differs(walk: _Walk, line: bytes, following: bytes) -> None:
    """Set the error: either this record or the previous one was edited, which the record after this one shows."""
    after = read_record(following.removesuffix(b"\n"))
    untouched = after is not None and after["prev"] == hashlib.sha256(line).hexdigest()
    if walk.frontier.size and (untouched or after is None):
        seq = walk.frontier.size - 1
        detail = f"record {seq} does not have the hash that record {seq + 1} holds"
        walk.stop(BreakKind.EDITED, detail, at=walk.previous, seq=seq)
    else:
        walk.stop(BreakKind.EDITED, "the record does not hold the hash of the previous record")


def _check_legacy(walk: _Walk, folder: Path, record: dict[str, Any]) -> None:
    try:
        with open(open_regular(folder / LEGACY, 0), "rb") as file:  # noqa: PTH123 - a descriptor
            same = hashlib.file_digest(file, "sha256").hexdigest() == record.get("legacy_sha256")
    except FileNotFoundError:
        walk.stop(BreakKind.DELETED, f"{LEGACY}, whose hash this record holds, is missing")
        return
    if not same:
        walk.stop(BreakKind.EDITED, "it does not have the hash that record 0 holds", at=(LEGACY, 0))


def _compare(walk: _Walk, notes: Sequence[Note], key: VerifierKey | None) -> None:
    """Compare the log with every checkpoint that the key signed, smallest first, then report one it did not sign."""
    report, agreed = walk.report, 0
    end = (walk.file, walk.line)
    signed: list[Note] = []
    others: list[Note] = []
    for note in sorted(notes, key=lambda note: note.size):
        (signed if key is not None and key.signed(note) else others).append(note)
    for note in signed:
        if note.size > report.size:
            detail = f"a checkpoint covers {note.size} records, and the log has {report.size}"
            walk.stop(BreakKind.TRUNCATED, detail, at=end)
            return
        if walk.roots[note.size] != note.root:
            detail = f"records {agreed} to {note.size - 1} differ from a checkpoint: the log was written again"
            walk.stop(BreakKind.RECHAINED, detail, at=("", 0), seq=agreed)
            return
        agreed = report.sealed = note.size
        report.checked += 1
    if others:
        detail = f"the checkpoint of {others[0].size} records is not signed by the key of this log"
        walk.stop(BreakKind.FORGED, detail, at=end)
