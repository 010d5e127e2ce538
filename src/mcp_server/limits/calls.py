"""Tracks the active calls of this process, and ends them when the server stops."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from mcp_server.errors import BusyError, NetworkToolsError

_RESTART_SEC: Final = 5
"""About the time that a restart of the server takes."""


class Calls:
    """Counts the active calls. After `close` no new call is accepted. For one event loop.

    Each call runs in its own task, which `end` cancels.
    """

    def __init__(self) -> None:
        self._under_way: dict[asyncio.Task[Any], str | None] = {}
        self._cut: set[asyncio.Task[Any]] = set()
        self._until: float | None = None
        self._none = asyncio.Event()
        self._none.set()

    @property
    def running(self) -> int:
        """How many calls are active, including calls that are being refused."""
        return len(self._under_way)

    @property
    def closed(self) -> bool:
        """Whether new calls are refused."""
        return self._until is not None

    def close(self, grace_sec: float) -> None:
        """Refuse new calls from now on. Active calls have ``grace_sec`` seconds. May be called twice."""
        if self._until is None:
            self._until = time.monotonic() + grace_sec

    def check(self) -> None:
        """Raise BusyError ``shutting_down`` after `close`. A new server may be ready after its ``retry_after``."""
        if self._until is not None:
            remaining = max(0, math.ceil(self._until - time.monotonic()))
            raise BusyError(
                "The server is stopping and accepts no new calls.",
                code="shutting_down",
                retry_after=remaining + _RESTART_SEC,
            )

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Count the running task as a call for the length of the block.

        Raises NetworkToolsError ``shutting_down`` if `end` cancelled the call. Any other cancellation is passed on.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call must run in a task")
        before = task.cancelling()
        self._under_way[task] = None
        self._none.clear()
        try:
            yield
        except asyncio.CancelledError as error:
            # As in asyncio.timeout(): a cancellation by other code at the same moment is not lost.
            if task in self._cut and task.uncancel() <= before:
                raise self._cut_short(task) from error
            raise
        finally:
            del self._under_way[task]
            self._cut.discard(task)
            if not self._under_way:
                self._none.set()

    def note_run(self, run_id: str) -> None:
        """Note the run of the current call, so that its caller can find the run if the call is cut short."""
        task = asyncio.current_task()
        if task in self._under_way:
            self._under_way[task] = run_id

    async def drained(self) -> None:
        """Wait until no call is active."""
        await self._none.wait()

    async def end(self, within_sec: float) -> bool:
        """Cancel every active call and wait for their ends. Return whether all ended in time."""
        for task in self._under_way.keys() - self._cut:
            self._cut.add(task)
            task.cancel()
        try:
            async with asyncio.timeout(within_sec):
                await self._none.wait()
        except TimeoutError:
            return False
        return True

    def _cut_short(self, task: asyncio.Task[Any]) -> NetworkToolsError:
        run_id = self._under_way[task]
        return NetworkToolsError(
            "The server stopped before the call was complete. The run keeps the results found until then.",
            code="shutting_down",
            retry_after=_RESTART_SEC,
            **({} if run_id is None else {"run_id": run_id}),
        )
