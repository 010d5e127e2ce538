"""Scratch folders: the working directory of a program, which is empty at first and removed after the run."""

from __future__ import annotations

import os
import time

PREFIX = "mcp-run-"
STALE_SEC = 7200
"""Seconds after which a folder is stale: twice the longest time limit, so its run has ended without removing it."""


def make(parent: str) -> str:
    """Make an empty folder with mode 0700 in ``parent`` and return its path. Raises OSError."""
    folder = f"{parent}/{PREFIX}{os.urandom(8).hex()}"
    os.mkdir(folder, 0o700)  # noqa: PTH102 - importing pathlib is slow
    return folder


def remove(folder: str) -> None:
    """Remove a folder with its content. If that fails, the folder stays until `remove_stale` finds it.

    A program can nest folders beyond the maximum path length and recursion depth. So nested folders are moved up to the
    top before they are removed.
    """
    try:
        os.rmdir(folder)  # noqa: PTH106 - the folder is nearly always empty, and then this is enough
    except OSError:
        try:
            _empty(folder)
            os.rmdir(folder)  # noqa: PTH106 - as above
        except OSError:
            return


def remove_stale(parent: str) -> None:
    """Remove stale scratch folders of this user. Errors are ignored."""
    try:
        with os.scandir(parent) as entries:
            named = [entry for entry in entries if entry.name.startswith(PREFIX)]
        for entry in named:
            if entry.is_dir(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                if status.st_uid == os.geteuid() and status.st_mtime < time.time() - STALE_SEC:
                    remove(entry.path)
    except OSError:
        return


def _empty(folder: str) -> None:
    """Remove the files in a folder and move the content of its subfolders up, until it is empty."""
    mark, count = os.urandom(8).hex(), 0
    while inner := _remove_files(folder):
        for path in inner:
            os.chmod(path, 0o700)  # noqa: PTH101 - as above
            with os.scandir(path) as entries:
                content = list(entries)
            for entry in content:
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)  # noqa: PTH101 - moving a folder writes to it, for its '..' entry
                count += 1
                os.rename(entry.path, f"{folder}/{mark}{count}")  # noqa: PTH104 - as above
            os.rmdir(path)  # noqa: PTH106 - as above


def _remove_files(folder: str) -> list[str]:
    """Remove everything but the folders, and return their paths."""
    with os.scandir(folder) as entries:
        content = list(entries)
    inner = []
    for entry in content:
        if entry.is_dir(follow_symlinks=False):
            inner.append(entry.path)
        else:
            os.unlink(entry.path)  # noqa: PTH108 - as above
    return inner
