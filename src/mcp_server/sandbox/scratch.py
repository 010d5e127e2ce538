"""The folder a program runs in: its working directory, empty before and gone afterwards."""

from __future__ import annotations

import os
import time

PREFIX = "mcp-run-"
STALE_SEC = 7200
"""Twice the longest time limit: a folder this old belongs to a run that nobody cleaned up after."""


def make(parent: str) -> str:
    """Make an empty folder of mode 0700 in ``parent``. Raises OSError where none can be made."""
    folder = f"{parent}/{PREFIX}{os.urandom(8).hex()}"
    os.mkdir(folder, 0o700)  # noqa: PTH102 - pathlib's import costs the runner more than all of this
    return folder


def remove(folder: str) -> None:
    """Remove a folder with all that was put into it; what cannot be removed stays, for `remove_stale`.

    Folders are taken apart from the top, their content moved up: a program may have nested them beyond the longest
    path and the deepest recursion.
    """
    try:
        os.rmdir(folder)  # noqa: PTH106 - nearly always empty, and then this is all
    except OSError:
        try:
            _take_apart(folder)
            os.rmdir(folder)  # noqa: PTH106 - as above
        except OSError:
            return


def remove_stale(parent: str) -> None:
    """Remove what runs of this user left behind long ago; never a reason to fail."""
    try:
        with os.scandir(parent) as entries:
            named = [entry for entry in entries if entry.name.startswith(PREFIX)]
        for entry in named:
            if entry.is_dir(follow_symlinks=False):
                seen = entry.stat(follow_symlinks=False)
                if seen.st_uid == os.geteuid() and seen.st_mtime < time.time() - STALE_SEC:
                    remove(entry.path)
    except OSError:
        return


def _take_apart(folder: str) -> None:
    """Empty a folder: files are removed, what is inside of folders is moved up until there are none."""
    mark, count = os.urandom(8).hex(), 0
    while inner := _remove_files(folder):
        for path in inner:
            os.chmod(path, 0o700)  # noqa: PTH101 - as above
            with os.scandir(path) as entries:
                content = list(entries)
            for entry in content:
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)  # noqa: PTH101 - a folder that moves is written to
                count += 1
                os.rename(entry.path, f"{folder}/{mark}{count}")  # noqa: PTH104 - as above
            os.rmdir(path)  # noqa: PTH106 - as above


def _remove_files(folder: str) -> list[str]:
    """Remove what is not a folder, and return the folders."""
    with os.scandir(folder) as entries:
        content = list(entries)
    inner = []
    for entry in content:
        if entry.is_dir(follow_symlinks=False):
            inner.append(entry.path)
        else:
            os.unlink(entry.path)  # noqa: PTH108 - as above
    return inner
