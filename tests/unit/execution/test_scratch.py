"""The folder a program runs in."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from mcp_server.execution.scratch import PREFIX, STALE_SEC, scratch_folder


async def test_what_a_killed_server_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stale, fresh, other, linked = (tmp_path / name for name in (f"{PREFIX}a", f"{PREFIX}b", "other", f"{PREFIX}c"))
    for path in (stale, fresh, other):
        path.mkdir()
        (path / "file").touch()
    linked.symlink_to(other)
    old = time.time() - STALE_SEC - 1
    for path in (stale, other):
        os.utime(path, (old, old))
    async with scratch_folder() as folder:
        assert Path(folder).stat().st_mode & 0o777 == 0o700
        assert sorted(tmp_path.iterdir()) == sorted((fresh, other, linked, Path(folder)))
    assert sorted(tmp_path.iterdir()) == sorted((fresh, other, linked))
