"""The bytes of the stdio interface: private descriptors, reading lines of limited length, writing whole lines.

Reading and writing never block the event loop and need no thread. So a client that sends or reads nothing delays no
other work, and does not keep the process from ending. A descriptor is polled and then read or written once. Its
blocking mode is not changed, because the parent process (often a terminal) shares the open file, and so its mode.
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
"""Bytes that a pipe accepts without blocking if poll reports it as writable (pipe(7)). Sockets accept more."""


@contextmanager
def private_stdio(stdin_fd: int = 0, stdout_fd: int = 1) -> Iterator[tuple[int, int]]:
    """Duplicate both descriptors to private ones, yield these, and restore the originals afterwards.

    Inside, ``stdin_fd`` is empty and ``stdout_fd`` is standard error, so that a child process or a stray ``print`` can
    neither take nor corrupt a message. The private descriptors are close-on-exec.

    Raises PlatformError if a descriptor is not open.
    """
    private: list[int] = []
    try:
        try:
            for fd in (stdin_fd, stdout_fd):
                private.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
        except OSError as exc:
            raise PlatformError(
                f"Descriptor {fd} is not open, so it cannot be used for MCP ({exc.strerror}).",
                hint="Start the server with its standard input and output connected to the client.",
            ) from exc
        _redirect(os.open(os.devnull, os.O_RDONLY), stdin_fd)
        _redirect(_open_standard_error(), stdout_fd)
        try:
            yield private[0], private[1]
        finally:
            # Text that was printed and is still buffered belongs on standard error, not between the messages.
            with suppress(OSError, ValueError, AttributeError):
                sys.stdout.flush()
            os.dup2(private[0], stdin_fd)
            os.dup2(private[1], stdout_fd)
    finally:
        for fd in private:
            os.close(fd)


def _redirect(source: int, target: int) -> None:
    os.dup2(source, target)
    os.close(source)


def _open_standard_error() -> int:
    try:
        return os.dup(2)
    except OSError:  # standard error is closed
        return os.open(os.devnull, os.O_WRONLY)


async def read_lines(fd: int, max_line: int) -> AsyncIterator[bytes | None]:
    """Yield each line of ``fd`` without its newline, and None instead of a line of more than ``max_line`` bytes.

    None is yielded as soon as a line is too long. The rest of that line is discarded as it arrives, so that memory
    holds at most ``max_line`` bytes and one read. The last line may lack its newline. Ends at the end of input.
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
    """Write all of ``data`` to ``fd`` without blocking the event loop.

    Raises OSError (usually BrokenPipeError) if the reader is gone.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    view = memoryview(data)
    while view:
        if not poll.poll(0):
            await anyio.wait_writable(fd)
        written = os.write(fd, view[:_SAFE_WRITE])
        view = view[written:]
