"""Executors start programs: an `Executor` is the server's end of a runner process (`runner.py`)."""

from __future__ import annotations

import array
import atexit
import contextlib
import errno
import functools
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final, NamedTuple, Self

from mcp_server.errors import BusyError, PlatformError, ToolError

_BOOT: Final = "import sys; sys.path.append({source!r}); from mcp_server.sandbox.runner import main; main()"
_SOURCE: Final = str(Path(__file__).parents[2])
_CLOSE_SEC: Final = 6.0
"""A little longer than a runner waits for its supervisors."""


def runner_argv(fd: int, *, allow_raw: bool = True) -> tuple[str, ...]:
    """Return the command that starts a runner for the control socket ``fd``, which it inherits under that number.

    Pass the other end of the socket to `Executor.adopt`. The runner's user must be able to read the interpreter and
    this package. If it cannot, use `runner.serve_control` in a forked process. The runner makes scratch folders in
    $TMPDIR, or in /tmp if that is not set.
    """
    return _argv(str(fd), allow_raw=allow_raw)


def probe_argv(*, allow_raw: bool = True) -> tuple[str, ...]:
    """Return the command that prints the abilities of a runner on this host (`runner.main`)."""
    return _argv("probe", allow_raw=allow_raw)


def _argv(what: str, *, allow_raw: bool) -> tuple[str, ...]:
    words = ("-I", "-S", "-c", _BOOT.format(source=_SOURCE), what, "raw" if allow_raw else "no-raw")
    return (sys.executable, *words)


class RunConnection(NamedTuple):
    """The server's ends of one run: its socket, and the descriptors to read standard output and standard error from."""

    run: socket.socket
    stdout: int
    stderr: int

    def close(self) -> None:
        """Close all three. This ends the run if it is still active."""
        self.run.close()
        os.close(self.stdout)
        os.close(self.stderr)


