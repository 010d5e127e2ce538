"""Running one program: argv exec, confined, bounded, ended as a whole tree.

`run_process` has the runner of a `place.Place` start the program, streams its standard output to a callback and
returns an `Exit`. Whatever ends the run (the program, its time limit, its output limit, the callback, a
cancellation), nothing it started is left when `run_process` returns or raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from mcp_server.errors import ArgumentError, BusyError, NetworkToolsError, PlatformError, ToolError
from mcp_server.sandbox.executor import Channel, Executor, default_executor
from mcp_server.sandbox.sandbox import Sandbox
from mcp_server.sandbox.streams import Bounded, LimitError, OutputHead, Pump

GRACE_SEC: Final = 0.5
"""Between SIGTERM and SIGKILL; part of the time limit, and never more than a tenth of it."""
_KILL_SEC: Final = 5.0
_IDLE_SEC: Final = 0.5
_MAX_REQUEST_BYTES: Final = 4 << 20
"""As in `supervisor.py`; the kernel takes less."""
_DEFAULT_SANDBOX: Final = Sandbox(reads=("/usr", "/etc", "/dev/zero"), raw_sockets=True)


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """Bounds of one run. Seconds, bytes and counts; ``output_bytes`` bounds all of stdout.

    ``cpu_sec`` defaults to what the time limit allows on every core: a net for a program nobody stops.
    ``file_bytes`` bounds each file the program writes.
    """

    timeout_sec: float
    output_bytes: int = 1 << 30
    stderr_bytes: int = 256 * 1024
    memory_bytes: int = 512 * 1024 * 1024
    file_descriptors: int = 256
    cpu_sec: int | None = None
    file_bytes: int = 1 << 20

    def words(self) -> list[str]:
        """The part of the limits that holds without this process, as the supervisor reads it."""
        last_resort = math.ceil(self.timeout_sec) + 1
        rlimits = {
            "cpu": self.cpu_sec or last_resort * (os.cpu_count() or 1),
            "as": self.memory_bytes,
            "nofile": self.file_descriptors,
            "core": 0,
            "fsize": self.file_bytes,
        }
        return [f"{name}={value}" for name, value in rlimits.items()] + [f"seconds={last_resort}"]


@dataclass(frozen=True, slots=True)
class Exit:
    """How a run ended. ``returncode`` is 124 after a time-out, 128 + N after death by signal N.

    ``stderr`` is the beginning of standard error, ``seconds`` the whole run with its spawn. ``pid`` is the program's
    as /proc counted, -1 where it is not known; ``bytes_out`` how much standard output was handed on.
    """

    returncode: int
    timed_out: bool
    output_exceeded: bool
    stderr: bytes
    stderr_truncated: bool
    seconds: float
    pid: int = -1
    bytes_out: int = 0


async def run_process(
    argv: tuple[str, ...],
    limits: ProcessLimits,
    on_stdout: Callable[[bytes], None],
    *,
    executor: Executor | None = None,
    sandbox: Sandbox | None = None,
) -> Exit:
    """Run ``argv`` (absolute path first) and hand its standard output to ``on_stdout`` as it arrives.

    The program gets /dev/null as input, the environment PATH and LC_ALL, and as working directory an empty folder
    that is removed afterwards; what else it may open is in ``sandbox``. ``on_stdout`` is called on the event loop
    with at most 64 KiB and never with more than ``limits.output_bytes`` in all; what it raises ends the run and is
    raised here. A cancellation sends SIGTERM, then SIGKILL, and is raised when everything is gone; output read
    until then has been handed on.

    Raises PlatformError where the program, the folder or the place cannot be used, BusyError where the machine has
    no room for a process, ArgumentError for words that cannot be arguments, ToolError where the process cannot be
    ended or its runner died.
    """
    started = time.perf_counter()
    _check(argv)
    request = _request(argv, limits, sandbox or _DEFAULT_SANDBOX)
    try:
        channel = (executor or default_executor()).open(argv[0])
    except OSError as error:
        raise _unusable(argv[0], error) from error
    run = _ProcessRun(channel, limits, on_stdout)
    try:
        await run.carry_out(request)
    finally:
        run.close()
    run.raise_for(argv[0])
    return Exit(
        returncode=run.returncode(),
        timed_out=run.timed_out,
        output_exceeded=isinstance(run.stdout.error, LimitError),
        stderr=bytes(run.head.kept),
        stderr_truncated=run.head.truncated,
        seconds=time.perf_counter() - started,
        pid=run.end.pid,
        bytes_out=min(run.stdout.total, limits.output_bytes),
    )


@dataclass(slots=True)
class _End:
    """What the supervisor said: the wait status and the pid, or what kept the program from starting."""

    status: int | None = None
    pid: int = -1
    refusal: OSError | None = None

    @classmethod
    def of(cls, line: str) -> _End:
        """Read the supervisor's one line; empty where it died without a word, as with its runner."""
        what, _, rest = line.removesuffix("\n").partition(" ")
        first, _, second = rest.partition(" ")
        if what == "exit":
            return cls(status=int(first), pid=int(second))
        if what == "failed":
            number = int(first)
            return cls(refusal=OSError(number, os.strerror(number), second or None))
        return cls()


