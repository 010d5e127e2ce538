"""The folder a program runs in: its HOME and working directory, empty before and gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from typing import Final

PREFIX: Final = "mcp-run-"
STALE_SEC: Final = 7200
"""Twice the longest time limit: a folder this old belongs to a server that was killed."""


@contextlib.asynccontextmanager
async def scratch_folder() -> AsyncIterator[str]:
    """An empty folder of mode 0700, removed with all that was put into it. Raises OSError where none can be made."""
    _remove_stale(tempfile.gettempdir())
    folder = tempfile.mkdtemp(prefix=PREFIX)
    try:
        yield folder
    finally:
        try:
            os.rmdir(folder)  # noqa: PTH106 - nearly always empty, and then this is all
        except OSError:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@functools.cache
def _remove_stale(parent: str) -> None:
    """Remove what a killed server of this user left behind; once per process, and never a reason to fail."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if not entry.name.startswith(PREFIX) or not entry.is_dir(follow_symlinks=False):
                continue
            seen = entry.stat(follow_symlinks=False)
            if seen.st_uid == os.geteuid() and seen.st_mtime < time.time() - STALE_SEC:
                shutil.rmtree(entry.path, ignore_errors=True)
