"""Runs one program with a sandbox and limits, and ends it together with everything that it started.

`run_process` has an `Executor` start the program, passes its standard output to a callback, and returns an `Exit`. A
run ends because of the program itself, its time limit, its output limit, an error in the callback, or a cancellation.
In each case, no process of the run is left when `run_process` returns or raises.
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
from mcp_server.sandbox.executor import Executor, RunConnection, default_executor
from mcp_server.sandbox.sandbox import Sandbox
from mcp_server.sandbox.streams import BoundedSink, OutputHead, OutputLimitError, PipeReader
from mcp_server.sandbox.supervisor import MAX_REQUEST_BYTES

GRACE_SEC: Final = 0.5
"""Time between SIGTERM and SIGKILL. It is part of the time limit, and at most a tenth of it."""
_KILL_SEC: Final = 5.0
_IDLE_SEC: Final = 0.5
_DEFAULT_SANDBOX: Final = Sandbox(reads=("/usr", "/etc", "/dev/zero"), raw_sockets=True)


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """The limits of one run, in seconds, bytes and counts.

    ``output_bytes`` limits standard output in total. ``cpu_sec`` defaults to what the time limit allows on all cores,
    so that the kernel ends the program even if nothing else does. ``file_bytes`` limits each file that the program
    writes.
    """

    timeout_sec: float
    output_bytes: int = 1 << 30
    stderr_bytes: int = 256 * 1024
    memory_bytes: int = 512 * 1024 * 1024
    file_descriptors: int = 256
    cpu_sec: int | None = None
    file_bytes: int = 1 << 20

    def words(self) -> list[str]:
        """Return the limits that hold even if this process is gone, as words of a `supervisor.RunRequest`."""
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
    """The result of a run. ``returncode`` is 124 after a timeout, and 128 + N if signal N ended the program.

    ``stderr`` is the beginning of standard error. ``seconds`` includes the start of the process. ``pid`` is the
    program's PID in the namespace of /proc, or -1 if it is not known. ``bytes_out`` is the number of bytes of standard
    output that were passed on.
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
    """Run ``argv``, which starts with an absolute path, and pass its standard output to ``on_stdout`` as it arrives.

    The program gets /dev/null as its input and only PATH and LC_ALL in its environment. Its working directory is an
    empty folder, which is removed afterwards. ``sandbox`` says what else it can open.

    ``on_stdout`` is called on the event loop, with at most 64 KiB at a time and ``limits.output_bytes`` in total. If it
    raises an exception, the run ends and the exception is raised here. A cancellation sends SIGTERM, then SIGKILL, and
    is raised when no process is left. Output that was read before the cancellation has been passed on.

    Raises PlatformError if the program, the scratch folder or the executor cannot be used, BusyError if the host has
    no resources for another process, ArgumentError for words that cannot be arguments, and ToolError if the process
    cannot be ended or its runner died.
    """
    started = time.perf_counter()
    _check(argv)
    request = _request(argv, limits, sandbox or _DEFAULT_SANDBOX)
    try:
        connection = (executor or default_executor()).open(argv[0])
    except OSError as error:
        raise _unusable(argv[0], error) from error
    run = _ProcessRun(connection, limits, on_stdout)
    try:
        await run.carry_out(request)
    finally:
        run.close()
    run.raise_for(argv[0])
    return Exit(
        returncode=run.returncode(),
        timed_out=run.timed_out,
        output_exceeded=isinstance(run.stdout.error, OutputLimitError),
        stderr=bytes(run.stderr_head.kept),
        stderr_truncated=run.stderr_head.truncated,
        seconds=time.perf_counter() - started,
        pid=run.report.pid,
        bytes_out=min(run.stdout.total, limits.output_bytes),
    )


@dataclass(slots=True)
class _Report:
    """The report of the supervisor: wait status and PID, or why the program could not be started."""

    status: int | None = None
    pid: int = -1
    failure: OSError | None = None

    @classmethod
    def parse(cls, line: str) -> _Report:
        """Parse the supervisor's line. It is empty if the supervisor died, for example with its runner."""
        what, _, rest = line.removesuffix("\n").partition(" ")
        first, _, second = rest.partition(" ")
        if what == "exit":
            return cls(status=int(first), pid=int(second))
        if what == "failed":
            number = int(first)
            return cls(failure=OSError(number, os.strerror(number), second or None))
        return cls()


