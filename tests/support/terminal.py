"""Run a command on its own terminal, as a user does."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import termios
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path


class Terminal:
    """A command on a terminal; ``shown`` grows as the command writes."""

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self.shown = b""
        self.process = process
        self._master = master
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        data = b""
        with suppress(OSError):  # EIO: the last process on the terminal has closed it
            data = os.read(self._master, 65536)
        self.shown += data
        if not data:
            self.close()

    def press(self, keys: bytes) -> None:
        """Type ``keys``; the byte 3 is Ctrl-C."""
        os.write(self._master, keys)

    async def ended(self, seconds: float = 30) -> int:
        """Wait for the end of the command and of its output; return its exit code."""
        async with asyncio.timeout(seconds):
            await self._ended.wait()
            return await self.process.wait()

    def close(self) -> None:
        """Stop reading."""
        if not self._ended.is_set():
            asyncio.get_running_loop().remove_reader(self._master)
            self._ended.set()


@asynccontextmanager
async def on_a_terminal(
    command: Sequence[str], env: Mapping[str, str], cwd: Path, *, columns: int = 100
) -> AsyncIterator[Terminal]:
    """Start ``command`` with standard input, output and error on a new controlling terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = await asyncio.create_subprocess_exec(
        "setsid",
        "--ctty",
        "--wait",
        *command,
        env={**env, "TERM": "xterm-256color"},
        cwd=cwd,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    terminal = Terminal(master, process)
    try:
        yield terminal
    finally:
        terminal.close()
        os.close(master)  # hangs up the terminal: processes that still run on it get SIGHUP
        if process.returncode is None:
            process.kill()
        await process.wait()
