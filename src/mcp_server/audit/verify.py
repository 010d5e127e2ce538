"""Verifying: the chain from record 0, every file in its place, and the checkpoints against the tree.

The chain alone shows an edit, a deletion and a change of order. A log cut off at its end, or written again with correct
hashes, is shown only by a checkpoint that was kept where its writer could not reach.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from mcp_server.audit.files import CURRENT, LEGACY, TAIL_LIMIT, open_regular, rotated_name
from mcp_server.audit.notes import Note, VerifierKey
from mcp_server.audit.reading import Segment, lines_of, segments
from mcp_server.audit.records import FIRST_PREV, is_canonical, read_record
from mcp_server.audit.tree import Frontier


class Kind(StrEnum):
    """What is wrong with a log."""

    EDITED = "edited"
    DELETED = "deleted"
    REORDERED = "reordered"
    TORN = "torn"
    TRUNCATED = "truncated"
    RECHAINED = "rechained"
    FORGED = "forged"


@dataclass(frozen=True, slots=True)
class Break:
    """The first place where a log is not what it should be: file, line (from 1), and the record's number."""

    kind: Kind
    file: str
    line: int
    seq: int
    detail: str


@dataclass(slots=True)
class Report:
    """What was found: ``size`` records that hold together, their tree's root, and the first break, if any.

    ``checked`` checkpoints were compared, ``sealed`` is the greatest number of records one of them covers.
    ``backwards`` counts records whose clock stood before that of the record before.
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


@dataclass(slots=True)
class _Walk:
    """Where the walk along the chain is."""

    report: Report = field(default_factory=Report)
    frontier: Frontier = field(default_factory=Frontier)
    roots: dict[int, bytes] = field(default_factory=dict)
    prev: str = FIRST_PREV
    file: str = ""
    line: int = 0
    previous: tuple[str, int] = ("", 0)

    def stop(self, kind: Kind, detail: str, *, at: tuple[str, int] | None = None, seq: int | None = None) -> None:
        """Note the first break: here, unless ``at`` says where."""
        file, line = at or (self.file, self.line)
        self.report.broken = Break(kind, file, line, self.frontier.size if seq is None else seq, detail)


_SEARCH_LIMIT: Final = 10_000_000
"""Records looked through for one that is not in its place."""


def verify(folder: Path, notes: Sequence[Note] = (), key: VerifierKey | None = None) -> Report:
    """Verify the log in a folder, and against checkpoints signed by ``key``; raises OSError.

    Neither changes nor needs anything but the files; a server may go on writing meanwhile.
    """
    walk = _Walk()
    wanted = {note.size for note in notes}
    with segments(folder) as found:
        for segment in found:
            walk.report.files += 1
            _walk_along(walk, folder, segment, wanted)
            if walk.report.broken:
                break
    report = walk.report
    report.size, report.root = walk.frontier.size, walk.frontier.root().hex()
    walk.roots.setdefault(report.size, walk.frontier.root())
    if report.broken is None:
        _compare(walk, notes, key)
    return report


def _walk_along(walk: _Walk, folder: Path, segment: Segment, wanted: set[int]) -> None:
    walk.previous = (walk.file, walk.line)
    walk.file, walk.line = segment.name, 0
    lines = lines_of(segment)
    for raw in lines:
        walk.line += 1
        line = raw.removesuffix(b"\n")
        if not raw.endswith(b"\n"):
            if segment.name == CURRENT and len(raw) < TAIL_LIMIT:
                walk.stop(
                    Kind.TORN, f"{len(raw)} bytes at the end are no whole line; the next record would repair that"
                )
            else:
                walk.stop(Kind.EDITED, "the line has no end, or is longer than any record")
            return
        record = read_record(line)
        if record is None or not is_canonical(line, record):
            walk.stop(Kind.EDITED, "the line is not a record as this log writes them")
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
        _counter(walk.report, record)


def _counter(report: Report, record: dict[str, Any]) -> None:
    time = str(record.get("time", ""))
    report.first_time = report.first_time or time
    if report.last_time is not None and time < report.last_time:
        report.backwards += 1
    report.last_time = time
    report.repairs += record["event"] == "repair"


def _out_of_order(walk: _Walk, folder: Path, seq: int) -> None:
    expected = walk.frontier.size
    if seq < expected:
        walk.stop(Kind.REORDERED, f"record {seq} stands where record {expected} should", seq=expected)
        return
    elsewhere = _find(folder, expected)
    if elsewhere:
        walk.stop(Kind.REORDERED, f"record {seq} stands where record {expected} should, which is in {elsewhere}")
        return
    one = seq == expected + 1
    missing = f"record {expected} is missing" if one else f"records {expected} to {seq - 1} are missing"
    walk.stop(Kind.DELETED, missing + (_missing_file(folder) if walk.line == 1 else ""))


def _missing_file(folder: Path) -> str:
    with segments(folder) as found:
        for number, segment in enumerate(found, 1):
            if segment.number != number:
                return f"; the file {rotated_name(number)} is missing"
            if segment.name == CURRENT:
                return f"; they may have been in a file {rotated_name(number)}"
    return ""


def _find(folder: Path, seq: int) -> str:
    """The file and line where a record stands, or nothing."""
    looked = 0
    with segments(folder) as found:
        for segment in found:
            for number, line in enumerate(lines_of(segment), 1):
                record = read_record(line.removesuffix(b"\n"))
                if record is not None and record["seq"] == seq:
                    return f"{segment.name} line {number}"
                looked += 1
                if looked >= _SEARCH_LIMIT:
                    return ""
    return ""


def _prev_differs(walk: _Walk, line: bytes, following: bytes) -> None:
    """Either this record was edited or the one before: the record after this one tells."""
    after = read_record(following.removesuffix(b"\n"))
    untouched = after is not None and after["prev"] == hashlib.sha256(line).hexdigest()
    if walk.frontier.size and (untouched or after is None):
        seq = walk.frontier.size - 1
        walk.stop(
            Kind.EDITED, f"record {seq} does not have the hash that record {seq + 1} holds", at=walk.previous, seq=seq
        )
    else:
        walk.stop(Kind.EDITED, "the record does not hold the hash of the one before")


def _check_legacy(walk: _Walk, folder: Path, record: dict[str, Any]) -> None:
    try:
        with open(open_regular(folder / LEGACY, 0), "rb") as file:  # noqa: PTH123 - a descriptor
            same = hashlib.file_digest(file, "sha256").hexdigest() == record.get("legacy_sha256")
    except FileNotFoundError:
        walk.stop(Kind.DELETED, f"{LEGACY}, whose hash this record holds, is missing")
        return
    if not same:
        walk.stop(Kind.EDITED, "it does not have the hash that record 0 holds", at=(LEGACY, 0))


def _compare(walk: _Walk, notes: Sequence[Note], key: VerifierKey | None) -> None:
    """Compare with every checkpoint that the key signed, smallest first; then say whether there are others."""
    report, agreed = walk.report, 0
    end = (walk.file, walk.line)
    signed: list[Note] = []
    others: list[Note] = []
    for note in sorted(notes, key=lambda note: note.size):
        (signed if key is not None and key.signed(note) else others).append(note)
    for note in signed:
        if note.size > report.size:
            walk.stop(Kind.TRUNCATED, f"{note.size} records were sealed, {report.size} are there", at=end)
            return
        if walk.roots[note.size] != note.root:
            detail = f"records {agreed} to {note.size - 1} are not those that were sealed: the log was written again"
            walk.stop(Kind.RECHAINED, detail, at=("", 0), seq=agreed)
            return
        agreed = report.sealed = note.size
        report.checked += 1
    if others:
        walk.stop(Kind.FORGED, f"the checkpoint of {others[0].size} records is not signed by this log's key", at=end)
