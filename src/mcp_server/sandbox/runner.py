"""The process that starts programs for a server. It is small, has one thread, and forks for each run.

Forking it takes 0.3 ms, whatever the size of the server, and it imports once what every run needs. An `Executor` starts
it as ``python -I -S -c … FD``, or a process that was already forked becomes the runner with `serve_control`. It imports
nothing that is slow to import, such as json, signal or socket.

Each message on the control socket is one byte with three descriptors (SCM_RIGHTS): the run's socket, and the write ends
of its standard output and standard error. At the end of file, the runner ends all runs and then itself. The server
exchanges everything else with the run's supervisor (`supervisor.py`) on the run's socket.

The runner chooses the tier of `containment.Tier` at its start. With CAP_SYS_ADMIN, each run gets a PID namespace.
Without it, the runner enters its own user namespace and makes PID namespaces there. It does not do this if it must keep
CAP_NET_RAW, because in a user namespace that capability has no effect on the network outside. If there are no PID
namespaces, supervisors are subreapers. On systems other than Linux, only the session of a program is ended.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import gc
import os
import select
import struct
import sys
import time

from mcp_server.sandbox import confine, landlock, scratch, seccomp, supervisor

TYPE_CHECKING = False  # importing it from typing would double the start time of the runner
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from socket import socket
    from typing import NoReturn
else:
    import _signal as signal

PID_NAMESPACE = "pid-namespace"
USER_NAMESPACE = "user-namespace"
SUPERVISOR = "supervisor"
SESSION = "session"

_LINUX = sys.platform == "linux"
_LAST_SEC = 5.0
"""Seconds that supervisors have to end their runs after the server has closed the control socket."""


def main() -> None:
    """Run the command of `executor.runner_argv` or `executor.probe_argv`.

    ``FD raw|no-raw`` serves the control socket FD. ``probe raw|no-raw`` prints the tier, the Landlock ABI, and 1 if
    system calls can be filtered.
    """
    what, raw = sys.argv[1], sys.argv[2] == "raw"
    if what == "probe":
        tier = _tier(allow_raw=raw)
        print(tier, *((landlock.abi(), int(bool(seccomp.program_filter()))) if _LINUX else (0, 0)))  # noqa: T201 - read by `containment`
        return
    _serve(int(what), allow_raw=raw)


def serve_control(control: socket, *, allow_raw: bool) -> NoReturn:
    """Become the runner for ``control`` in a forked process, and exit when the other end is closed.

    This is for a process that cannot execute the interpreter again as its present user. The process that forked it must
    have had one thread. This closes every descriptor except ``control`` and standard error, sets all signal handlers,
    keeps user and groups, and never returns or runs exit handlers. The runner keeps the memory of the process that
    forked it. The programs do not, because they are executed.
    """
    try:
        _serve(control.fileno(), allow_raw=allow_raw)
    except BaseException:  # noqa: BLE001 - the caller's code must not continue in this process
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


def _serve(control: int, *, allow_raw: bool) -> NoReturn:
    control = _settle(control)
    tier = _tier(allow_raw=allow_raw)
    if _LINUX:
        from mcp_server.sandbox import syscalls

        syscalls.no_new_privileges()
        if tier == USER_NAMESPACE:
            _move_into_user_namespace()
            # CAP_NET_RAW would apply only to network namespaces of that user namespace, and it has none.
            allow_raw = False
        syscalls.bound_bounding_set(1 << syscalls.CAP_NET_RAW if allow_raw else 0)
        if tier == SUPERVISOR:
            syscalls.become_subreaper()
        for raw in (True, False):
            seccomp.program_filter(raw=raw)
    gc.collect()
    gc.disable()
    gc.freeze()
    Runner(control, tier, allow_raw=allow_raw).run()
    os._exit(0)


def _settle(control: int) -> int:
    """Reset the state that the process inherited: descriptors, working directory, umask, signals.

    Return the new number of the control socket.
    """
    control = fcntl.fcntl(control, fcntl.F_DUPFD_CLOEXEC, 3)
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - importing pathlib is slow
        if int(name) not in {2, control}:
            try:
                os.close(int(name))
            except OSError:  # the descriptor of the listing itself
                continue
    while (null := os.open("/dev/null", os.O_RDWR)) <= 2:  # 0 and 1, and standard error if it was closed
        os.set_inheritable(null, True)
    os.close(null)
    os.chdir("/")
    os.umask(0o077)
    for number in range(1, 32):
        if number not in {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN if number in confine.IGNORED_SIGNALS else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return control


class Runner:
    """Reads the control socket and forks a supervisor for each run."""

    def __init__(self, control: int, tier: str, *, allow_raw: bool) -> None:
        self._control = _socket.socket(fileno=control)
        self._namespaces = tier in {PID_NAMESPACE, USER_NAMESPACE}
        self._subreaper = tier == SUPERVISOR
        self._own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY) if self._namespaces else -1
        self._allow_raw = allow_raw
        self._parent = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - scratch folders in it have random names and mode 0700
        self._life, self._death = os.pipe()
        self._woken, self._wake = os.pipe()
        self._supervisors: set[int] = set()

    def run(self) -> None:
        """Start runs until the control socket is closed, and return when all runs have ended."""
        os.set_blocking(self._wake, False)
        os.set_blocking(self._woken, False)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._remove_stale_folders()
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._woken:
                    os.read(self._woken, 4096)
                    self._reap()
                elif not self._receive():
                    self._finish()
                    return

    def _remove_stale_folders(self) -> None:
        """Remove stale scratch folders in a forked process."""
        pid = os.fork()
        if pid == 0:
            try:
                scratch.remove_stale(self._parent)
            finally:
                os._exit(0)
        self._supervisors.add(pid)

    def _receive(self) -> bool:
        """Receive a message and start its run. Return False at the end of file."""
        space = _socket.CMSG_SPACE(4 * struct.calcsize("i"))
        try:
            data, ancillary, _, _ = self._control.recvmsg(1, space, getattr(_socket, "MSG_CMSG_CLOEXEC", 0))
        except ConnectionError:
            return False
        fds: list[int] = []
        for level, kind, content in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                fds += struct.unpack(f"{len(content) // 4}i", content[: len(content) // 4 * 4])
        try:
            if len(fds) == 3:
                self._start(fds)
            elif fds:  # this process has no free descriptors
                _refuse(fds[0], errno.EMFILE)
        finally:
            for fd in fds:
                os.close(fd)
        return bool(data)

    def _start(self, fds: list[int]) -> None:
        """Fork the supervisor of a run, as process 1 of a PID namespace if the tier has one."""
        try:
            pid = self._fork()
        except OSError as error:
            _refuse(fds[0], error.errno or 0)
            return
        if pid:
            self._supervisors.add(pid)
            return
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for fd in (self._death, self._woken, self._wake, self._own_namespace):
                if fd >= 0:
                    os.close(fd)
            self._control.close()
            if self._subreaper:
                from mcp_server.sandbox import syscalls

                syscalls.become_subreaper()
            run = _socket.socket(fileno=fds[0])
            supervisor.Supervisor(
                run, fds[1], fds[2], life=self._life, namespace=self._namespaces, parent=self._parent
            ).carry_out(allow_raw=self._allow_raw)
        except BaseException:  # noqa: BLE001 - the child must not continue as a second runner
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(0)

    def _fork(self) -> int:
        if not self._namespaces:
            return os.fork()
        from mcp_server.sandbox import syscalls

        # unshare(2) applies to the next child. Before another namespace is made, this process must return to its own.
        syscalls.call("unshare", syscalls.CLONE_NEWPID)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                syscalls.call("setns", self._own_namespace, syscalls.CLONE_NEWPID)
        return pid

    def _reap(self) -> None:
        """Reap supervisors that have ended, and kill the descendants of one that was killed."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                break
            self._supervisors.discard(pid)
        if self._subreaper:
            for pid in supervisor.children():
                if pid not in self._supervisors:
                    os.kill(pid, signal.SIGKILL)

    def _finish(self) -> None:
        """Tell the supervisors to end their runs, and wait for them."""
        os.close(self._death)
        ends = time.monotonic() + _LAST_SEC
        while time.monotonic() < ends:
            self._reap()
            if not self._supervisors and not (self._subreaper and supervisor.children()):
                return
            time.sleep(0.002)


