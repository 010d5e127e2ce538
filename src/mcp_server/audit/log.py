"""The log as the server uses it: append, and a task that seals it from time to time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_server import metrics
from mcp_server.config.sections import AuditConfig
from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.observability import tracing

if TYPE_CHECKING:
    from mcp_server.audit.checkpoint import Sealer
    from mcp_server.audit.records import Receipt
    from mcp_server.audit.writer import Writer

logger = logging.getLogger(__name__)


LOOK_SEC: Final = 5.0
"""Seconds between two looks whether new records are to be sealed."""


class AuditLog:
    """The decision log in a state folder. ``settings`` is called each time, so that a reload takes effect.

    ``append`` works without `start`. A process that called `start` seals the log at the configured interval and at
    `close`; one that did not (a single command) seals it at `close` if it wrote to it and the interval is over.
    """

    def __init__(self, state_dir: Path, settings: Callable[[], AuditConfig] = AuditConfig) -> None:
        self._settings = settings
        self.problem: str | None = None
        """Why the log cannot be sealed or is no longer what was sealed, for health; None while all is well."""
        self.unwritable: str | None = None
        """Why the last record could not be written, for health: nothing runs until one can be."""
        self._folder = state_dir
        self._writer: Writer | None = None
        self._sealer: Sealer | None = None
        self._sealing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._wrote = False

    @property
    def path(self) -> Path:
        """The file that is written to."""
        return self._folder / "audit.jsonl"

    async def append(self, event: str, /, **fields: Any) -> Receipt:
        """Write one record, on the disk before this returns; secrets in ``fields`` are hidden.

        Raises PlatformError ``audit_unavailable``, ``disk_full``, or ``audit_broken`` where records were taken away
        while this process wrote. ValueError for a field named seq, prev, time or event.
        """
        from mcp_server.audit.records import RESERVED, cleaned
        from mcp_server.audit.writer import Writer

        if self._writer is None:
            self._writer = Writer(self._folder)
        if not RESERVED.isdisjoint(fields):
            raise ValueError(f"these names are the log's own: {', '.join(sorted(RESERVED))}")
        if (trace := tracing.trace_id()) is not None:
            fields.setdefault("trace_id", trace)
        # Now, not in the thread: a caller may change what it gave as soon as this waits.
        kept = cleaned(fields)
        started = time.perf_counter()
        try:
            receipt = await asyncio.to_thread(self._writer.append, event, kept, self._settings().max_file_size)
        except NetworkToolsError as error:
            self.unwritable = error.message
            metrics.count("mcp_audit_failures_total", code=error.code)
            raise
        metrics.observe("mcp_audit_append_seconds", time.perf_counter() - started)
        self.unwritable = None
        self._wrote = True
        return receipt

    async def start(self) -> None:
        """Begin to seal the log from time to time; safe to call twice."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_sealing())

    async def close(self) -> None:
        """Stop sealing, and make the last checkpoint; safe to call twice. Does not raise for a log it cannot seal."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if task is not None or (self._wrote and await asyncio.to_thread(self._seal_is_due)):
            self._wrote = False
            await self.seal()

    async def seal(self) -> str | None:
        """Make a checkpoint now if there are new records; returns it. A failure is logged and stands in ``problem``."""
        async with self._sealing:
            try:
                note = await asyncio.to_thread(self._seal)
            except PlatformError as error:
                self._report(error.message)
            except OSError as error:
                self._report(f"no checkpoint can be made in {self._folder}: {error.strerror or error}")
            else:
                self.problem = None
                return note
            return None

    def _seal(self) -> str | None:
        from mcp_server.audit.checkpoint import Sealer

        if self._sealer is None:
            self._sealer = Sealer(self._folder)
        ship_to = self._settings().ship_to
        return self._sealer.seal(ship_to) if self._sealer.pending(ship_to) else None

    def _seal_is_due(self) -> bool:
        from mcp_server.audit.checkpoint import CHECKPOINTS

        try:
            sealed = (self._folder / CHECKPOINTS).lstat().st_mtime
        except OSError:
            return True
        return not 0 <= time.time() - sealed < self._settings().checkpoint_interval

    async def _keep_sealing(self) -> None:
        sealed = time.monotonic()
        while True:
            # Asked again every few seconds: a reload may have made the interval shorter.
            await asyncio.sleep(min(self._settings().checkpoint_interval, LOOK_SEC))
            if time.monotonic() - sealed >= self._settings().checkpoint_interval:
                sealed = time.monotonic()
                await self.seal()

    def _report(self, problem: str) -> None:
        if problem != self.problem:
            logger.error("audit.not_sealed: %s", problem)
        self.problem = problem
