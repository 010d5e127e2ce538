"""The parent of one program: starts it confined, forwards SIGTERM, and ends it with all its descendants.

The runner forks a supervisor for each run. If the run has a PID namespace, the supervisor is process 1 in it, and the
kernel knows all descendants. Otherwise, on Linux, the supervisor is a child subreaper (prctl(2)): descendants that
called setsid(2) or forked twice become its children. On other systems it can end only the session of the program.

The server sends on the run's socket: four bytes with the length of the request, the request (`RunRequest`), and then
``t`` to have SIGTERM sent. At the end of file, the supervisor ends the run: the server has closed the socket or ended.

The supervisor sends back one line, after the last process has ended and the scratch folder is removed:
``exit STATUS PID`` with the wait status, ``failed ERRNO PATH`` if the program could not be started, or ``lost`` if the
runner died during the run.
"""

from __future__ import annotations

import os
import select
import sys
import time

from mcp_server.sandbox import confine, scratch

TYPE_CHECKING = False  # importing it from typing would double the start time of the runner
if TYPE_CHECKING:
    import signal
    from _socket import socket
else:
    import _signal as signal

MAX_REQUEST_BYTES = 4 << 20
"""More than the kernel accepts as arguments of a program."""
_REAP_SEC = 1.0
"""Seconds between two reapings of orphans while a program runs."""
_POLL_SEC = 0.02
"""Seconds between two checks for the end of the program if there is no pidfd."""


class RunRequest:
    """A request to run a program. Its words each end with a NUL byte.

    The words are ``LIMIT=N`` for each resource limit, ``seconds=N``, ``raw=0`` or ``raw=1``, ``read=PATH`` for each
    readable path, ``--``, and the argv of the program.
    """

    def __init__(self, body: bytes) -> None:
        words = [os.fsdecode(word) for word in body.split(b"\0")[:-1]]
        split = words.index("--")
        self.argv = words[split + 1 :]
        self.limits: dict[str, int] = {}
        self.reads: list[str] = []
        self.seconds, self.raw = 0.0, False
        for name, _, value in (word.partition("=") for word in words[:split]):
            if name == "read":
                self.reads.append(value)
            elif name == "seconds":
                self.seconds = float(value)
            elif name == "raw":
                self.raw = value == "1"
            else:
                self.limits[name] = int(value)


