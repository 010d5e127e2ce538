"""Checkpoints: the root of the tree over all records, signed, kept in ``audit.checkpoints`` and shipped elsewhere.

The state of the tree is kept in ``audit.tree``, so that a start need not read the whole log again. It is used only if
the record that it ends with is unchanged and agrees with the last checkpoint.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_server.audit.files import CURRENT, TAIL_LIMIT, LogFile, lines_of, log_files, open_regular, rotated_name
from mcp_server.audit.keys import KEY, load_key, make_key, replace_file
from mcp_server.audit.notes import Note, as_log_line, find_notes, sign
from mcp_server.audit.records import ChainHead, read_record
from mcp_server.audit.tree import Frontier
from mcp_server.errors import PlatformError
from mcp_server.logger import get_logger

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

CHECKPOINTS: Final = "audit.checkpoints"
TREE: Final = "audit.tree"
UNSHIPPED_KEPT: Final = 100
"""Checkpoints that are sent at once after a failure. Older ones are not needed, because each covers all before it."""
SYSLOG_SOCKET: Final = Path("/dev/log")

_AUTHPRIV_NOTICE: Final = 10 * 8 + 5
_SYSLOG_SEC: Final = 2.0

logger = get_logger(__name__)


@dataclass(slots=True)
class _Tree:
    """The tree up to some record, the position of that record, and the shipped bytes of the checkpoints file."""

    frontier: Frontier = field(default_factory=Frontier)
    head: ChainHead = field(default_factory=ChainHead)
    number: int = 0
    offset: int = 0
    shipped: int = 0


class Sealer:
    """Signs checkpoints of the log in one folder. Several processes may do so; a lock lets them take turns."""

    def __init__(self, folder: Path, syslog: Path = SYSLOG_SOCKET) -> None:
        self._folder = folder
        self._syslog = syslog
        self._shipping_failed = False

    def pending(self, ship_to: str) -> bool:
        """Return whether there is something to sign or to ship, without reading the log."""
        try:
            current = (self._folder / CURRENT).lstat().st_size
        except OSError:
            current = 0
        tree = self._read_tree()
        if tree is None:
            return current > 0 or (self._folder / rotated_name(1)).exists()
        # If a full file has the number of the file that was read last, the log has been rotated since then.
        sealed = tree.offset == current and not (self._folder / rotated_name(tree.number)).exists()
        return not sealed or (bool(ship_to) and self._shipped_to(tree) < self._checkpoints_size())

    def seal(self, ship_to: str) -> str | None:
        """Sign a checkpoint if there are new records, and ship all checkpoints not shipped yet. Returns the new one.

        Raises PlatformError ``audit_broken`` if the log differs from what was signed before or has lost its key, and
        OSError if a file cannot be read or written.
        """
        with self._lock():
            last = self._last_note()
            tree = self._advance(last)
            note = None
            if tree.frontier.size and (last is None or tree.frontier.size > last.size):
                note = sign(self._key(last), tree.frontier.size, tree.frontier.root())
                append_note(self._folder / CHECKPOINTS, note)
            self._write_tree(tree)
            self._ship(tree, ship_to)
            return note

    def _key(self, last: Note | None) -> Ed25519PrivateKey:
        key = load_key(self._folder)
        if key is None and last is not None:
            # A new key would make every earlier checkpoint look forged.
            raise PlatformError(
                f"The signing key {self._folder / KEY} is missing.",
                code="audit_broken",
                hint=f"Restore the key, or move audit* out of {self._folder} to a safe folder to begin a new log.",
            )
        return key or make_key(self._folder)

    def _advance(self, last: Note | None) -> _Tree:
        """Return the tree over all records: from the stored state if it can be used, otherwise from the beginning."""
        tree = self._stored_tree(last)
        if tree is not None:
            with suppress(_MismatchError):
                return self._read_on(tree, last)
        try:
            return self._read_on(_Tree(shipped=tree.shipped if tree else 0), last)
        except _MismatchError as error:
            raise PlatformError(f"The audit log is broken: {error}.", code="audit_broken") from None

    def _read_on(self, tree: _Tree, last: Note | None) -> _Tree:
        with log_files(self._folder, tree.number) as found:
            for file in found:
                offset = tree.offset if file.number == tree.number else 0
                for line in lines_of(file, offset):
                    if not line.endswith(b"\n"):
                        break  # a crash cut this line off; the next record repairs it
                    offset += len(line)
                    self._add(tree, file, line[:-1])
                    if last is not None and tree.frontier.size == last.size and tree.frontier.root() != last.root:
                        raise _MismatchError(f"its first {last.size} records are not the records that were signed")
                tree.number, tree.offset = file.number, offset
        if last is not None and tree.frontier.size < last.size:
            raise _MismatchError(f"{last.size} records were signed, and it has {tree.frontier.size}")
        return tree

    @staticmethod
    def _add(tree: _Tree, file: LogFile, line: bytes) -> None:
        record = read_record(line)
        if record is None or record["seq"] != tree.head.seq or record["prev"] != tree.head.prev:
            raise _MismatchError(f"{file.name} does not continue with record {tree.head.seq}")
        tree.frontier.add(line)
        tree.head = ChainHead(tree.head.seq + 1, hashlib.sha256(line).hexdigest())

    def _stored_tree(self, last: Note | None) -> _Tree | None:
        tree = self._read_tree()
        if tree is None or (last is not None and last.size == tree.head.seq and last.root != tree.frontier.root()):
            return None
        if last is not None and tree.head.seq > last.size:
            return None  # this program never stores a tree that is larger than the last checkpoint
        return tree if self._last_line_unchanged(tree) else None

    def _last_line_unchanged(self, tree: _Tree) -> bool:
        """Return whether the record that the tree ends with is still at its position."""
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
            positions = [int(kept[name]) for name in ("number", "offset", "shipped")]
            return _Tree(frontier, head, *positions) if min(positions) >= 0 else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # the tree is computed from the log again

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
        """Send the checkpoints that were not sent yet. A failure is logged, and they are sent with the next one."""
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
                log("audit.not_shipped", to=ship_to, waiting=len(notes), message=error.strerror or str(error))
                self._shipping_failed = True
                return
            if self._shipping_failed:
                logger.warning("audit.shipped_again", to=ship_to)
            self._shipping_failed = False
        if tree.shipped != size:
            tree.shipped = size
            self._write_tree(tree)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the lock of the checkpoints file, so that one process at a time signs."""
        descriptor = open_regular(self._folder / CHECKPOINTS, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # released when the descriptor is closed
            yield
        finally:
            os.close(descriptor)


class _MismatchError(Exception):
    """The log does not match the stored tree or a checkpoint."""


def ship(note: str, ship_to: str, syslog: Path = SYSLOG_SOCKET) -> None:
    """Send one checkpoint to the system log if ``ship_to`` is ``syslog``, else append it to the file of that path.

    Syslog gets one line in the form of local daemons (``<PRI>TAG[PID]: TEXT``, RFC 3164). Its facility is authpriv,
    which most systems keep out of files that every user can read. Raises OSError.
    """
    if ship_to == "syslog":
        _to_syslog(f"<{_AUTHPRIV_NOTICE}>mcp-network-tools[{os.getpid()}]: {as_log_line(note)}".encode(), syslog)
    elif ship_to:
        append_note(Path(ship_to), note)


def append_note(path: Path, note: str) -> int:
    """Append a checkpoint to a file, which is created with mode 0600, and sync it. Returns the new size of the file.

    A blank line separates checkpoints. If there is no space left, the file is not changed and OSError is raised.
    """
    descriptor = open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        size = os.fstat(descriptor).st_size
        # A crash may have cut the last checkpoint off in the middle of a line.
        unfinished = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        data = (b"\n\n" if unfinished else b"\n" if size else b"") + note.encode()
        if os.write(descriptor, data) != len(data):
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
        return size + len(data)
    finally:
        os.close(descriptor)


def _to_syslog(message: bytes, path: Path) -> None:
    for kind, end in ((socket.SOCK_DGRAM, b""), (socket.SOCK_STREAM, b"\0")):
        with socket.socket(socket.AF_UNIX, kind) as connection:
            connection.settimeout(_SYSLOG_SEC)
            try:
                connection.connect(str(path))
            except OSError as error:
                if error.errno == errno.EPROTOTYPE and kind == socket.SOCK_DGRAM:
                    continue
                raise
            connection.sendall(message + end)
            return
