"""The files of the log: what they are called, how they are locked, opened and read.

``audit.jsonl`` is written to; full files become ``audit-000001.jsonl``, ``audit-000002.jsonl`` … The lock is an
flock(2) on the state folder itself: there is no lock file that could be removed while somebody holds it.
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
from typing import Final, NamedTuple

CURRENT: Final = "audit.jsonl"
LEGACY: Final = "audit-legacy.jsonl"
"""What an earlier version wrote without a chain; record 0 holds its hash."""
TAIL_LIMIT: Final = 1024 * 1024
"""Bytes from the end of a file within which its last line begins."""

_ROTATED: Final = re.compile(r"audit-([0-9]{6,})\.jsonl")
# Not through a link, and not waiting for a reader where somebody put a pipe in a file's place.
_SAFE: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def rotated_name(number: int) -> str:
    """The name of the full file of this number, from 1 on."""
    return f"audit-{number:06d}.jsonl"


def rotated_numbers(folder: int | Path) -> list[int]:
    """The numbers of the full files that are there, in order."""
    names = set(os.listdir(folder))  # noqa: PTH208 - a folder may be a descriptor
    numbers = {int(found[1]) for name in names if (found := _ROTATED.fullmatch(name))}
    return sorted(number for number in numbers if rotated_name(number) in names)  # not one with more zeros


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[int]:
    """Hold the log's lock; yields the folder's descriptor. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)  # given back with the descriptor
        yield descriptor
    finally:
        os.close(descriptor)


def open_regular(name: str | Path, flags: int, folder: int | None = None) -> int:
    """Open a regular file, made with mode 0600 where ``flags`` say so; raises OSError for anything else there."""
    descriptor = os.open(name, flags | _SAFE, 0o600, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return descriptor


class Tail(NamedTuple):
    """The end of a file: its last whole line (without the newline), where that ends, and what a crash left after it."""

    line: bytes | None
    end: int
    torn: bytes


def read_tail(descriptor: int, size: int) -> Tail:
    """Read the end of a file; raises OSError where no line begins within `TAIL_LIMIT`."""
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
            raise OSError(errno.EFBIG, "its end is no line of a log")
        want = min(size, want * 8, 2 * TAIL_LIMIT)
