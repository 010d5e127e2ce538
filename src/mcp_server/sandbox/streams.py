"""Reads a pipe on the event loop and passes each chunk to a sink."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

CHUNK_BYTES: Final = 65536
"""The capacity of a Linux pipe. One read empties it."""


class PipeReader:
    """Passes the data from ``fd`` to ``sink`` until the end of file, an error in the sink, or `stop`.

    It does not buffer, so a slow sink blocks the writer. ``ended`` is done when no more data will be passed.
    ``failed`` is done when the sink raised an exception, which is then in ``error``. ``total`` counts bytes.
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
        """Stop reading. It is safe to call this twice. The descriptor stays open."""
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
        except Exception as error:  # noqa: BLE001 - the code that awaits the run raises it again
            self.error = error
            self.stop()
            self.failed.set_result(None)


class OutputHead:
    """A sink that keeps the first ``limit`` bytes and discards the rest, so that the writer never blocks."""

    def __init__(self, limit: int) -> None:
        self.kept = bytearray()
        self.truncated = False
        self._limit = limit

    def __call__(self, data: bytes) -> None:
        """Take the next bytes."""
        left = self._limit - len(self.kept)
        self.truncated = self.truncated or len(data) > left
        self.kept += data[:left]


class OutputLimitError(Exception):
    """The output is longer than the limit of `BoundedSink`."""


class BoundedSink:
    """A sink that passes on exactly the first ``limit`` bytes and raises `OutputLimitError` at the next one."""

    def __init__(self, limit: int, sink: Callable[[bytes], None]) -> None:
        self._left = limit
        self._sink = sink

    def __call__(self, data: bytes) -> None:
        """Pass the bytes on, up to the limit."""
        passed = data[: self._left]
        self._left -= len(passed)
        if passed:
            self._sink(passed)
        if len(passed) < len(data):
            raise OutputLimitError
