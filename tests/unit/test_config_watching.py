"""The paths that are watched for a file, and the report of a change, on a real file system."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from mcp_server.config.watching import changed_since, file_states, watch, watched_paths

WAIT_SEC = 20.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path.resolve()


def test_without_links_only_the_file_itself_is_watched(folder: Path) -> None:
    file = folder / "a"
    file.write_text("1")
    assert watched_paths(file) == {file}
    assert watched_paths(folder / "none" / "b") == {folder / "none" / "b"}, "a missing file must be watched too"


def test_every_link_on_the_path_is_watched(folder: Path) -> None:
    (folder / "releases" / "one").mkdir(parents=True)
    (folder / "releases" / "one" / "c").write_text("1")
    (folder / "current").symlink_to("releases/one")
    (folder / "etc").mkdir()
    (folder / "etc" / "c").symlink_to("../current/c")
    assert watched_paths(folder / "etc" / "c") == {
        folder / "etc" / "c",
        folder / "current",
        folder / "releases" / "one" / "c",
    }
    assert watched_paths(folder / "etc" / ".." / "current" / "c") == {
        folder / "current",
        folder / "releases" / "one" / "c",
    }


def test_a_circle_of_links_ends(folder: Path) -> None:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    assert watched_paths(folder / "a") == {folder / "a", folder / "b"}
    assert file_states([folder / "a"]) == {folder / "a": None}


def test_a_change_of_content_link_or_mode_changes_the_state(folder: Path) -> None:
    file = folder / "a"
    seen = [file_states([file])]

    def look() -> None:
        seen.append(file_states([file]))

    file.write_text("1")
    look()
    file.write_text("22")
    look()
    (folder / "new").write_text("22")
    (folder / "new").rename(file)
    look()
    file.chmod(0o600)
    look()
    file.unlink()
    look()
    assert seen[0] == seen[-1] == {file: None}
    assert len({str(each) for each in seen}) == len(seen) - 1


def test_a_file_has_changed_since_a_time_if_its_change_time_is_later(folder: Path) -> None:
    file = folder / "a"
    file.write_text("1")
    os.utime(file, (0, 0))  # the modification time can be set, so it must not decide
    assert changed_since([file], time.time() - 5)
    assert not changed_since([file], time.time() + 5)
    assert not changed_since([folder / "none"], 0.0)


def rewritten(file: Path) -> None:
    file.write_text("2")


def by_rename(file: Path) -> None:
    (file.parent / "other").write_text("2")
    (file.parent / "other").rename(file)


def removed(file: Path) -> None:
    file.unlink()


def removed_with_its_folder(file: Path) -> None:
    file.unlink()
    file.parent.rmdir()
    file.parent.mkdir()
    file.write_text("2")


@pytest.mark.parametrize("change", [rewritten, by_rename, removed, removed_with_its_folder])
async def test_a_change_is_reported(folder: Path, change: Callable[[Path], None]) -> None:
    file = folder / "etc" / "a"
    file.parent.mkdir()
    file.write_text("1")
    before = file_states([file])
    async with aclosing(watch(lambda: [file], asyncio.Event())) as signs, asyncio.timeout(WAIT_SEC):
        waiting = asyncio.ensure_future(anext(signs))
        await asyncio.sleep(0.3)  # wait until the folder is watched
        assert not waiting.done()
        change(file)
        await waiting
        assert file_states([file]) != before


async def test_a_rewritten_file_is_reported_when_it_is_complete(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "a"
    file.write_text("allow\nexclude\n")
    async with aclosing(watch(lambda: [file], asyncio.Event())) as signs, asyncio.timeout(WAIT_SEC):
        waiting = asyncio.ensure_future(anext(signs))
        await asyncio.sleep(0.3)
        with file.open("w") as writer:
            writer.write("allow\n")
            writer.flush()
            await asyncio.sleep(1.0)  # four times the wait for a replaced file
            assert not waiting.done()
            writer.write("exclude\n")
        await waiting
        assert file.read_text() == "allow\nexclude\n"
        waiting = asyncio.ensure_future(anext(signs))
        monkeypatch.setattr("mcp_server.config.watching.REWRITE_SEC", 10 * WAIT_SEC)
        by_rename(file)
        await waiting  # a replaced file is complete at once


async def test_the_paths_are_read_again_after_a_restart(folder: Path) -> None:
    one, two = folder / "one", folder / "two"
    for each in (one, two):
        each.mkdir()
        (each / "a").write_text("1")
    chosen, again = [one / "a"], asyncio.Event()
    async with aclosing(watch(lambda: chosen, again)) as signs, asyncio.timeout(WAIT_SEC):
        waiting = asyncio.ensure_future(anext(signs))
        await asyncio.sleep(0.3)
        chosen[:] = [two / "a"]
        again.set()
        await waiting
        waiting = asyncio.ensure_future(anext(signs))
        await asyncio.sleep(0.6)
        (one / "a").write_text("2")
        await asyncio.sleep(1.0)
        assert not waiting.done(), "the first file must not be watched any more"
        (two / "a").write_text("2")
        await waiting


async def test_a_missing_folder_is_logged_and_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mcp_server.config.watching.RETRY_SEC", 0.2)
    file = folder / "etc" / "a"
    async with aclosing(watch(lambda: [file], asyncio.Event())) as signs, asyncio.timeout(WAIT_SEC):
        await anext(signs)
        assert "config.not_watched" in caplog.text
        file.parent.mkdir()
        file.write_text("1")
        while file_states([file]) == {file: None}:
            await anext(signs)