def _refuse(run: int, number: int) -> None:
    """Report on a run's socket that the run was not started."""
    server = _socket.socket(fileno=os.dup(run))
    try:
        server.send(f"failed {number} \n".encode())
    except OSError:
        return
    finally:
        server.close()


def _tier(*, allow_raw: bool) -> str:
    """Return the strongest tier that works here, found by trying."""
    if not _LINUX:
        return SESSION
    from mcp_server.sandbox import syscalls

    held = syscalls.effective_capabilities()
    if held >> syscalls.CAP_SYS_ADMIN & 1 and _works(_try_pid_namespace):
        return PID_NAMESPACE
    if not (allow_raw and held >> syscalls.CAP_NET_RAW & 1) and _works(_try_user_namespace):
        return USER_NAMESPACE
    return SUPERVISOR


def _works(attempt: Callable[[], None]) -> bool:
    """Return whether ``attempt`` succeeds in a child. Kernels, containers and AppArmor can each refuse a step."""
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
            os._exit(0)
        except OSError:
            pass
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _try_pid_namespace() -> None:
    """Make a PID namespace and a process in it, and return to this process's own namespace, as for a run."""
    from mcp_server.sandbox import syscalls

    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    syscalls.call("unshare", syscalls.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    syscalls.call("setns", own, syscalls.CLONE_NEWPID)
    os.waitpid(pid, 0)


def _try_user_namespace() -> None:
    """Make a user namespace and, in process 1 of its PID namespace, a PID namespace for a run."""
    from mcp_server.sandbox import syscalls

    syscalls.enter_user_namespace()
    pid = os.fork()
    if pid == 0:
        try:
            _try_pid_namespace()
            os._exit(0)
        except OSError:
            pass
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise PermissionError


def _move_into_user_namespace() -> None:
    """Continue in process 1 of a new user and PID namespace. This process waits for it and exits with its status.

    Making a PID namespace for each run, and leaving it again, needs CAP_SYS_ADMIN in the user namespace of the process.
    """
    from mcp_server.sandbox import syscalls

    syscalls.enter_user_namespace()
    pid = os.fork()
    if pid:
        for name in os.listdir("/dev/fd"):  # noqa: PTH208 - as above
            try:
                os.close(int(name))
            except OSError:
                continue
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
    syscalls.die_with_parent(signal.SIGKILL)
