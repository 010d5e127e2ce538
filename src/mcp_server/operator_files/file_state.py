"""Tell whether a file was replaced or written to since it was read."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class FileState(NamedTuple):
    """What changes if a file is replaced, written to, or given another mode or owner."""

    device: int
    inode: int
    size: int
    mode: int
    owner: int
    modified_ns: int
    changed_ns: int


def file_state(path: Path) -> FileState | None:
    """The state of the file that ``path`` leads to, or None if there is no such file or it cannot be looked at."""
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