class Supervisor:
    """Supervises one run.

    ``run`` is the run's socket. ``life`` is at the end of file if the runner is dead. ``namespace`` says whether this
    process is process 1 of a PID namespace. ``parent`` is the folder for the scratch folder.
    """

    def __init__(self, run: socket, stdout: int, stderr: int, *, life: int, namespace: bool, parent: str) -> None:
        self._run, self._stdout, self._stderr = run, stdout, stderr
        self._life, self._namespace, self._parent = life, namespace, parent
        self._program = -1
        self._pid = -1
        self._status: int | None = None
        self._lost = False

    def carry_out(self, *, allow_raw: bool) -> None:
        """Receive the request, run the program to its end, and report it."""
        body = self._receive()
        if body is None:
            return
        request = RunRequest(body)
        try:
            folder = scratch.make(self._parent)
        except OSError as error:
            self._report(f"failed {error.errno} {self._parent}")
            return
        try:
            report = self._start(request, folder, raw=request.raw and allow_raw) or self._wait(request.seconds)
        finally:
            scratch.remove(folder)
        self._report(report)

    def _receive(self) -> bytes | None:
        """Return the request, or None if the server closes the socket before it is complete."""
        head = self._read_exactly(4)
        length = int.from_bytes(head, "big") if head else 0
        return self._read_exactly(length) if 0 < length <= MAX_REQUEST_BYTES else None

    def _read_exactly(self, count: int) -> bytes | None:
        data = bytearray()
        while len(data) < count:
            more = self._run.recv(count - len(data))
            if not more:
                return None
            data += more
        return bytes(data)

    def _report(self, line: str) -> None:
        try:
            self._run.send(os.fsencode(line) + b"\n")
        except OSError:  # the server is gone
            return

    def _start(self, request: RunRequest, folder: str, *, raw: bool) -> str:
        """Fork and wait for the child's execve(2). Return an empty string, or the report of the failure."""
        reading, writing = os.pipe()
        supervisor = os.getpid()
        try:
            self._program = os.fork()
        except OSError as error:
            return f"failed {error.errno} {request.argv[0]}"
        if self._program == 0:
            try:
                self._set_up_child(supervisor, writing)
                confine.exec_program(request.argv, folder, limits=request.limits, reads=request.reads, raw=raw)
            except OSError as error:
                os.write(writing, os.fsencode(f"{error.errno} {error.filename or request.argv[0]}"))
            except BaseException:  # noqa: BLE001 - the child must not continue as a second supervisor
                sys.excepthook(*sys.exc_info())
                os.write(writing, b"0 ")
            finally:
                os._exit(127)
        for fd in (writing, self._stdout, self._stderr):
            os.close(fd)
        message = b""
        while more := os.read(reading, 4096):
            message += more
        os.close(reading)
        pid, _, failure = message.partition(b"\n")
        self._pid = int(pid or -1)
        if not failure:
            return ""
        self._end_all()
        return f"failed {os.fsdecode(failure)}"

    def _set_up_child(self, supervisor: int, writing: int) -> None:
        """Set up the forked child: its own session, its three descriptors, its signals.

        It writes its PID in the PID namespace of /proc to ``writing``.
        """
        os.setsid()
        linux = sys.platform == "linux"
        if linux:
            from mcp_server.sandbox import syscalls

            syscalls.die_with_parent(signal.SIGKILL)
            if os.getppid() != supervisor:
                os._exit(127)
        os.write(writing, (os.readlink("/proc/self") if linux else str(os.getpid())).encode() + b"\n")  # noqa: PTH115 - importing pathlib is slow
        null = os.open("/dev/null", os.O_RDONLY)
        for fd, target in ((null, 0), (self._stdout, 1), (self._stderr, 2)):
            os.dup2(fd, target)
        confine.default_signals()

    def _wait(self, seconds: float) -> str:
        """Wait until the program ends, or its time is over, or the server or the runner ends it. Return the report."""
        ends = time.monotonic() + seconds
        poll = select.poll()
        try:
            poll.register(os.pidfd_open(self._program), select.POLLIN)
            step = _REAP_SEC
        except (AttributeError, OSError):  # not Linux, or a kernel before 5.3
            step = _POLL_SEC
        poll.register(self._run, select.POLLIN)
        poll.register(self._life, select.POLLIN)
        while self._status is None and (left := ends - time.monotonic()) > 0:
            for fd, _ in poll.poll(min(step, left) * 1000):
                if fd == self._life:
                    self._lost, ends = True, 0
                elif fd == self._run.fileno() and not self._obey():
                    ends = 0
            self._reap()
        self._end_all()
        if self._lost:
            return "lost"
        return f"exit {signal.SIGKILL if self._status is None else self._status} {self._pid}"

    def _obey(self) -> bool:
        """Handle a message of the server. Return False at the end of file."""
        try:
            message = self._run.recv(64)
        except OSError:
            return False
        if b"t" in message and self._status is None:
            _kill(self._program, signal.SIGTERM)
        return bool(message)

    def _reap(self) -> None:
        """Reap the children that have ended, and keep the status of the program."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._program:
                self._status = status

    def _end_all(self) -> None:
        """Kill and reap until there are no descendants."""
        while True:
            if self._namespace:
                _kill(-1, signal.SIGKILL)  # all other processes of the namespace at the same time
            else:
                for pid in children():
                    _kill(pid, signal.SIGKILL)
                # If the program was reaped, its number may belong to another process by now.
                if self._status is None or sys.platform != "linux":
                    _kill(-self._program, signal.SIGKILL)
            try:
                pid, status = os.waitpid(-1, 0 if self._namespace else os.WNOHANG)
            except ChildProcessError:
                return
            if pid == self._program:
                self._status = status
            elif pid == 0:
                time.sleep(0.001)


def children() -> list[int]:
    """Return the PIDs of this process's children, or an empty list if /proc does not list them."""
    try:
        fd = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY)
    except OSError:
        return []
    try:
        listed = b""
        while more := os.read(fd, 65536):
            listed += more
    finally:
        os.close(fd)
    return [int(pid) for pid in listed.split()]


def _kill(pid: int, number: int) -> None:
    """Send a signal as kill(2) does. The process may have ended already."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):  # macOS returns EPERM for a group of zombies
        return
