"""The files of the log: their names, the lock, safe opening, and reading from the beginning or from the end.

Records are appended to ``audit.jsonl``. A full file is renamed to ``audit-000001.jsonl``, ``audit-000002.jsonl`` and so
on. The lock is an flock(2) on the state folder itself, because a lock file could be removed while it is held.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

CURRENT: Final = "audit.jsonl"
LEGACY: Final = "audit-legacy.jsonl"
"""A log without a chain, written by an earlier version. Record 0 of the chained log holds its hash."""
TAIL_LIMIT: Final = 1024 * 1024
"""Bytes from the end of a file within which its last line must begin."""

_BUFFER: Final = 1024 * 1024
_ROTATED: Final = re.compile(r"audit-([0-9]{6,})\.jsonl")
# Do not follow a symbolic link, and do not block on a pipe that has replaced the file.
_SAFE: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def rotated_name(number: int) -> str:
    """Return the name of full file ``number``, counted from 1."""
    return f"audit-{number:06d}.jsonl"


def rotated_numbers(folder: int | Path) -> list[int]:
    """Return the numbers of the full files in ``folder``, in order."""
    names = set(os.listdir(folder))  # noqa: PTH208 - a folder may be a descriptor
    numbers = {int(found[1]) for name in names if (found := _ROTATED.fullmatch(name))}
    return sorted(number for number in numbers if rotated_name(number) in names)  # skips names with more zeros


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[int]:
    """Hold the lock of the log in the block; yields a descriptor of the folder. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)  # released when the descriptor is closed
        yield descriptor
    finally:
        os.close(descriptor)


def open_regular(name: str | Path, flags: int, folder: int | None = None) -> int:
    """Open a regular file, with mode 0600 if ``flags`` create it. Raises OSError for any other kind of file."""
    descriptor = os.open(name, flags | _SAFE, 0o600, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return descriptor


class Tail(NamedTuple):
    """The end of a file: the last complete line without its newline, the offset after it, and an incomplete rest."""

    line: bytes | None
    end: int
    torn: bytes


def read_tail(descriptor: int, size: int) -> Tail:
    """Read the end of a file of ``size`` bytes. Raises OSError if no line begins within `TAIL_LIMIT`."""
    want = min(size, 8 * 1024)
    while True:
        data = os.pread(descriptor, want, size - want)
        whole = want == size
        end = data.rfind(b"\n") + 1
        begin = data.rfind(b"\n", 0, max(0, end - 1)) + 1
        if whole or (end and begin):
            line = data[begin : end - 1] if end else None
            return Tail(line, size - want + end, data[end:])
        if want >= 2 * TAIL_LIMIT:
            raise OSError(errno.EFBIG, "it does not end with a line of a log")
        want = min(size, want * 8, 2 * TAIL_LIMIT)


class LogFile(NamedTuple):
    """An open file of the log, its name, and its size when it was opened.

    ``number`` counts the files from 1. The current file has the number that it will get when it is full.
    """

    number: int
    name: str
    file: BinaryIO
    size: int


@contextmanager
def log_files(folder: Path, since: int = 0) -> Iterator[Iterator[LogFile]]:
    """Open the files of the log in order, from file number ``since`` on. Raises OSError.

    Records that other processes append later are not read: full files do not change, and the current file is read only
    up to its present size.
    """
    with locked(folder, shared=True) as directory:
        numbers = rotated_numbers(directory)
        try:
            descriptor = open_regular(CURRENT, os.O_RDONLY, directory)
        except FileNotFoundError:
            current, size = None, 0
        else:
            current, size = os.fdopen(descriptor, "rb", buffering=_BUFFER), os.fstat(descriptor).st_size

    def each() -> Iterator[LogFile]:
        for number in numbers:
            if number >= since:
                name = rotated_name(number)
                with os.fdopen(open_regular(folder / name, os.O_RDONLY), "rb", buffering=_BUFFER) as file:
                    yield LogFile(number, name, file, os.fstat(file.fileno()).st_size)
        if current is not None:
            yield LogFile(numbers[-1] + 1 if numbers else 1, CURRENT, current, size)

    try:
        yield each()
    finally:
        if current is not None:
            current.close()


def lines_of(source: LogFile, offset: int = 0) -> Iterator[bytes]:
    """Yield the lines from a byte offset on, with their newlines. The last line may be incomplete.

    A line longer than `TAIL_LIMIT` is yielded in pieces, so that memory stays bounded.
    """
    source.file.seek(offset)
    left = source.size - offset
    while left > 0:
        line = source.file.readline(min(left, TAIL_LIMIT))
        if not line:
            return
        left -= len(line)
        yield line
