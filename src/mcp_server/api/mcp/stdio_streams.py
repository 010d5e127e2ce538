"""The byte level of the stdio interface: private descriptors, bounded lines in, whole lines out.

Reading and writing never block the event loop and need no thread, so a silent or a stuck client can
neither hold up other work nor keep the process from ending. Descriptors are polled and then read or
written once; the blocking mode is left alone, because it belongs to the open file that the parent
process (often a terminal) shares.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import anyio
import anyio.lowlevel

from mcp_server.errors import PlatformError

_READ_SIZE: Final = 64 * 1024
_SAFE_WRITE: Final = select.PIPE_BUF
"""POSIX: a pipe that polls writable takes this many bytes without blocking (pipe(7)); sockets take more."""


@contextmanager
def private_stdio(stdin_fd: int = 0, stdout_fd: int = 1) -> Iterator[tuple[int, int]]:
    """Move the wire to two private descriptors, and restore it afterwards.

    Inside, ``stdin_fd`` reads as empty and ``stdout_fd`` leads to standard error, so a child process
    or a stray ``print`` can neither eat a message nor corrupt one. The private pair is close-on-exec.
    Raises `PlatformError` where a descriptor is not open.
    """
    private: list[int] = []
    try:
        try:
            for fd in (stdin_fd, stdout_fd):
                private.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
        except OSError as exc:
            raise PlatformError(
                f"descriptor {fd} is not open, so MCP cannot be spoken on it ({exc.strerror})",
                hint="Start the server with its standard input and output connected to the client.",
            ) from exc
        _divert(os.open(os.devnull, os.O_RDONLY), stdin_fd)
        _divert(_open_stray_output(), stdout_fd)
        try:
            yield private[0], private[1]
        finally:
            # What was printed and is still buffered belongs to the diversion, not to the wire.
            with suppress(OSError, ValueError, AttributeError):
                sys.stdout.flush()
            os.dup2(private[0], stdin_fd)
            os.dup2(private[1], stdout_fd)
    finally:
        for fd in private:
            os.close(fd)


def _divert(source: int, target: int) -> None:
    os.dup2(source, target)
    os.close(source)


def _open_stray_output() -> int:
    try:
        return os.dup(2)
    except OSError:  # standard error is closed
        return os.open(os.devnull, os.O_WRONLY)


async def read_lines(fd: int, max_line: int) -> AsyncIterator[bytes | None]:
    """Yield each line of ``fd`` without its newline, and None in place of one longer than ``max_line`` bytes.

    A line that is too long is reported as soon as it is known to be, and thrown away as it arrives: memory
    holds at most ``max_line`` bytes and one read. The last line may lack its newline. Ends at end of input.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    held = bytearray()
    discarding = False
    while True:
        await anyio.lowlevel.checkpoint()
        if not poll.poll(0):
            await anyio.wait_readable(fd)
        chunk = os.read(fd, _READ_SIZE)
        if not chunk:
            if held:
                yield bytes(held)
            return
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            if discarding:
                discarding = False
            elif len(held) + len(piece) > max_line:
                yield None
            else:
                yield bytes(held) + piece
            held.clear()
        if not discarding and len(held) + len(rest) > max_line:
            discarding = True
            held.clear()
            yield None
        elif not discarding:
            held += rest


async def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data`` to ``fd`` without ever blocking the event loop.

    Raises `OSError` (usually `BrokenPipeError`) once the reader is gone.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    view = memoryview(data)
    while view:
        if not poll.poll(0):
            await anyio.wait_writable(fd)
        written = os.write(fd, view[:_SAFE_WRITE])
        view = view[written:]
