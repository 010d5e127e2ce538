"""Reading a pipe on the event loop: one chunk at a time, straight into a sink."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

CHUNK_BYTES: Final = 65536
"""The size of a Linux pipe; one read empties it."""


class Pump:
    """Hands what arrives on ``fd`` to ``sink`` until the end of file, an error of the sink, or `stop`.

    Nothing is read ahead, so a slow sink fills the pipe and the writer waits. ``ended`` is done when no more
    will come; ``failed`` is done when the sink raised, which ``error`` then holds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, sink: Callable[[bytes], None]) -> None:
        self.ended: asyncio.Future[None] = loop.create_future()
        self.failed: asyncio.Future[None] = loop.create_future()
        self.error: Exception | None = None
        self.total = 0
        self._loop, self._fd, self._sink = loop, fd, sink
        os.set_blocking(fd, False)
        loop.add_reader(fd, self._read)

    def stop(self) -> None:
        """Read no more. Safe to call twice; the descriptor stays open."""
        if not self.ended.done():
            self._loop.remove_reader(self._fd)
            self.ended.set_result(None)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, CHUNK_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.stop()
            return
        self.total += len(data)
        try:
            self._sink(data)
        except Exception as error:  # noqa: BLE001 - it is raised again where the run is awaited
            self.error = error
            self.stop()
            self.failed.set_result(None)


class OutputHead:
    """A sink that keeps the first ``limit`` bytes and drops the rest, so that the writer never blocks."""

    def __init__(self, limit: int) -> None:
        self.kept = bytearray()
        self.truncated = False
        self._limit = limit

    def __call__(self, data: bytes) -> None:
        """Take the next bytes."""
        room = self._limit - len(self.kept)
        self.truncated = self.truncated or len(data) > room
        self.kept += data[:room]


class LimitError(Exception):
    """More arrived than `Bounded` lets through."""


class Bounded:
    """A sink that passes on exactly the first ``limit`` bytes and raises `LimitError` at the next one."""

    def __init__(self, limit: int, sink: Callable[[bytes], None]) -> None:
        self._room = limit
        self._sink = sink

    def __call__(self, data: bytes) -> None:
        """Pass the bytes on, as far as there is room."""
        passed = data[: self._room]
        self._room -= len(passed)
        if passed:
            self._sink(passed)
        if len(passed) < len(data):
            raise LimitError
