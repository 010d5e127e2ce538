"""Metrics that are measured at an interval: the lag of the event loop and the free space of the state folder."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mcp_server import metrics
from mcp_server.config.sections import MetricsConfig
from mcp_server.logger import get_logger

logger = get_logger(__name__)

TICK_SEC: Final = 1.0
"""Seconds between two measurements of the lag. The longest lag of an interval is shown."""


class Sampler:
    """Sets the gauges every ``metrics.collection_interval`` seconds while the server runs.

    ``settings`` is called at every tick, so that a reload takes effect.
    """

    def __init__(self, settings: Callable[[], MetricsConfig], state_dir: Path, *, tick_sec: float = TICK_SEC) -> None:
        self._settings = settings
        self._state_dir = state_dir
        self._tick_sec = tick_sec
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start on the running loop. Safe to call twice."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="metrics-sampler")

    async def stop(self) -> None:
        """Stop. Safe to call twice, or without a start."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        worst, since = 0.0, 0.0
        await self._read_disk()
        while True:
            expected = loop.time() + self._tick_sec
            await asyncio.sleep(self._tick_sec)
            worst = max(worst, loop.time() - expected)
            since += self._tick_sec
            if since >= self._settings().collection_interval:
                metrics.gauge("mcp_event_loop_lag_seconds", worst)
                worst, since = 0.0, 0.0
                await self._read_disk()

    async def _read_disk(self) -> None:
        try:
            # In a thread, because a network file system may block.
            disk = await asyncio.to_thread(os.statvfs, self._state_dir)
        except OSError as error:
            logger.warning("metrics.disk_not_read", folder=self._state_dir, message=error.strerror)
            return
        metrics.gauge("mcp_state_disk_free_bytes", disk.f_bavail * disk.f_frsize)
        metrics.gauge("mcp_state_disk_size_bytes", disk.f_blocks * disk.f_frsize)
