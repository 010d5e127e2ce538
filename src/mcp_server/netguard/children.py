"""A guard helper's children and signals: forking what ends in exec, ending it, and passing signals on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

from mcp_server.errors import ExitCode

_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def fork(run: Callable[[], None]) -> int:
    """Fork a child that carries ``run`` out, which ends in exec; where that fails the child says why and ends."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        for number in (*_PASSED_ON, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        run()
    except BaseException as error:  # noqa: BLE001 - nothing of the guard helper may go on in its child
        os.write(2, f"guard_unavailable: a guarded process cannot be started: {error}\n".encode())
    os._exit(ExitCode.ENVIRONMENT)


def end(pid: int, seconds: float = 5.0) -> None:
    """Kill a child and wait for its end."""
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + seconds
        while not os.waitpid(pid, os.WNOHANG)[0] and time.monotonic() < deadline:
            time.sleep(0.002)


def exit_code(status: int) -> int:
    """What a shell reports of a wait status."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def close_all_but(*keep: int) -> None:
    """Close every descriptor above the standard streams but ``keep``."""
    start = 3
    for number in sorted({*keep, os.sysconf("SC_OPEN_MAX")}):
        if number >= start:
            os.closerange(start, number)
            start = number + 1


def silence() -> None:
    """Put /dev/null in the place of standard input and output, which belong to the server."""
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def become_silent(*keep: int) -> None:
    """Close every descriptor but ``keep``, with /dev/null in the place of the standard streams.

    Otherwise a client that waits for the end of the server's output would wait for this process as well.
    """
    silence()
    os.dup2(0, 2)
    close_all_but(*keep)


class ChildSignals:
    """The signals that are the server's business: collected, and readable on a descriptor.

    Until `collect` is called one of them ends the guard helper by way of its clean-up (SystemExit).
    """

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._came: list[int] = []
        self._collecting = False
        self._before = {number: signal.signal(number, self._note) for number in _PASSED_ON}
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._reading)
        os.close(self._writing)

    def _note(self, number: int, _frame: object) -> None:
        if not self._collecting:
            raise SystemExit(128 + number)
        self._came.append(number)

    def collect(self) -> int:
        """Collect signals from now on; the descriptor that is readable after one."""
        self._collecting = True
        return self._reading

    def take(self) -> list[int]:
        """The signals since the last call."""
        with suppress(BlockingIOError):
            os.read(self._reading, 4096)
        came, self._came = self._came, []
        return came
