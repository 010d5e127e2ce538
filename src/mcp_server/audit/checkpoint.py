"""Sealing: the tree is carried on to the newest record, its root signed, kept in ``audit.checkpoints`` and shipped.

Where the tree was left stands in ``audit.tree``, so that a start does not read the whole log again. It is believed only
where the record it ends with is still in its place and the last checkpoint of that size has the same root.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_server.logger import get_logger
from mcp_server.audit.files import CURRENT, TAIL_LIMIT, open_regular, rotated_name
from mcp_server.audit.keys import KEY, load_key, make_key, replace_file
from mcp_server.audit.notes import Note, find_notes, sign
from mcp_server.audit.reading import Segment, lines_of, segments
from mcp_server.audit.records import ChainHead, read_record
from mcp_server.audit.ship import SYSLOG_SOCKET, append_text, ship
from mcp_server.audit.tree import Frontier
from mcp_server.errors import PlatformError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

CHECKPOINTS: Final = "audit.checkpoints"
TREE: Final = "audit.tree"
UNSHIPPED_KEPT: Final = 100
"""Checkpoints sent at once after a failure; older ones are covered by each that comes later."""

logger = get_logger(__name__)


@dataclass(slots=True)
class _Tree:
    """The tree up to a record, where that record ends, and how much of the checkpoints file was shipped (bytes)."""

    frontier: Frontier = field(default_factory=Frontier)
    head: ChainHead = field(default_factory=ChainHead)
    number: int = 0
    offset: int = 0
    shipped: int = 0


class Sealer:
    """Makes checkpoints of the log in one folder; several processes may, one at a time does."""

    def __init__(self, folder: Path, syslog: Path = SYSLOG_SOCKET) -> None:
        self._folder = folder
        self._syslog = syslog
        self._shipping_failed = False

    def pending(self, ship_to: str) -> bool:
        """Whether there is anything to seal or to ship, told without reading the log."""
        try:
            current = (self._folder / CURRENT).lstat().st_size
        except OSError:
            current = 0
        tree = self._read_tree()
        if tree is None:
            return current > 0 or (self._folder / rotated_name(1)).exists()
        # Another file stands in its place where the one that was read is full by now.
        sealed = tree.offset == current and not (self._folder / rotated_name(tree.number)).exists()
        return not sealed or (bool(ship_to) and self._shipped_to(tree) < self._checkpoints_size())

    def seal(self, ship_to: str) -> str | None:
        """Sign a checkpoint of all records, if there are new ones, and ship what was not; returns the new note.

        Raises PlatformError ``audit_broken`` where the log is not the one that was sealed before, or has lost its key;
        OSError where a file cannot be read or written.
        """
        with self._alone():
            last = self._last_note()
            tree = self._carry_on(last)
            note = None
            if tree.frontier.size and (last is None or tree.frontier.size > last.size):
                note = sign(self._key(last), tree.frontier.size, tree.frontier.root())
                append_text(self._folder / CHECKPOINTS, note)
            self._write_tree(tree)
            self._ship(tree, ship_to)
            return note

    def _key(self, last: Note | None) -> Ed25519PrivateKey:
        key = load_key(self._folder)
        if key is None and last is not None:
            # A new key would make every earlier checkpoint look forged.
            raise PlatformError(
                f"the signing key {self._folder / KEY} is gone",
                code="audit_broken",
                hint=f"Put it back, or move audit* out of {self._folder} to a safe place and begin a new log.",
            )
        return key or make_key(self._folder)

    def _carry_on(self, last: Note | None) -> _Tree:
        tree = self._believable_tree(last)
        if tree is not None:
            with suppress(_MismatchError):
                return self._read_on(tree, last)
        try:
            return self._read_on(_Tree(shipped=tree.shipped if tree else 0), last)
        except _MismatchError as error:
            raise PlatformError(f"the decision log is broken: {error}", code="audit_broken") from None

    def _read_on(self, tree: _Tree, last: Note | None) -> _Tree:
        with segments(self._folder, tree.number) as found:
            for segment in found:
                offset = tree.offset if segment.number == tree.number else 0
                for line in lines_of(segment, offset):
                    if not line.endswith(b"\n"):
                        break  # torn by a crash; the next record repairs it
                    offset += len(line)
                    self._add(tree, segment, line[:-1])
                    if last is not None and tree.frontier.size == last.size and tree.frontier.root() != last.root:
                        raise _MismatchError(f"its first {last.size} records are not those that were sealed")
                tree.number, tree.offset = segment.number, offset
        if last is not None and tree.frontier.size < last.size:
            raise _MismatchError(f"{last.size} records were sealed, {tree.frontier.size} are there")
        return tree

    @staticmethod
    def _add(tree: _Tree, segment: Segment, line: bytes) -> None:
        record = read_record(line)
        if record is None or record["seq"] != tree.head.seq or record["prev"] != tree.head.prev:
            raise _MismatchError(f"{segment.name} does not go on with record {tree.head.seq} where it should")
        tree.frontier.add(line)
        tree.head = ChainHead(tree.head.seq + 1, hashlib.sha256(line).hexdigest())

    def _believable_tree(self, last: Note | None) -> _Tree | None:
        tree = self._read_tree()
        if tree is None or (last is not None and last.size == tree.head.seq and last.root != tree.frontier.root()):
            return None
        if last is not None and tree.head.seq > last.size:
            return None  # a tree beyond what was signed was not written here
        return tree if self._last_line_stands(tree) else None

    def _last_line_stands(self, tree: _Tree) -> bool:
        """Whether the record the tree ends with still ends where it did."""
        full = self._folder / rotated_name(tree.number)
        try:
            descriptor = open_regular(full if full.exists() else self._folder / CURRENT, os.O_RDONLY)
        except OSError:
            return False
        try:
            begin = max(0, tree.offset - TAIL_LIMIT)
            data = os.pread(descriptor, tree.offset - begin, begin)
        finally:
            os.close(descriptor)
        line = data[:-1].rsplit(b"\n", 1)[-1]
        return data.endswith(b"\n") and hashlib.sha256(line).hexdigest() == tree.head.prev

    def _read_tree(self) -> _Tree | None:
        try:
            with os.fdopen(open_regular(self._folder / TREE, os.O_RDONLY), "rb") as file:
                kept: dict[str, Any] = json.loads(file.read(64 * 1024))
            frontier = Frontier(int(kept["size"]), [bytes.fromhex(each) for each in kept["frontier"]])
            head = ChainHead(frontier.size, str(kept["prev"]))
            places = [int(kept[name]) for name in ("number", "offset", "shipped")]
            return _Tree(frontier, head, *places) if min(places) >= 0 else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # the log itself says what was in it

    def _write_tree(self, tree: _Tree) -> None:
        kept = {
            "size": tree.frontier.size,
            "frontier": [each.hex() for each in tree.frontier.hashes],
            "prev": tree.head.prev,
            "number": tree.number,
            "offset": tree.offset,
            "shipped": tree.shipped,
        }
        replace_file(self._folder, TREE, json.dumps(kept).encode())

    def _last_note(self) -> Note | None:
        try:
            descriptor = open_regular(self._folder / CHECKPOINTS, os.O_RDONLY)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            file.seek(max(0, os.fstat(descriptor).st_size - 64 * 1024))
            notes = find_notes(file.read().decode("utf-8", "replace"))
        return notes[-1] if notes else None

    def _checkpoints_size(self) -> int:
        try:
            return (self._folder / CHECKPOINTS).lstat().st_size
        except OSError:
            return 0

    def _shipped_to(self, tree: _Tree) -> int:
        return min(tree.shipped, self._checkpoints_size())

    def _ship(self, tree: _Tree, ship_to: str) -> None:
        """Send the notes after the last one that was sent; a failure is logged, and they are sent another time."""
        size = self._checkpoints_size()
        if ship_to and tree.shipped < size:
            with os.fdopen(open_regular(self._folder / CHECKPOINTS, os.O_RDONLY), "rb") as file:
                file.seek(tree.shipped)
                notes = find_notes(file.read().decode("utf-8", "replace"))[-UNSHIPPED_KEPT:]
            try:
                for note in notes:
                    ship(note.whole, ship_to, self._syslog)
            except OSError as error:
                log = logger.info if self._shipping_failed else logger.warning
                log("audit.not_shipped to=%s waiting=%d: %s", ship_to, len(notes), error.strerror or error)
                self._shipping_failed = True
                return
            if self._shipping_failed:
                logger.warning("audit.shipped_again", to=ship_to)
            self._shipping_failed = False
        if tree.shipped != size:
            tree.shipped = size
            self._write_tree(tree)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the checkpoints file: one process seals, the others find it done."""
        descriptor = open_regular(self._folder / CHECKPOINTS, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # given back with the descriptor
            yield
        finally:
            os.close(descriptor)


class _MismatchError(Exception):
    """The log is not what the tree or a checkpoint says it was."""
