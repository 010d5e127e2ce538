"""A small parent process that ends a program and everything it left behind.

Run as a script, ``python -I -S supervisor.py SERVER_PID LIMIT=VALUE… -- ARGV…``, where process namespaces are
not to be had. Its start-up time is added to every run, so it imports nothing of this project, and neither typing,
contextlib nor signal, whose regular expressions and enumerations would double it.

On Linux it is a child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER): a descendant that calls setsid(2) or forks
twice is handed to it, so it finds and kills all of them, and the kernel sends it SIGHUP when the server dies.
Elsewhere it can only kill the program's session, and looks for a dead server once a second.

Signals it takes: SIGTERM is passed on to the program, SIGHUP kills everything at once. It exits as the program
did; death by signal N is 128 + N. A program that cannot be started is 127 where it is missing, else 126.
"""

from __future__ import annotations

import os
import resource
import sys
import time

TYPE_CHECKING = False  # type checkers know the name; importing it from typing costs as much as all the rest
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
else:
    import _signal as signal

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TAKEN = (signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM)
_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals the interpreter ignores; a program that inherited that would not end when its reader does."""
_RLIMITS = {
    "cpu": resource.RLIMIT_CPU,
    "as": resource.RLIMIT_AS,
    "nofile": resource.RLIMIT_NOFILE,
    "core": resource.RLIMIT_CORE,
    "fsize": resource.RLIMIT_FSIZE,
}


def _prctl(option: int, value: int) -> None:
    """Call prctl(2), which the standard library does not offer."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _children() -> list[int]:
    """The pids of this process's children now; empty where /proc does not list them."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as listing:  # noqa: PTH123 - pathlib's import costs a millisecond of every run
            return [int(pid) for pid in listing.read().split()]
    except OSError:
        return []


def _send(kill: Callable[[int, int], None], to: int, number: int) -> None:
    """Send a signal to a process or group that may have ended meanwhile."""
    try:  # noqa: SIM105 - contextlib's import costs two milliseconds of every run
        kill(to, number)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        pass


def _become(argv: list[str], rlimits: dict[str, int], *, die_with_parent: bool) -> None:
    """In the forked child: turn into the program, or leave with 126 or 127 and one line on stderr."""
    try:
        os.setsid()
        if die_with_parent:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for name, value in rlimits.items():
            try:
                resource.setrlimit(_RLIMITS[name], (value, value))
            except ValueError:
                if sys.platform == "linux":
                    raise
                # macOS refuses RLIMIT_AS; a missing bound is better there than a tool that never runs
        for number in (signal.SIGCHLD, *_BY_PYTHON):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TAKEN)
        os.execv(argv[0], argv)  # noqa: S606 - argv exec without a shell is the point
    except (OSError, ValueError) as error:
        os.write(2, f"supervisor: failed to execute {argv[0]}: {error}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _end_all(program: int) -> int | None:
    """Kill and reap until no descendant is left; the program's wait status if it was reaped here.

    Each round kills one generation: what a dead process leaves behind is handed to this one.
    """
    status = None
    while True:
        for pid in _children():
            _send(os.kill, pid, signal.SIGKILL)
        _send(os.killpg, program, signal.SIGKILL)
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == program:
            status = ended
        elif pid == 0:
            time.sleep(0.001)


def _watch(program: int, server: int) -> int | None:
    """Wait until the program ends, the server dies or SIGHUP asks for the end; the wait status if it ended."""
    while True:
        taken = signal.sigwait(_TAKEN)
        if taken == signal.SIGTERM:
            _send(os.kill, program, signal.SIGTERM)
        elif taken == signal.SIGCHLD:
            # the program is not reaped yet, so there is a child to wait for
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == program:
                    return ended[1]
        elif taken == signal.SIGHUP or os.getppid() != server:
            return None


def main(words: list[str]) -> int:
    """Run the program the words name under its limits and return the exit code to leave with."""
    split = words.index("--")
    server, argv = int(words[0]), words[split + 1 :]
    rlimits = {name: int(value) for name, _, value in (word.partition("=") for word in words[1:split])}
    linux = sys.platform == "linux"

    signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # an ignored SIGCHLD, inherited, would lose the exit status
    if linux:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)
    else:
        signal.setitimer(signal.ITIMER_REAL, 1, 1)
    if os.getppid() != server:  # it died before the kernel was asked to tell
        return 128 + signal.SIGHUP

    program = os.fork()
    if program == 0:
        _become(argv, rlimits, die_with_parent=linux)
    status = _watch(program, server)
    late = _end_all(program)
    status = late if status is None else status
    code = os.waitstatus_to_exitcode(status) if status is not None else -signal.SIGKILL
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # nothing is buffered, and tearing the interpreter down takes time
