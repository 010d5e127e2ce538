"""Scratch folders are private, and are removed with their content."""

from __future__ import annotations

import os
import time
from pathlib import Path

from mcp_server.sandbox import scratch


def test_only_stale_scratch_folders_are_removed(tmp_path: Path) -> None:
    stale, fresh, other, linked = (
        tmp_path / name for name in (f"{scratch.PREFIX}a", f"{scratch.PREFIX}b", "other", f"{scratch.PREFIX}c")
    )
    for path in (stale, fresh, other):
        path.mkdir()
        (path / "file").touch()
    linked.symlink_to(other)
    old = time.time() - scratch.STALE_SEC - 1
    for path in (stale, other):
        os.utime(path, (old, old))
    scratch.remove_stale(str(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted((fresh, other, linked))
    scratch.remove_stale(str(tmp_path / "missing"))


def test_a_scratch_folder_is_private_and_removed_with_its_content(tmp_path: Path) -> None:
    folder = Path(scratch.make(str(tmp_path)))
    assert folder.stat().st_mode & 0o777 == 0o700
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (folder / "link").symlink_to(outside)
    (folder / "closed").mkdir()
    (folder / "closed" / "inner").mkdir()
    (folder / "closed" / "inner" / "file").touch()
    (folder / "closed").chmod(0)
    os.mkfifo(folder / "fifo")
    scratch.remove(str(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (outside / "file").exists()


def test_folders_nested_beyond_the_maximum_path_length_are_removed(tmp_path: Path) -> None:
    folder = scratch.make(str(tmp_path))
    before = Path.cwd()
    try:
        os.chdir(folder)
        for _ in range(1500):
            Path("inner").mkdir()
            os.chdir("inner")
        Path("file").touch()
    finally:
        os.chdir(before)
    scratch.remove(folder)
    assert list(tmp_path.iterdir()) == []