class _ProcessRun:
    """One run: the readers of its two pipes, and its end.

    ``finished`` is done when no process of the run is left. ``report`` is then the supervisor's report.
    """

    def __init__(self, connection: RunConnection, limits: ProcessLimits, on_stdout: Callable[[bytes], None]) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._connection, self._limits = connection, limits
        self.finished: asyncio.Future[None] = loop.create_future()
        self.report = _Report()
        self.timed_out = self.cancelled = self.killed = False
        self.stderr_head = OutputHead(limits.stderr_bytes)
        self.stdout = PipeReader(loop, connection.stdout, BoundedSink(limits.output_bytes, on_stdout))
        self.stderr = PipeReader(loop, connection.stderr, self.stderr_head)

    async def carry_out(self, request: bytes) -> None:
        """Send the request and wait until the program ends, or end it. Afterwards, no process of the run is left."""
        limit = self._limits.timeout_sec
        grace = min(GRACE_SEC, limit / 10)
        try:
            await self._loop.sock_sendall(self._connection.run, request)
        except asyncio.CancelledError:
            self.cancelled = True
        except OSError:  # the supervisor has ended already, and its report is read below
            pass
        self._loop.add_reader(self._connection.run, self._on_message)
        if not self.cancelled:
            await self._wait({self.finished, self.stdout.failed}, limit - grace)
        if not self.finished.done():
            output_failed = self.stdout.failed.done()
            self.timed_out = not output_failed and not self.cancelled
            if not output_failed:
                with contextlib.suppress(OSError):  # the supervisor has ended
                    self._connection.run.send(b"t")
                await self._wait({self.finished, self.stdout.failed}, grace if self.timed_out else GRACE_SEC)
            await self._kill()
        await self._drain()

    def returncode(self) -> int:
        """Return the return code for `Exit`."""
        if self.timed_out:
            return 124
        code = -signal.SIGKILL if self.killed else os.waitstatus_to_exitcode(self.report.status or 0)
        return code if code >= 0 else 128 - code

    def raise_for(self, path: str) -> None:
        """Raise an exception if the run has no `Exit`."""
        if self.cancelled:
            raise asyncio.CancelledError
        if self.stdout.error is not None and not isinstance(self.stdout.error, OutputLimitError):
            raise self.stdout.error
        if self.report.failure is not None:
            raise _unusable(path, self.report.failure)
        if self.report.status is None:
            raise ToolError(
                f"The run of {path} was lost, because its supervisor or the runner ended early.",
                hint="All processes of the run have ended. Find the reason in the system's log, then try again.",
            )

    def close(self) -> None:
        """Close every descriptor. This ends a program that still runs."""
        self.stdout.stop()
        self.stderr.stop()
        self._loop.remove_reader(self._connection.run)
        self._connection.close()

    async def _kill(self) -> None:
        """Kill all processes of the run and wait until they have ended, even if this task is cancelled again."""
        until = self._loop.time() + _KILL_SEC
        if not self.finished.done():
            self.killed = True
            with contextlib.suppress(OSError):  # the supervisor has ended
                self._connection.run.shutdown(socket.SHUT_WR)
        while not self.finished.done() and (left := until - self._loop.time()) > 0:
            await self._wait({self.finished}, left)
        if not self.finished.done():
            raise ToolError("A process did not end after SIGKILL.", hint="Look for a process in state D with 'ps'.")

    def _on_message(self) -> None:
        """Read the report of the supervisor, or the end of file."""
        try:
            line = self._connection.run.recv(8192)
        except BlockingIOError:
            return
        except OSError:
            line = b""
        self._loop.remove_reader(self._connection.run)
        self.report = _Report.parse(os.fsdecode(line))
        self.finished.set_result(None)

    async def _drain(self) -> None:
        """Read the rest of the pipes, for a limited time: another process may hold them open, or write without end."""
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
        """Wait as `asyncio.wait` does, but record a cancellation instead of raising it: the run must still be ended."""
        try:
            await asyncio.wait(futures, timeout=max(seconds, 0), return_when=return_when)
        except asyncio.CancelledError:
            self.cancelled = True


def _request(argv: tuple[str, ...], limits: ProcessLimits, sandbox: Sandbox) -> bytes:
    """Return the request that the supervisor reads (`supervisor.RunRequest`), with its length in front."""
    words = [*limits.words(), f"raw={sandbox.raw_sockets:d}", *(f"read={path}" for path in sandbox.reads), "--", *argv]
    body = b"".join(os.fsencode(word) + b"\0" for word in words)
    if len(body) > MAX_REQUEST_BYTES:
        raise _unusable(argv[0], _os_error(errno.E2BIG))
    return len(body).to_bytes(4, "big") + body


def _check(argv: tuple[str, ...]) -> None:
    """Raise an error for an ``argv`` that execve(2) would refuse, before a process is started."""
    path = argv[0] if argv else ""
    if not path.startswith("/"):
        raise PlatformError(f"{path!r} is not an absolute path.", code="binary_not_found")
    if nul := next((word for word in argv if "\0" in word), None):
        raise ArgumentError(f"The argument {nul!r} contains a NUL byte.", code="forbidden_characters")
    try:
        os.fsencode("".join(argv))
    except UnicodeEncodeError as error:
        raise ArgumentError(
            "An argument contains a lone surrogate, which cannot be encoded.", code="forbidden_characters"
        ) from error
    if not os.path.isfile(path):  # noqa: PTH113 - one stat(2) for each run
        raise _unusable(path, _os_error(errno.ENOENT))
    if not os.access(path, os.X_OK):
        raise _unusable(path, _os_error(errno.EACCES))


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _unusable(path: str, error: OSError) -> NetworkToolsError:
    """Return the error for an OSError from the start of ``path``."""
    number, reason = error.errno, str(error.strerror)
    if error.filename not in {None, path}:
        reason = f"{error.filename}: {reason}"
    if number == errno.ENOENT:
        return PlatformError(f"{path} cannot be started: {reason}.", code="binary_not_found")
    if number == errno.E2BIG:
        return ArgumentError(f"{path} was not started: {reason}.", code="arguments_too_long")
    if number in {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}:
        return BusyError(f"{path} was not started: {reason}.", hint="The host has no free resources. Try again later.")
    if number in {errno.ENOSPC, errno.EDQUOT}:
        return PlatformError(f"{path} was not started: {reason}.", code="disk_full")
    return PlatformError(f"{path} cannot be started: {reason}.", code="permission_denied")
