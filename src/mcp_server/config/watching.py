"""Watch files that are replaced by an editor, a package manager or a Kubernetes ConfigMap, and links that lead to them.

The folder of each file and of each symbolic link on its path is watched. A file has changed if `file_state` of its path
has changed. The events of the file system only say when to compare the states.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Final, TypeAlias

from mcp_server.logger import get_logger
from mcp_server.operator_files.file_state import FileState, file_state

logger = get_logger(__name__)

QUIET_MS: Final = 250
"""Milliseconds without an event after which a change is complete. The watching thread wakes up as often."""
BURST_MS: Final = 2000
"""Milliseconds after which a change is reported although events continue."""
TICK_MS: Final = 5000
"""Milliseconds after which the files are checked without any event, because some file systems send none."""
RETRY_SEC: Final = 30.0
"""Seconds until a folder that cannot be watched is tried again. Its files are checked as often."""

REWRITE_SEC: Final = 2.0
"""Seconds without a change after which a file that is rewritten, not replaced, is considered complete."""

_MAX_WAITS: Final = 5  # for a file that changes all the time
_MAX_LINKS: Final = 40  # as many as the kernel follows (path_resolution(7))

FileStates: TypeAlias = dict[Path, FileState | None]


def file_states(paths: Iterable[Path]) -> FileStates:
    """Return the present state of each file; None if there is no file."""
    return {path: file_state(path) for path in paths}


def changed_since(paths: Iterable[Path], moment: float) -> bool:
    """Return whether any of the files was changed at or after ``moment``, in seconds since 1970."""
    # File times come from a clock that advances only every few milliseconds.
    latest = moment - 0.02
    return any(state is not None and state.changed_ns >= latest * 1e9 for state in file_states(paths).values())


def watched_paths(path: Path) -> frozenset[Path]:
    """Return the file that ``path`` leads to and every link on the way, each in a folder without links."""
    paths: set[Path] = set()
    left, here, links = list(path.absolute().parts[1:]), Path("/"), 0
    while left:
        part = left.pop(0)
        if part == "..":
            here = here.parent
            continue
        step = here / part
        try:
            target = os.readlink(step)  # noqa: PTH115 - Path.readlink would normalize the target
        except OSError:  # not a link, or nothing at all
            here = step
            continue
        paths.add(step)
        links += 1
        if links > _MAX_LINKS:
            return frozenset(paths)
        left = [*Path(target).parts, *left]
        if target.startswith("/"):
            left, here = left[1:], Path("/")
    return frozenset({*paths, here})


async def watch(paths: Callable[[], Collection[Path]], restart: asyncio.Event) -> AsyncGenerator[None, None]:
    """Yield when the files may have changed, and from time to time without a change; never ends.

    ``paths`` is called after each yield, and when ``restart`` is set. A folder that cannot be watched is logged.
    """
    from watchfiles import awatch

    states = file_states(paths())
    while True:
        restart.clear()
        watched = await asyncio.to_thread(_all_watched, paths())
        folders = {path.parent for path in watched}
        texts = frozenset(map(str, watched))
        try:
            events = awatch(
                *folders,
                watch_filter=lambda _, path, texts=texts: path in texts,  # type: ignore[misc]  # bound for this round
                debounce=BURST_MS,
                step=QUIET_MS,
                rust_timeout=TICK_MS,
                yield_on_timeout=True,
                recursive=False,
                stop_event=restart,
            )
            async with aclosing(events):
                async for _ in events:
                    states = await _settled(states, paths())
                    yield
                    if await asyncio.to_thread(_all_watched, paths()) != watched:
                        break
            states = await _settled(states, paths())
            yield
        except (OSError, RuntimeError) as error:  # watchfiles raises RuntimeError
            logger.warning("config.not_watched", folders=",".join(sorted(map(str, folders))), message=str(error))
            await asyncio.sleep(RETRY_SEC)
            yield


async def _settled(before: FileStates, paths: Collection[Path]) -> FileStates:
    """Return the states of the files, after a wait if one of them is being rewritten."""
    now = await asyncio.to_thread(file_states, paths)
    for _ in range(_MAX_WAITS):
        if not any(_is_rewritten(before.get(path), state) for path, state in now.items()):
            break
        await asyncio.sleep(REWRITE_SEC)
        before, now = now, await asyncio.to_thread(file_states, paths)
    return now


def _is_rewritten(before: FileState | None, now: FileState | None) -> bool:
    if before is None or now is None:
        return False
    return (before.device, before.inode) == (now.device, now.inode) and before != now


def _all_watched(paths: Collection[Path]) -> frozenset[Path]:
    return frozenset().union(*map(watched_paths, paths))
