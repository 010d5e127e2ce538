"""Child processes and signals of a guard helper: forking a child that executes a program, and forwarding signals."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Self

from mcp_server.errors import ExitCode

_FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def fork(run: Callable[[], None]) -> int:
    """Fork a child that calls ``run``, which must execute a program. If it fails, the child prints why and exits."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        for number in (*_FORWARDED, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        run()
    except BaseException as error:  # noqa: BLE001 - the child must not continue as a second guard helper
        reason = str(error).removesuffix(".")
        os.write(2, f"guard_unavailable: A guarded process cannot be started: {reason}.\n".encode())
    os._exit(ExitCode.ENVIRONMENT)


def call_in_child(function: Callable[[], Any]) -> Any:
    """Call ``function`` in a forked process and return its result, which must be valid JSON.

    Raises ChildProcessError if it raises an exception.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                json.dump(function(), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    if os.waitpid(child, 0)[1]:
        raise ChildProcessError(child)
    return json.loads(text)


def end(pid: int, seconds: float = 5.0) -> None:
    """Kill a child and wait for its end."""
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + seconds
        while not os.waitpid(pid, os.WNOHANG)[0] and time.monotonic() < deadline:
            time.sleep(0.002)


def exit_code(status: int) -> int:
    """Return the exit code that a shell reports for a wait status: 128 + N for signal N."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def close_all_but(*keep: int) -> None:
    """Close every descriptor above the standard streams except ``keep``."""
    start = 3
    for number in sorted({*keep, os.sysconf("SC_OPEN_MAX")}):
        if number >= start:
            os.closerange(start, number)
            start = number + 1


def silence() -> None:
    """Replace standard input and output with /dev/null, because they belong to the server."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)


def become_silent(*keep: int) -> None:
    """Close every descriptor except ``keep``, and replace all three standard streams with /dev/null.

    Otherwise, a client that waits for the end of the server's output would also wait for this process.
    """
    silence()
    os.dup2(0, 2)
    close_all_but(*keep)


class ForwardedSignals:
    """Collects the signals that the guard helper forwards to the server.

    Until `collect` is called, such a signal raises SystemExit, so that the guard helper cleans up and exits.
    """

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._received: list[int] = []
        self._collecting = False
        self._before = {number: signal.signal(number, self._handle) for number in _FORWARDED}
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._reading)
        os.close(self._writing)

    def _handle(self, number: int, _frame: object) -> None:
        if not self._collecting:
            raise SystemExit(128 + number)
        self._received.append(number)

    def collect(self) -> int:
        """Start to collect signals. Return a descriptor that is readable after each."""
        self._collecting = True
        return self._reading

    def take(self) -> list[int]:
        """Return the signals received since the last call."""
        with suppress(BlockingIOError):
            os.read(self._reading, 4096)
        received, self._received = self._received, []
        return received
