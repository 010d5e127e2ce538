"""Hashes files, and reads a file again only if it has changed since the last time."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A regular file: ``identity`` is device, inode, size, and mtime and ctime in nanoseconds; ``sha256`` is in hex."""

    path: str
    identity: tuple[int, ...]
    sha256: str


_known: dict[str, HashedFile] = {}


def file_identity(path: str) -> tuple[int, ...]:
    """Return numbers that change when the content of a regular file changes, from one stat(2) without reading it.

    The ctime is part of it because, unlike the mtime, a program cannot set it back. Raises OSError, and
    FileNotFoundError if the path is missing or is not a regular file.
    """
    status = os.stat(path)  # noqa: PTH116 - hundreds of files for each run, kept as text
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(2, os.strerror(2), path)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def hash_file(path: str) -> HashedFile:
    """Return the file with its SHA-256. Raises as `file_identity` does."""
    identity = file_identity(path)
    known = _known.get(path)
    if known is None or known.identity != identity:
        with Path(path).open("rb") as file:
            known = _known[path] = HashedFile(path, identity, hashlib.file_digest(file, "sha256").hexdigest())
    return known