class _ProcessRun:
    """One run: its two pumps, the future of its end, and how it is brought about.

    ``over`` is done when nothing of the run is left, with ``end`` as its supervisor told it.
    """

    def __init__(self, channel: Channel, limits: ProcessLimits, on_stdout: Callable[[bytes], None]) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._channel, self._limits = channel, limits
        self.over: asyncio.Future[None] = loop.create_future()
        self.end = _End()
        self.timed_out = self.cancelled = self.killed = False
        self.head = OutputHead(limits.stderr_bytes)
        self.stdout = Pump(loop, channel.stdout, Bounded(limits.output_bytes, on_stdout))
        self.stderr = Pump(loop, channel.stderr, self.head)

    async def carry_out(self, request: bytes) -> None:
        """Wait for the end of the program or bring it about; afterwards nothing of it is left."""
        limit = self._limits.timeout_sec
        grace = min(GRACE_SEC, limit / 10)
        try:
            await self._loop.sock_sendall(self._channel.run, request)
        except asyncio.CancelledError:
            self.cancelled = True
        except OSError:  # the supervisor ended already, and is heard below
            pass
        self._loop.add_reader(self._channel.run, self._on_message)
        if not self.cancelled:
            await self._wait({self.over, self.stdout.failed}, limit - grace)
        if not self.over.done():
            unwanted = self.stdout.failed.done()
            self.timed_out = not unwanted and not self.cancelled
            if not unwanted:
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    self._channel.run.send(b"t")
                await self._wait({self.over, self.stdout.failed}, grace if self.timed_out else GRACE_SEC)
            await self._kill()
        await self._drain()

    def returncode(self) -> int:
        """The code of `Exit`."""
        if self.timed_out:
            return 124
        code = -signal.SIGKILL if self.killed else os.waitstatus_to_exitcode(self.end.status or 0)
        return code if code >= 0 else 128 - code

    def raise_for(self, path: str) -> None:
        """Raise what has to be raised instead of returning an `Exit`."""
        if self.cancelled:
            raise asyncio.CancelledError
        if self.stdout.error is not None and not isinstance(self.stdout.error, LimitError):
            raise self.stdout.error
        if self.end.refusal is not None:
            raise _unusable(path, self.end.refusal)
        if self.end.status is None:
            raise ToolError(
                f"the run of {path} was lost: the process that watched over it ended",
                hint="All of the run was ended with it. Look in the system's log for who killed it, and try again.",
            )

    def close(self) -> None:
        """Let go of every descriptor, whatever happened before; a program still there is ended by that."""
        self.stdout.stop()
        self.stderr.stop()
        self._loop.remove_reader(self._channel.run)
        self._channel.close()

    async def _kill(self) -> None:
        """Kill the tree and wait until it is gone; a second cancellation does not cut this short."""
        until = self._loop.time() + _KILL_SEC
        if not self.over.done():
            self.killed = True
            with contextlib.suppress(OSError):  # as above
                self._channel.run.shutdown(socket.SHUT_WR)
        while not self.over.done() and (left := until - self._loop.time()) > 0:
            await self._wait({self.over}, left)
        if not self.over.done():
            raise ToolError("a process does not end after SIGKILL", hint="Look with ps for one in state D.")

    def _on_message(self) -> None:
        """Take the supervisor's line, or its end of file."""
        try:
            said = self._channel.run.recv(8192)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        self._loop.remove_reader(self._channel.run)
        self.end = _End.of(os.fsdecode(said))
        self.over.set_result(None)

    async def _drain(self) -> None:
        """Read what is still in the pipes. Bounded: a stranger may hold the other end open, or write for ever."""
        until = self._loop.time() + _KILL_SEC
        ends = {self.stdout.ended, self.stderr.ended}
        while not all(end.done() for end in ends) and self._loop.time() < until:
            before = self.stdout.total + self.stderr.total
            await self._wait(ends, _IDLE_SEC, return_when=asyncio.ALL_COMPLETED)
            if self.stdout.total + self.stderr.total == before:
                break

    async def _wait(
        self, futures: Collection[asyncio.Future[Any]], seconds: float, return_when: str = asyncio.FIRST_COMPLETED
    ) -> None:
        """Wait as asyncio.wait does, but note a cancellation instead of raising it: there is work to finish."""
        try:
            await asyncio.wait(futures, timeout=max(seconds, 0), return_when=return_when)
        except asyncio.CancelledError:
            self.cancelled = True


