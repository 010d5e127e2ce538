"""The parent of one program: starts it confined, passes on SIGTERM, and ends it with everything it left behind.

Forked from the runner for each run. Where it has a PID namespace it is process 1 there and the kernel knows all its
descendants; elsewhere on Linux it is a child subreaper (prctl(2)), so that one that called setsid(2) or forked twice
is handed to it; on other systems it can end the program's session only.

The run's socket carries, from the server: four bytes of length and that many of words, each ended by a NUL byte
(`Request`); then ``t`` to send SIGTERM. The end of file ends everything: the server wants it, or is gone. Back comes
one line, when nothing is left and the scratch folder is removed: ``exit STATUS PID`` with the wait status, ``failed
ERRNO PATH`` where the program could not be started, or ``lost`` where the runner died meanwhile.
"""

from __future__ import annotations

import os
import select
import sys
import time

from mcp_server.sandbox import confine, scratch

TYPE_CHECKING = False  # importing the name from typing costs the runner as much as all the rest
if TYPE_CHECKING:
    import signal
    from _socket import socket
else:
    import _signal as signal

MAX_REQUEST_BYTES = 4 << 20
"""Above the kernel's own bound on a program's words."""
_LOOK_SEC = 1.0
"""How often orphans are reaped while a program runs, and its end is looked for where there is no pidfd."""
_POLL_SEC = 0.02


class RunRequest:
    """What is to be run: ``LIMIT=N``…, ``seconds=N``, ``raw=0|1``, ``read=PATH``…, ``--``, and the program's words."""

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
    """One run. ``life`` reads end of file when the runner is dead; ``namespace`` says that this is process 1 of one."""

    def __init__(self, run: socket, stdout: int, stderr: int, *, life: int, namespace: bool, parent: str) -> None:
        self._run, self._stdout, self._stderr = run, stdout, stderr
        self._life, self._namespace, self._parent = life, namespace, parent
        self._program = -1
        self._pid = -1
        self._status: int | None = None
        self._lost = False

    def carry_out(self, *, allow_raw: bool) -> None:
        """Take the request and see it through."""
        body = self._receive()
        if body is None:
            return
        request = RunRequest(body)
        request.raw = request.raw and allow_raw
        try:
            folder = scratch.make(self._parent)
        except OSError as error:
            self._say(f"failed {error.errno} {self._parent}")
            return
        try:
            said = self._start(request, folder) or self._see_through(request.seconds)
        finally:
            scratch.remove(folder)
        self._say(said)

    def _receive(self) -> bytes | None:
        """The request, or None where the server is gone before all of it is here."""
        head = self._exactly(4)
        length = int.from_bytes(head, "big") if head else 0
        return self._exactly(length) if 0 < length <= MAX_REQUEST_BYTES else None

    def _exactly(self, count: int) -> bytes | None:
        data = bytearray()
        while len(data) < count:
            more = self._run.recv(count - len(data))
            if not more:
                return None
            data += more
        return bytes(data)

    def _say(self, line: str) -> None:
        try:
            self._run.send(os.fsencode(line) + b"\n")
        except OSError:  # nobody is left to be told
            return

    def _start(self, request: RunRequest, folder: str) -> str:
        """Fork and wait for the execve(2) of the child: empty, or what has to be said of its failure."""
        heard, told = os.pipe()
        own = os.getpid()
        try:
            self._program = os.fork()
        except OSError as error:
            return f"failed {error.errno} {request.argv[0]}"
        if self._program == 0:
            try:
                self._into(own, told)
                confine.become(request.argv, folder, limits=request.limits, reads=request.reads, raw=request.raw)
            except OSError as error:
                os.write(told, os.fsencode(f"{error.errno} {error.filename or request.argv[0]}"))
            except BaseException:  # noqa: BLE001 - a child that went on would be a second supervisor
                sys.excepthook(*sys.exc_info())
                os.write(told, b"0 ")
            finally:
                os._exit(127)
        for fd in (told, self._stdout, self._stderr):
            os.close(fd)
        words = b""
        while more := os.read(heard, 4096):
            words += more
        os.close(heard)
        pid, _, refusal = words.partition(b"\n")
        self._pid = int(pid or -1)
        if not refusal:
            return ""
        self._end_all()
        return f"failed {os.fsdecode(refusal)}"

    def _into(self, supervisor: int, told: int) -> None:
        """In the child: a session of its own, its three descriptors, its signals, and its pid as /proc counts."""
        os.setsid()
        linux = sys.platform == "linux"
        if linux:
            from mcp_server.sandbox import syscalls

            syscalls.die_with_parent(signal.SIGKILL)
            if os.getppid() != supervisor:
                os._exit(127)
        os.write(told, (os.readlink("/proc/self") if linux else str(os.getpid())).encode() + b"\n")  # noqa: PTH115 - pathlib's import takes time
        null = os.open("/dev/null", os.O_RDONLY)
        for fd, target in ((null, 0), (self._stdout, 1), (self._stderr, 2)):
            os.dup2(fd, target)
        confine.default_signals()

    def _see_through(self, seconds: float) -> str:
        """Wait for the end of the program or of whoever wants it; then nothing of it is left."""
        ends = time.monotonic() + seconds
        poll = select.poll()
        try:
            watch = os.pidfd_open(self._program)
            poll.register(watch, select.POLLIN)
            step = _LOOK_SEC
        except (AttributeError, OSError):  # not Linux, a kernel before 5.3
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
        """Do what the server asks for; False at the end of what it has to say."""
        try:
            asked = self._run.recv(64)
        except OSError:
            return False
        if b"t" in asked and self._status is None:
            _send(self._program, signal.SIGTERM)
        return bool(asked)

    def _reap(self) -> None:
        """Take the status of what has ended."""
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
        """Kill and reap until no descendant is left."""
        while True:
            if self._namespace:
                _send(-1, signal.SIGKILL)  # everything in the namespace but this process, at one moment
            else:
                for pid in children():
                    _send(pid, signal.SIGKILL)
                if self._status is None or sys.platform != "linux":  # else its number may be another's by now
                    _send(-self._program, signal.SIGKILL)
            try:
                pid, status = os.waitpid(-1, 0 if self._namespace else os.WNOHANG)
            except ChildProcessError:
                return
            if pid == self._program:
                self._status = status
            elif pid == 0:
                time.sleep(0.001)


def children() -> list[int]:
    """The pids of this process's children now; empty where /proc does not list them."""
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


def _send(to: int, number: int) -> None:
    """Send a signal to a process or, below zero, to a group; it may have ended meanwhile."""
    try:
        os.kill(to, number)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        return
