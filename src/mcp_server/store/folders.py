"""Folders and files that only their owner may read."""

from __future__ import annotations

import os
from pathlib import Path


def make_private(path: Path) -> Path:
    """Make ``path`` and what is missing above it with mode 0700, and return it.

    A folder that was already there keeps its mode: it may be one that others share, such as ``/tmp``.
    """
    missing = []
    current = path
    while not current.exists():
        missing.append(current)
        current = current.parent
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    if not path.is_dir():
        raise NotADirectoryError(20, "not a folder", str(path))
    return path


def make_private_file(path: Path) -> None:
    """Make ``path`` an empty file with mode 0600 unless it is there."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
