"""Detect whether a file was replaced or written to since it was read."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class FileState(NamedTuple):
    """The metadata of a file that changes if it is replaced or written to, or if its mode or owner changes."""

    device: int
    inode: int
    size: int
    mode: int
    owner: int
    modified_ns: int
    changed_ns: int


def file_state(path: Path) -> FileState | None:
    """Return the state of the file that ``path`` leads to, or None if stat(2) fails."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState(
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mode,
        found.st_uid,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )
