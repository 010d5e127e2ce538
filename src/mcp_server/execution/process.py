"""Running one program: argv exec, bounded, ended as a whole tree.

`run_process` starts the program through a `launcher.Launcher`, streams its standard output to a callback and
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
import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from mcp_server.errors import ArgumentError, BusyError, NetworkToolsError, PlatformError, ToolError
from mcp_server.execution.launcher import SYSTEM_PATH, Bounds, Launcher, launcher_for
from mcp_server.execution.scratch import scratch_folder
from mcp_server.execution.streams import Bounded, Head, LimitError, Pump

GRACE_SEC: Final = 0.5
"""Between SIGTERM and SIGKILL; part of the time limit, and never more than a tenth of it."""
_KILL_SEC: Final = 5.0
_IDLE_SEC: Final = 0.5
_POLL_SEC: Final = 0.02


@dataclass(frozen=True, slots=True)
class Limits:
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

    def bounds(self) -> Bounds:
        """The part of the limits that holds without this process."""
        last_resort = math.ceil(self.timeout_sec) + 1
        rlimits = {
            "cpu": self.cpu_sec or last_resort * (os.cpu_count() or 1),
            "as": self.memory_bytes,
            "nofile": self.file_descriptors,
            "core": 0,
            "fsize": self.file_bytes,
        }
        return Bounds.below_own(rlimits, last_resort)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a run ended. ``returncode`` is 124 after a time-out, 128 + N after death by signal N.

    ``stderr`` is the beginning of standard error, ``seconds`` the whole run with its spawn.
    """

    returncode: int
    timed_out: bool
    output_exceeded: bool
    stderr: bytes
    stderr_truncated: bool
    seconds: float


async def run_process(
    argv: tuple[str, ...],
    limits: Limits,
    on_stdout: Callable[[bytes], None],
    *,
    launcher: Launcher | None = None,
) -> Exit:
    """Run ``argv`` (absolute path first) and hand its standard output to ``on_stdout`` as it arrives.

    The program gets /dev/null as input, the environment PATH, LC_ALL and HOME, and an empty folder as HOME and
    working directory that is removed afterwards. ``on_stdout`` is called on the event loop with at most 64 KiB
    and never with more than ``limits.output_bytes`` in all; what it raises ends the run and is raised here. A
    cancellation sends SIGTERM, then SIGKILL, and is raised when everything is gone; output read until then has
    been handed on.

    Raises PlatformError where the program or the folder cannot be used, BusyError where the machine has no room
    for a process, ArgumentError for words that cannot be arguments, ToolError where the process cannot be ended.
    """
    started = time.perf_counter()
    _check(argv)
    launcher = launcher or launcher_for(argv[0])
    async with contextlib.AsyncExitStack() as folder:
        try:
            home = await folder.enter_async_context(scratch_folder())
            popen = _spawn(launcher.wrap(argv, limits.bounds(), home), home)
        except OSError as error:
            raise _unusable(argv[0], error) from error
        run = _Run(popen, launcher, limits, on_stdout)
        try:
            await run.carry_out()
        finally:
            run.close()
    run.raise_for(argv[0])
    return Exit(
        returncode=run.returncode(),
        timed_out=run.timed_out,
        output_exceeded=isinstance(run.stdout.error, LimitError),
        stderr=bytes(run.head.kept).removesuffix(launcher.farewell if run.killed else b""),
        stderr_truncated=run.head.truncated,
        seconds=time.perf_counter() - started,
    )


