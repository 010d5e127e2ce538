"""The calls under way in this process: counted, and brought to their end when the server stops."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from mcp_server.errors import BusyError, NetworkToolsError

_COMES_BACK_SEC: Final = 5
"""About how long a server takes to be there again."""


class Calls:
    """Counts calls from `under_way` to its end; after `close` there are no new ones. For one event loop.

    Each call is the work of a task of its own, as every interface makes one: `end` cancels that task.
    """

    def __init__(self) -> None:
        self._under_way: dict[asyncio.Task[Any], str | None] = {}
        self._cut: set[asyncio.Task[Any]] = set()
        self._until: float | None = None
        self._none = asyncio.Event()
        self._none.set()

    @property
    def running(self) -> int:
        """How many calls are under way, those that are being refused among them."""
        return len(self._under_way)

    @property
    def closed(self) -> bool:
        """Whether new calls are refused."""
        return self._until is not None

    def close(self, grace_sec: float) -> None:
        """Refuse new calls from here on; those under way have ``grace_sec`` seconds. Safe to call twice."""
        if self._until is None:
            self._until = time.monotonic() + grace_sec

    def check(self) -> None:
        """Raise BusyError ``shutting_down`` after `close`; ``retry_after`` is when another may be there."""
        if self._until is not None:
            left = max(0, math.ceil(self._until - time.monotonic()))
            raise BusyError(
                "the server is stopping, and takes no new calls",
                code="shutting_down",
                retry_after=left + _COMES_BACK_SEC,
            )

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Count the running task as a call for the length of the block.

        Raises NetworkToolsError ``shutting_down`` where `end` cut it short; a cancellation by somebody else stays one.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call is the work of a task")
        before = task.cancelling()
        self._under_way[task] = None
        self._none.clear()
        try:
            yield
        except asyncio.CancelledError as error:
            # As asyncio.timeout() does it: whoever else cancelled the task in the same moment is still heard.
            if task in self._cut and task.uncancel() <= before:
                raise self._cut_short(task) from error
            raise
        finally:
            del self._under_way[task]
            self._cut.discard(task)
            if not self._under_way:
                self._none.set()

    def note_run(self, run_id: str) -> None:
        """Say which run the call of the running task is, so that a caller whose call is cut short can find it."""
        task = asyncio.current_task()
        if task in self._under_way:
            self._under_way[task] = run_id

    async def drained(self) -> None:
        """Wait until no call is under way."""
        await self._none.wait()

    async def end(self, within_sec: float) -> bool:
        """Cancel every call that is under way and wait for their ends; whether all came in time."""
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
            "the server stopped before the call was done; what was found until then is kept with the run",
            code="shutting_down",
            retry_after=_COMES_BACK_SEC,
            **({} if run_id is None else {"run_id": run_id}),
        )
