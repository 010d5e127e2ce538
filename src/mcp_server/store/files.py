"""Private files and folders of the store, and its errors for a file, a disk or a database that fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from mcp_server.errors import PlatformError

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def make_private(path: Path) -> Path:
    """Create the folder ``path`` and its missing parents with mode 0700, and return it.

    A folder that exists keeps its mode, because it may be shared, such as ``/tmp``.
    """
    missing = []
    current = path
    while not current.exists():
        missing.append(current)
        current = current.parent
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "Not a folder", str(path))
    return path


def unavailable(message: str, hint: str | None = None) -> PlatformError:
    """Return the error for a store that cannot be used now."""
    return PlatformError(message, code="store_unavailable", hint=hint)


def closed() -> PlatformError:
    """Return the error for a store that is not open."""
    return unavailable("The store is closed.", "Call open() first.")


def disk_full(location: str) -> PlatformError:
    """Return the error for a disk without free space."""
    return PlatformError(f"There is no space left for {location}.", code="disk_full")


def explain_os_error(error: OSError, location: str) -> PlatformError:
    """Return the error for a file operation that failed on ``location``."""
    if error.errno in _NO_SPACE:
        return disk_full(location)
    return unavailable(f"{location} cannot be used: {error.strerror or error}.")


def make_private_file(path: Path) -> None:
    """Create ``path`` as an empty file with mode 0600 if it does not exist."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
