"""Reading the log from its beginning, while others write to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mcp_server.audit.files import CURRENT, TAIL_LIMIT, locked, open_regular, rotated_name, rotated_numbers


class Segment(NamedTuple):
    """One file of the log, opened: its number when it is or will be full, its name, and how many bytes count."""

    number: int
    name: str
    file: BinaryIO
    size: int


@contextmanager
def segments(folder: Path, since: int = 0) -> Iterator[Iterator[Segment]]:
    """Open the log as it is at this moment, from the file numbered ``since`` on, in order; raises OSError.

    Full files do not change; of the one that is written to, what comes later does not count.
    """
    with locked(folder, shared=True) as directory:
        numbers = rotated_numbers(directory)
        try:
            descriptor = open_regular(CURRENT, os.O_RDONLY, directory)
        except FileNotFoundError:
            current, size = None, 0
        else:
            current, size = os.fdopen(descriptor, "rb", buffering=1024 * 1024), os.fstat(descriptor).st_size

    def each() -> Iterator[Segment]:
        for number in numbers:
            if number >= since:
                name = rotated_name(number)
                with os.fdopen(open_regular(folder / name, os.O_RDONLY), "rb", buffering=1024 * 1024) as file:
                    yield Segment(number, name, file, os.fstat(file.fileno()).st_size)
        if current is not None:
            yield Segment(numbers[-1] + 1 if numbers else 1, CURRENT, current, size)

    try:
        yield each()
    finally:
        if current is not None:
            current.close()


def lines_of(segment: Segment, offset: int = 0) -> Iterator[bytes]:
    """The lines of a file from a byte on, with their newline; the last may be torn. Read in bounded pieces."""
    segment.file.seek(offset)
    left = segment.size - offset
    while left > 0:
        line = segment.file.readline(min(left, TAIL_LIMIT))
        if not line:
            return
        left -= len(line)
        yield line