class _Run:
    """One started process: its two pumps, the future of its exit status, and how it is brought to an end.

    ``exited`` is the exit code, negative for a signal. The reaping is done here and not by asyncio: its
    transports buffer ahead, and its `wait` differs between versions when a grandchild holds a pipe.
    """

    def __init__(
        self, popen: subprocess.Popen[bytes], launcher: Launcher, limits: Limits, on_stdout: Callable[[bytes], None]
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._popen, self._launcher, self._limits = popen, launcher, limits
        self._pidfd: int | None = None
        self.exited: asyncio.Future[int] = loop.create_future()
        self.timed_out = self.cancelled = self.killed = False
        self.head = Head(limits.stderr_bytes)
        if popen.stdout is None or popen.stderr is None:
            raise ValueError("the process was started without pipes")
        self.stdout = Pump(loop, popen.stdout.fileno(), Bounded(limits.output_bytes, on_stdout))
        self.stderr = Pump(loop, popen.stderr.fileno(), self.head)
        self._watch()

    async def carry_out(self) -> None:
        """Wait for the end of the program or bring it about; afterwards nothing of it is left."""
        limit = self._limits.timeout_sec
        grace = min(GRACE_SEC, limit / 10)
        await self._wait({self.exited, self.stdout.failed}, limit - grace)
        if not self.exited.done():
            unwanted = self.stdout.failed.done()
            self.timed_out = not unwanted and not self.cancelled
            if not unwanted and self._launcher.ask(self._popen.pid):
                await self._wait({self.exited, self.stdout.failed}, grace if self.timed_out else GRACE_SEC)
            await self._kill()
        await self._drain()

    def returncode(self) -> int:
        """The code of `Exit`: what a launcher reports of its own end after a kill is not the program's."""
        if self.timed_out:
            return 124
        code = -signal.SIGKILL if self.killed else self.exited.result()
        return code if code >= 0 else 128 - code

    def raise_for(self, path: str) -> None:
        """Raise what has to be raised instead of returning an `Exit`."""
        if self.cancelled:
            raise asyncio.CancelledError
        if self.stdout.error is not None and not isinstance(self.stdout.error, LimitError):
            raise self.stdout.error
        code = self.exited.result()
        if code in {126, 127} and self.head.kept.startswith(self._launcher.refusal):
            raise _unusable(path, _os_error(errno.ENOENT if code == 127 else errno.EACCES))

    def close(self) -> None:
        """Let go of every descriptor, whatever happened before."""
        self.stdout.stop()
        self.stderr.stop()
        self._unwatch()
        if self.exited.done():
            self.exited.exception()  # looked at, or the loop complains where a cancellation is raised instead
        for stream in (self._popen.stdout, self._popen.stderr):
            if stream is not None:
                stream.close()

    async def _kill(self) -> None:
        """Kill the tree and wait until it is gone; a second cancellation does not cut this short."""
        # The launcher's own kill leaves it to report the end; a signal to its group is for a launcher that hangs.
        for kill in (self._launcher.kill, self._kill_group):
            until = self._loop.time() + _KILL_SEC
            if not self.exited.done():
                self.killed = True
                kill(self._popen.pid)
            while not self.exited.done() and (left := until - self._loop.time()) > 0:
                await self._wait({self.exited}, left)
        if not self.exited.done():
            raise ToolError(f"process {self._popen.pid} does not end after SIGKILL", hint="Look at it with ps.")

    @staticmethod
    def _kill_group(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

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

    def _watch(self) -> None:
        """Have the loop tell when the process ends: by a pidfd, or by asking now and then where there is none."""
        try:
            self._pidfd = os.pidfd_open(self._popen.pid)
        except (AttributeError, OSError):  # macOS, a kernel before 5.3, no descriptor left
            self._loop.call_later(_POLL_SEC, self._reap)
        else:
            self._loop.add_reader(self._pidfd, self._reap)

    def _unwatch(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _reap(self) -> None:
        if self.exited.done():
            return
        # Popen.poll takes a lost status for exit code 0, and failure must not look like success.
        try:
            pid, status = os.waitpid(self._popen.pid, os.WNOHANG)
        except ChildProcessError:
            self._popen.returncode = 255
            hint = "Start the server with SIGCHLD at its default."
            self.exited.set_exception(ToolError("the exit status was lost: the server ignores SIGCHLD", hint=hint))
            return
        if pid:
            self._popen.returncode = os.waitstatus_to_exitcode(status)
            self.exited.set_result(self._popen.returncode)
        elif self._pidfd is None:
            self._loop.call_later(_POLL_SEC, self._reap)


def _check(argv: tuple[str, ...]) -> None:
    """Refuse what execve(2) would: the launchers would report it less clearly."""
    path = argv[0] if argv else ""
    if not path.startswith("/"):
        raise PlatformError(f"{path!r} is not an absolute path", code="binary_not_found")
    if nul := next((word for word in argv if "\0" in word), None):
        raise ArgumentError(f"the argument {nul!r} holds a NUL byte", code="forbidden_characters")
    if not os.path.isfile(path):  # noqa: PTH113 - one stat; this is on the way of every run
        raise _unusable(path, _os_error(errno.ENOENT))
    if not os.access(path, os.X_OK):
        raise _unusable(path, _os_error(errno.EACCES))


def _spawn(words: tuple[str, ...], home: str) -> subprocess.Popen[bytes]:
    """Start the launcher in a session of its own, with a clean environment and no descriptor but its three."""
    return subprocess.Popen(
        words,
        bufsize=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=home,
        env={"PATH": SYSTEM_PATH, "LC_ALL": "C", "HOME": home},
        start_new_session=True,
    )


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
