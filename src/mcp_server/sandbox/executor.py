"""A place where programs are started: the server's end of a runner (`runner.py`), here or in another namespace."""

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
    """The words that start a runner on the control socket ``fd``, which it inherits under that number.

    The other end goes to `Place.at`. The user it runs as must be able to read the interpreter and this package;
    where that is not so, `runner.serve_control` does the same in a forked process. The runner makes the folders of
    its runs in $TMPDIR, or else in /tmp.
    """
    return _argv(str(fd), allow_raw=allow_raw)


def probe_argv(*, allow_raw: bool = True) -> tuple[str, ...]:
    """The words that print what a runner started the same way could do: its tier, and the ABI of Landlock."""
    return _argv("probe", allow_raw=allow_raw)


def _argv(what: str, *, allow_raw: bool) -> tuple[str, ...]:
    words = ("-I", "-S", "-c", _BOOT.format(source=_SOURCE), what, "raw" if allow_raw else "no-raw")
    return (sys.executable, *words)


class Channel(NamedTuple):
    """The server's ends of one run: its socket, and where its standard output and standard error are read."""

    run: socket.socket
    stdout: int
    stderr: int

    def close(self) -> None:
        """Let go of all three; for a run under way that is its end."""
        self.run.close()
        os.close(self.stdout)
        os.close(self.stderr)


class Executor:
    """Where programs are started. Safe to use from several threads and event loops; closed by `close` or at exit."""

    def __init__(self, name: str, control: socket.socket | None, *, allow_raw: bool) -> None:
        """Use `here` or `at`."""
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
        """Where this process is. The runner is started by the first run or by `start`, and again if it dies.

        Without ``allow_raw`` no program gets CAP_NET_RAW, whatever its `Sandbox` says.
        """
        return cls("here", None, allow_raw=allow_raw)

    @classmethod
    def at(cls, name: str, control_fd: int, *, allow_raw: bool = True) -> Self:
        """Where the runner on the other end of ``control_fd`` is; the descriptor belongs to the place from now on.

        ``allow_raw`` says whether that runner was started with CAP_NET_RAW.
        """
        control = socket.socket(fileno=control_fd)
        control.setblocking(False)
        return cls(name, control, allow_raw=allow_raw)

    @property
    def runner_pid(self) -> int:
        """The pid of the runner this process started; -1 where there is none, or it was adopted."""
        return -1 if self._runner is None else self._runner.pid

    @property
    def alive(self) -> bool:
        """Whether a run can be started: an adopted runner is there, or one can be started at any time."""
        with self._lock:
            return not self._closed and (not self._adopted or self._responds())

    def start(self) -> None:
        """Start the runner where it is not running. Blocks for two milliseconds; the runner is ready 15 later.

        Raises PlatformError where it cannot be started.
        """
        with self._lock:
            self._ensure()

    def open(self, path: str) -> Channel:
        """Hand the runner the far ends of a new run of ``path``. Its request is still to be sent.

        Raises PlatformError ``guard_unavailable`` where an adopted runner is gone, OSError where this process is out
        of descriptors, BusyError where the runner does not keep up.
        """
        with contextlib.ExitStack() as near, contextlib.ExitStack() as far:
            run, theirs = socket.socketpair()
            near.callback(run.close)
            far.callback(theirs.close)
            fds = [theirs.fileno()]
            ends = []
            for _ in range(2):
                end, fd = os.pipe()
                near.callback(os.close, end)
                far.callback(os.close, fd)
                ends.append(end)
                fds.append(fd)
            run.setblocking(False)
            with self._lock:
                self._hand_over(fds, path)
            near.pop_all()
        return Channel(run, *ends)

    def close(self) -> None:
        """End all runs and the runner. Safe to call twice; afterwards nothing can be started here."""
        with self._lock:
            self._closed = True
            self._drop()
        atexit.unregister(self.close)

    def _hand_over(self, fds: list[int], path: str) -> None:
        for attempt in (1, 2):
            control = self._ensure()
            try:
                control.sendmsg([b"r"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
            except BlockingIOError as error:
                raise BusyError(f"{path} was not started: the runner has too much to do") from error
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:
                    raise BusyError(f"{path} was not started: {error.strerror}") from error
                if self._adopted:
                    raise self._gone() from error
                self._drop()
                if attempt == 2:
                    raise ToolError(f"{path} was not started: the runner does not stay alive") from error
            else:
                return

    def _ensure(self) -> socket.socket:
        """The control socket of a runner that was alive a moment ago."""
        if self._closed:
            raise PlatformError(f"nothing is started any more {self._where}", code="guard_unavailable")
        if self._owner != os.getpid():  # after a fork both would talk to one runner
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

        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # Nothing of the server's environment but where temporary files belong.
                environment = {"LC_ALL": "C", "TMPDIR": tempfile.gettempdir()}
                self._runner = subprocess.Popen(
                    runner_argv(theirs.fileno(), allow_raw=self.allow_raw),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env=environment,
                    start_new_session=True,  # a Ctrl-C at the terminal is the server's affair
                )
            except OSError as error:
                ours.close()
                hint = f"Make {sys.executable} and {_SOURCE} readable for this user."
                raise PlatformError(f"the runner cannot be started: {error}", hint=hint) from error
        ours.setblocking(False)
        self._control = ours
        atexit.register(self.close)
        return ours

    def _responds(self) -> bool:
        """Whether the other end of the control socket is open; nothing is ever sent from there."""
        try:
            return self._control is not None and self._control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _drop(self) -> None:
        """Close the control socket and take the status of the runner, which ends with it."""
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

    @property
    def _where(self) -> str:
        return f"at {self.name}" if self._adopted else self.name

    def _gone(self) -> PlatformError:
        return PlatformError(f"the runner at {self.name} is gone", code="guard_unavailable")


@functools.cache
def default_executor() -> Executor:
    """The place of a process that was given none: here, with raw sockets where the process has the right to them."""
    return Executor.here()