class Executor:
    """Starts programs through a runner. It can be used from several threads and event loops.

    Create it with `here` or `adopt`. `close` or the exit of this process ends the runner. ``name`` identifies it in
    the audit log. ``allow_raw`` says whether its programs can get CAP_NET_RAW.
    """

    def __init__(self, name: str, control: socket.socket | None, *, allow_raw: bool) -> None:
        self.name = name
        self.allow_raw = allow_raw
        self._control = control
        self._adopted = control is not None
        self._runner: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._closed = False
        self._lock = threading.Lock()

    @classmethod
    def here(cls, *, allow_raw: bool = True) -> Self:
        """Return an executor in the namespaces of this process.

        The first run or `start` starts the runner, and it is started again if it dies. Without ``allow_raw``, no
        program gets CAP_NET_RAW, even if its `Sandbox` asks for it.
        """
        return cls("here", None, allow_raw=allow_raw)

    @classmethod
    def adopt(cls, name: str, control_fd: int, *, allow_raw: bool = True) -> Self:
        """Return an executor for the runner at the other end of ``control_fd``. The executor closes the descriptor.

        ``allow_raw`` says whether that runner was started with CAP_NET_RAW.
        """
        control = socket.socket(fileno=control_fd)
        control.setblocking(False)
        return cls(name, control, allow_raw=allow_raw)

    @property
    def runner_pid(self) -> int:
        """The PID of the runner that this process started, or -1 if there is none or it was adopted."""
        return -1 if self._runner is None else self._runner.pid

    @property
    def alive(self) -> bool:
        """Whether a run can be started. An adopted runner must be alive; any other can be started at any time."""
        with self._lock:
            return not self._closed and (not self._adopted or self._responds())

    def start(self) -> None:
        """Start the runner if it does not run. This blocks for 2 ms, and the runner is ready 15 ms later.

        Raises PlatformError if it cannot be started.
        """
        with self._lock:
            self._ensure()

    def open(self, path: str) -> RunConnection:
        """Start a run of ``path``: pass its descriptors to the runner and return the server's ends.

        The caller then sends the request.

        Raises PlatformError ``guard_unavailable`` if an adopted runner is gone, OSError if this process has no free
        descriptors, and BusyError if the runner's queue is full.
        """
        with contextlib.ExitStack() as near, contextlib.ExitStack() as far:
            run, runner_end = socket.socketpair()
            near.callback(run.close)
            far.callback(runner_end.close)
            fds = [runner_end.fileno()]
            ends = []
            for _ in range(2):
                end, fd = os.pipe()
                near.callback(os.close, end)
                far.callback(os.close, fd)
                ends.append(end)
                fds.append(fd)
            run.setblocking(False)
            with self._lock:
                self._send(fds, path)
            near.pop_all()
        return RunConnection(run, *ends)

    def close(self) -> None:
        """End all runs and the runner. It is safe to call this twice. Afterwards, nothing can be started."""
        with self._lock:
            self._closed = True
            self._drop()
        atexit.unregister(self.close)

    def _send(self, fds: list[int], path: str) -> None:
        """Send the descriptors of a run to the runner, and try once more if a runner of this process has died."""
        for attempt in (1, 2):
            control = self._ensure()
            try:
                control.sendmsg([b"r"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
            except BlockingIOError as error:
                raise BusyError(f"{path} was not started: the runner has too many requests waiting.") from error
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:
                    raise BusyError(f"{path} was not started: {error.strerror}.") from error
                if self._adopted:
                    raise self._gone() from error
                self._drop()
                if attempt == 2:
                    raise ToolError(f"{path} was not started: the runner ends right after its start.") from error
            else:
                return

    def _ensure(self) -> socket.socket:
        """Return the control socket of a runner that was alive a moment ago, and start one if necessary."""
        if self._closed:
            raise PlatformError(f"The executor {self.name!r} is closed.", code="guard_unavailable")
        if self._owner != os.getpid():  # after a fork, both processes would use the same runner
            self._runner, self._owner = None, os.getpid()
            if self._control is not None and not self._adopted:
                self._control.close()
                self._control = None
        if self._control is not None and self._responds():
            return self._control
        if self._adopted:
            raise self._gone()
        self._drop()
        return self._launch()

    def _launch(self) -> socket.socket:
        import tempfile

        ours, runner_end = socket.socketpair()
        with runner_end:
            try:
                # The runner gets nothing else from the server's environment.
                environment = {"LC_ALL": "C", "TMPDIR": tempfile.gettempdir()}
                self._runner = subprocess.Popen(
                    runner_argv(runner_end.fileno(), allow_raw=self.allow_raw),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(runner_end.fileno(),),
                    env=environment,
                    start_new_session=True,  # only the server handles a Ctrl-C at the terminal
                )
            except OSError as error:
                ours.close()
                hint = f"Make {sys.executable} and {_SOURCE} readable for this user."
                raise PlatformError(f"The runner cannot be started: {error}.", hint=hint) from error
        ours.setblocking(False)
        self._control = ours
        atexit.register(self.close)
        return ours

    def _responds(self) -> bool:
        """Return whether the other end of the control socket is open. The runner never sends anything on it."""
        try:
            return self._control is not None and self._control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _drop(self) -> None:
        """Close the control socket, which ends the runner, and wait for that."""
        if self._control is not None:
            self._control.close()
            self._control = None
        runner, self._runner = self._runner, None
        if runner is None or self._owner != os.getpid():
            return
        try:
            runner.wait(_CLOSE_SEC)
        except subprocess.TimeoutExpired:
            runner.kill()
            runner.wait()

    def _gone(self) -> PlatformError:
        return PlatformError(f"The runner of the executor {self.name!r} has ended.", code="guard_unavailable")


@functools.cache
def default_executor() -> Executor:
    """Return the executor for callers that have none. It allows raw sockets if this process has CAP_NET_RAW."""
    return Executor.here()