def _request(argv: tuple[str, ...], limits: ProcessLimits, sandbox: Sandbox) -> bytes:
    """What the supervisor reads: see `supervisor.py`."""
    words = [*limits.words(), f"raw={sandbox.raw_sockets:d}", *(f"read={path}" for path in sandbox.reads), "--", *argv]
    body = b"".join(os.fsencode(word) + b"\0" for word in words)
    if len(body) > _MAX_REQUEST_BYTES:
        raise _unusable(argv[0], _os_error(errno.E2BIG))
    return len(body).to_bytes(4, "big") + body


def _check(argv: tuple[str, ...]) -> None:
    """Refuse what execve(2) would, before anything is started."""
    path = argv[0] if argv else ""
    if not path.startswith("/"):
        raise PlatformError(f"{path!r} is not an absolute path", code="binary_not_found")
    if nul := next((word for word in argv if "\0" in word), None):
        raise ArgumentError(f"the argument {nul!r} holds a NUL byte", code="forbidden_characters")
    try:
        os.fsencode("".join(argv))
    except UnicodeEncodeError as error:
        raise ArgumentError(
            "an argument holds what is no text: a lone surrogate", code="forbidden_characters"
        ) from error
    if not os.path.isfile(path):  # noqa: PTH113 - one stat; this is on the way of every run
        raise _unusable(path, _os_error(errno.ENOENT))
    if not os.access(path, os.X_OK):
        raise _unusable(path, _os_error(errno.EACCES))


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _unusable(path: str, error: OSError) -> NetworkToolsError:
    """The typed error for what the system said when ``path`` was to be started."""
    number, reason = error.errno, str(error.strerror)
    if error.filename not in {None, path}:
        reason = f"{error.filename}: {reason}"
    if number == errno.ENOENT:
        return PlatformError(f"{path} cannot be started: {reason}", code="binary_not_found")
    if number == errno.E2BIG:
        return ArgumentError(f"{path} was not started: {reason}", code="arguments_too_long")
    if number in {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}:
        return BusyError(f"{path} was not started: {reason}", hint="The machine is short of it; try again later.")
    if number in {errno.ENOSPC, errno.EDQUOT}:
        return PlatformError(f"{path} was not started: {reason}", code="disk_full")
    return PlatformError(f"{path} cannot be started: {reason}", code="permission_denied")
