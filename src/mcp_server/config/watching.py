"""Watching files: an editor, a package or a config map of Kubernetes replaces them, and links on the way to them.

What is watched are folders: that of each file, and that of each symbolic link on the way to it. A file is another one
when what its path leads to has another identity (inode, size, times); what an event says is never believed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Final, TypeAlias

from mcp_server.logger import get_logger

logger = get_logger(__name__)

QUIET_MS: Final = 250
"""Milliseconds without an event after which a change is whole. Also how often the watching thread wakes up."""
BURST_MS: Final = 2000
"""Milliseconds after which a change is looked at though events go on."""
TICK_MS: Final = 5000
"""Milliseconds after which the files are looked at without any event: not every file system tells of changes."""
RETRY_SEC: Final = 30.0
"""Seconds until a folder that cannot be watched is tried again; its files are looked at as often."""

IN_PLACE_SEC: Final = 2.0
"""Seconds without a change after which a file that is written in place is taken for whole."""

_MAX_WAITS: Final = 5  # for one that changes all the time
_MAX_LINKS: Final = 40  # as the kernel follows at most (path_resolution(7))

Identity: TypeAlias = tuple[int, ...] | None
Identities: TypeAlias = dict[Path, Identity]
"""What each path leads to; None where there is nothing to be read."""


def identities(paths: Iterable[Path]) -> Identities:
    """What each of the paths leads to now."""
    return {path: _identity(path) for path in paths}


def changed_since(paths: Iterable[Path], moment: float) -> bool:
    """Whether any of the files was changed at or after ``moment``, in seconds since 1970."""
    # The times of files come from a clock that ticks every few milliseconds.
    latest = moment - 0.02
    return any(found is not None and found[-1] >= latest * 1e9 for found in identities(paths).values())


def names_on_the_way(path: Path) -> frozenset[Path]:
    """The file a path leads to and every symbolic link on the way, each by its name in a folder without links."""
    names: set[Path] = set()
    left, here, links = list(path.absolute().parts[1:]), Path("/"), 0
    while left:
        part = left.pop(0)
        if part == "..":
            here = here.parent
            continue
        step = here / part
        try:
            target = os.readlink(step)  # noqa: PTH115 - pathlib's own would normalise what the kernel does not
        except OSError:  # no link, or nothing at all
            here = step
            continue
        names.add(step)
        links += 1
        if links > _MAX_LINKS:
            return frozenset(names)
        left = [*Path(target).parts, *left]
        if target.startswith("/"):
            left, here = left[1:], Path("/")
    return frozenset({*names, here})


async def ticks(paths: Callable[[], Collection[Path]], again: asyncio.Event) -> AsyncGenerator[None, None]:
    """Give a sign whenever the files may have changed, and from time to time without any reason; never ends.

    ``paths`` are asked for after each sign, and when ``again`` is set. A folder that cannot be watched is logged.
    """
    from watchfiles import awatch

    seen = identities(paths())
    while True:
        again.clear()
        names = await asyncio.to_thread(_names, paths())
        folders = {name.parent for name in names}
        texts = frozenset(map(str, names))
        try:
            events = awatch(
                *folders,
                watch_filter=lambda _, path, texts=texts: path in texts,  # type: ignore[misc]  # bound for this round
                debounce=BURST_MS,
                step=QUIET_MS,
                rust_timeout=TICK_MS,
                yield_on_timeout=True,
                recursive=False,
                stop_event=again,
            )
            async with aclosing(events):
                async for _ in events:
                    seen = await _settled(seen, paths())
                    yield
                    if await asyncio.to_thread(_names, paths()) != names:
                        break
            seen = await _settled(seen, paths())
            yield
        except (OSError, RuntimeError) as error:  # what the library raises of its own is a RuntimeError
            logger.warning("config.not_watched", folders=",".join(sorted(map(str, folders))), message=str(error))
            await asyncio.sleep(RETRY_SEC)
            yield


async def _settled(seen: Identities, paths: Collection[Path]) -> Identities:
    """What the paths lead to, after a wait where one of them is the same file as before with other contents."""
    now = await asyncio.to_thread(identities, paths)
    for _ in range(_MAX_WAITS):
        if not any(_is_rewritten(seen.get(path), found) for path, found in now.items()):
            break
        await asyncio.sleep(IN_PLACE_SEC)
        seen, now = now, await asyncio.to_thread(identities, paths)
    return now


def _is_rewritten(before: Identity, now: Identity) -> bool:
    return before is not None and now is not None and before[:2] == now[:2] and before != now


def _names(paths: Collection[Path]) -> frozenset[Path]:
    return frozenset().union(*map(names_on_the_way, paths))


def _identity(path: Path) -> Identity:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mode, found.st_mtime_ns, found.st_ctime_ns)
