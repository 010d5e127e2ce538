"""`AuditLog`, the log as the server uses it: append records, and sign a checkpoint of them from time to time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_server import metrics
from mcp_server.audit.files import CURRENT
from mcp_server.audit.records import RESERVED, cleaned
from mcp_server.audit.writer import AuditWriter
from mcp_server.config.sections import AuditConfig
from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.logger import get_logger
from mcp_server.observability import tracing

if TYPE_CHECKING:
    from mcp_server.audit.checkpoint import Sealer
    from mcp_server.audit.records import Receipt

logger = get_logger(__name__)

CHECK_SEC: Final = 5.0
"""Longest time between two checks whether a checkpoint is due."""


class AuditLog:
    """The audit log in the folder ``state_dir``.

    ``settings`` is called each time a setting is needed, so that a reload takes effect at once.

    `append` works without `start`. After `start`, checkpoints are signed at the configured interval and at `close`.
    Without it, as in a single command, `close` signs one only if this process has written and the interval is over.
    """

    def __init__(self, state_dir: Path, settings: Callable[[], AuditConfig] = AuditConfig) -> None:
        self.problem: str | None = None
        """The reason why no checkpoint can be signed, for the health check. None if there is no problem."""
        self.unwritable: NetworkToolsError | None = None
        """The reason why the last record could not be written, for the health check. None if it was written."""
        self._folder = state_dir
        self._settings = settings
        self._writer = AuditWriter(state_dir)
        self._sealer: Sealer | None = None
        self._sealing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._wrote = False

    @property
    def path(self) -> Path:
        """The file that records are appended to."""
        return self._folder / CURRENT

    async def append(self, event: str, /, **fields: Any) -> Receipt:
        """Write one record. It is on the disk when this returns, with secrets in ``fields`` hidden.

        Raises PlatformError ``audit_unavailable`` or ``disk_full`` if it cannot be written, and ``audit_broken`` if
        records were removed while this process ran. Raises ValueError for a field named seq, prev, time or event.
        """
        if not RESERVED.isdisjoint(fields):
            raise ValueError(f"the fields {', '.join(sorted(RESERVED))} are set by the log itself")
        if (trace := tracing.trace_id()) is not None:
            fields.setdefault("trace_id", trace)
        # Copy before the first await, because the caller may change its objects afterwards.
        kept = cleaned(fields)
        started = time.perf_counter()
        try:
            receipt = await asyncio.to_thread(self._writer.append, event, kept, self._settings().max_file_size)
        except NetworkToolsError as error:
            self.unwritable = error
            metrics.count("mcp_audit_failures_total", code=error.code)
            raise
        metrics.observe("mcp_audit_append_seconds", time.perf_counter() - started)
        self.unwritable = None
        self._wrote = True
        return receipt

    async def start(self) -> None:
        """Start to sign checkpoints at the configured interval. Safe to call twice."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_sealing())

    async def close(self) -> None:
        """Stop, and sign the last checkpoint. Safe to call twice. A checkpoint that fails is logged, not raised."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if task is not None or (self._wrote and await asyncio.to_thread(self._seal_is_due)):
            self._wrote = False
            await self.seal()

    async def seal(self) -> str | None:
        """Sign a checkpoint if there are new records, and return it. A failure is logged and set as ``problem``."""
        async with self._sealing:
            try:
                note = await asyncio.to_thread(self._seal)
            except PlatformError as error:
                self._report(error.message)
            except OSError as error:
                self._report(f"No checkpoint can be made in {self._folder}: {error.strerror or error}.")
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
            # Read the setting every few seconds: a reload may have made the interval shorter.
            await asyncio.sleep(min(self._settings().checkpoint_interval, CHECK_SEC))
            if time.monotonic() - sealed >= self._settings().checkpoint_interval:
                sealed = time.monotonic()
                await self.seal()

    def _report(self, problem: str) -> None:
        if problem != self.problem:
            logger.error("audit.not_sealed", message=problem)
        self.problem = problem
