"""The process that starts programs for a server: small, single-threaded, resident, forked for each run.

A fork of it costs a third of a millisecond whatever the server's size, and what a run needs is imported once. It is
started once for each place where programs run (`place.py`), as ``python -I -S -c … FD`` or by `serve_control` in a
process that was forked already. It imports nothing that takes time: no json, no signal, no socket.

On its control socket each message is one byte with three descriptors (SCM_RIGHTS): the run's own socket, and the
write ends of its standard output and standard error. The end of file ends all runs and then the runner. Everything
else of a run travels on the run's socket, between the server and the run's supervisor (`supervisor.py`).

The tier is chosen at the start: a PID namespace for each run where this process has CAP_SYS_ADMIN; the same inside
a user namespace of its own where that can be had and CAP_NET_RAW, which would no longer count for the network
outside, is not given up by it; else subreapers; outside of Linux the program's session only.
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

TYPE_CHECKING = False  # importing the name from typing costs as much as all the rest
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
"""How long the supervisors get to end their runs after the server is gone."""


def main() -> None:
    """``FD raw|no-raw`` serves the control socket ``FD``; ``probe raw|no-raw`` prints what a runner could do.

    That is the tier, the ABI of Landlock, and 1 where system calls can be filtered.
    """
    what, raw = sys.argv[1], sys.argv[2] == "raw"
    if what == "probe":
        tier = _tier(allow_raw=raw)
        print(tier, *((landlock.abi(), int(bool(seccomp.code()))) if _LINUX else (0, 0)))  # noqa: T201 - this is the answer
        return
    _serve(int(what), allow_raw=raw)


def serve_control(control: socket, *, allow_raw: bool) -> NoReturn:
    """Be the runner for ``control``, in a process forked for it, until the other end closes it; then exit.

    For a caller that cannot execute the interpreter again as the user it has become. It may be called after fork(2)
    without exec where the forking process has a single thread: it closes every descriptor but ``control`` and standard
    error, takes over all signals, leaves user and groups as they are, and never returns or runs exit handlers. What
    the forking process had in its memory stays in that of the runner; it is gone from the programs', which are
    executed.
    """
    try:
        _serve(control.fileno(), allow_raw=allow_raw)
    except BaseException:  # noqa: BLE001 - the caller's own code must not go on in this process
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
            allow_raw = False  # it would be a right over the networks of that namespace, of which there are none
        syscalls.bound_bounding_set(1 << syscalls.CAP_NET_RAW if allow_raw else 0)
        if tier == SUPERVISOR:
            syscalls.become_subreaper()
        for raw in (True, False):
            seccomp.code(raw=raw)
    gc.collect()
    gc.disable()
    gc.freeze()
    Runner(control, tier, allow_raw=allow_raw).run()
    os._exit(0)


def _settle(control: int) -> int:
    """Leave behind what came from whoever started this: descriptors, folder, signals, mask. The socket's new number."""
    control = fcntl.fcntl(control, fcntl.F_DUPFD_CLOEXEC, 3)
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - pathlib's import costs as much as all the rest
        if int(name) not in {2, control}:
            try:
                os.close(int(name))
            except OSError:  # that of the listing itself
                continue
    while (null := os.open("/dev/null", os.O_RDWR)) <= 2:  # 0 and 1, and standard error where it was closed
        os.set_inheritable(null, True)
    os.close(null)
    os.chdir("/")
    os.umask(0o077)
    for number in range(1, 32):
        if number not in {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN if number in confine.IGNORED else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return control


class Runner:
    """The loop over the control socket."""

    def __init__(self, control: int, tier: str, *, allow_raw: bool) -> None:
        self._control = _socket.socket(fileno=control)
        self._namespaces = tier in {PID_NAMESPACE, USER_NAMESPACE}
        self._subreaper = tier == SUPERVISOR
        self._own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY) if self._namespaces else -1
        self._allow_raw = allow_raw
        self._parent = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - the folder made in it has a random name and mode 0700
        self._life, self._death = os.pipe()
        self._woken, self._wake = os.pipe()
        self._supervisors: set[int] = set()

    def run(self) -> None:
        """Start runs until the control socket ends; return when they are all over."""
        os.set_blocking(self._wake, False)
        os.set_blocking(self._woken, False)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._sweep()
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._woken:
                    os.read(self._woken, 4096)
                    self._reap()
                elif not self._take():
                    self._finish()
                    return

    def _sweep(self) -> None:
        """Remove what was left by runs of others, beside the work."""
        pid = os.fork()
        if pid == 0:
            try:
                scratch.remove_stale(self._parent)
            finally:
                os._exit(0)
        self._supervisors.add(pid)

    def _take(self) -> bool:
        """Start one run; False at the end of the control socket."""
        room = _socket.CMSG_SPACE(4 * struct.calcsize("i"))
        try:
            data, ancillary, _, _ = self._control.recvmsg(1, room, getattr(_socket, "MSG_CMSG_CLOEXEC", 0))
        except ConnectionError:
            return False
        fds: list[int] = []
        for level, kind, content in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                fds += struct.unpack(f"{len(content) // 4}i", content[: len(content) // 4 * 4])
        try:
            if len(fds) == 3:
                self._start(fds)
            elif fds:  # the table of descriptors is full
                _refuse(fds[0], errno.EMFILE)
        finally:
            for fd in fds:
                os.close(fd)
        return bool(data)

    def _start(self, fds: list[int]) -> None:
        """Fork the supervisor of a run, as process 1 of a namespace where there is one."""
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
            one = supervisor.Supervisor(
                run, fds[1], fds[2], life=self._life, namespace=self._namespaces, parent=self._parent
            )
            one.carry_out(allow_raw=self._allow_raw)
        except BaseException:  # noqa: BLE001 - a child that went on would be a second runner
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(0)

    def _fork(self) -> int:
        if not self._namespaces:
            return os.fork()
        from mcp_server.sandbox import syscalls

        # The namespace is for the next child alone: a second one could not be made without going back in between.
        syscalls.call("unshare", syscalls.CLONE_NEWPID)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                syscalls.call("setns", self._own_namespace, syscalls.CLONE_NEWPID)
        return pid

    def _reap(self) -> None:
        """Take the status of supervisors that ended, and end what one that was killed has left to us."""
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
        """Have the supervisors end their runs, and wait for them."""
        os.close(self._death)
        ends = time.monotonic() + _LAST_SEC
        while time.monotonic() < ends:
            self._reap()
            if not self._supervisors and not (self._subreaper and supervisor.children()):
                return
            time.sleep(0.002)


def _refuse(run: int, number: int) -> None:
    """Say on a run's socket that it was not started."""
    told = _socket.socket(fileno=os.dup(run))
    try:
        told.send(f"failed {number} \n".encode())
    except OSError:
        return
    finally:
        told.close()


def _tier(*, allow_raw: bool) -> str:
    """The strongest tier that works here, found by trying."""
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
    """Whether ``attempt`` succeeds in a child: kernels, containers and AppArmor refuse in different places."""
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
    """Make a PID namespace, a process in it, and go back, as for a run."""
    from mcp_server.sandbox import syscalls

    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    syscalls.call("unshare", syscalls.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    syscalls.call("setns", own, syscalls.CLONE_NEWPID)
    os.waitpid(pid, 0)


def _try_user_namespace() -> None:
    """Make a user namespace and, as process 1 of its PID namespace, one for a run."""
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
    """Go on as process 1 of a user and PID namespace; the process called remains and ends with it.

    From there a PID namespace for each run can be made and left again, which is a right over the own namespace.
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
