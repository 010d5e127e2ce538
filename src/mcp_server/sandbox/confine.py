"""What a forked child does on its way to becoming the program: limits, files, capabilities, then execve(2).

Runs in the runner's children only. Imports nothing that takes time, and raises OSError for whatever is refused: no
program starts with less confinement than the kernel can give.
"""

from __future__ import annotations

import os
import resource
import sys

from mcp_server.sandbox import landlock, seccomp

TYPE_CHECKING = False  # importing the name from typing costs the runner as much as all the rest
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator, Mapping
    from typing import NoReturn
else:
    import _signal as signal

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH every tool gets; the server's own is not handed on."""
ENVIRONMENT = {"PATH": SYSTEM_PATH, "LC_ALL": "C"}

LIBRARIES = (
    *("/lib", "/lib32", "/lib64", "/libx32"),
    *("/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32", "/usr/local/lib"),
)
"""The dynamic linker, executed by the kernel itself, and the shared libraries."""
_FILES = (
    ("/etc/ld.so.cache", landlock.READ_FILE),
    ("/dev/null", landlock.DEVICE),
    ("/dev/urandom", landlock.READ_FILE),
    ("/dev/random", landlock.READ_FILE),
    ("/proc/self/net", landlock.READ),  # nmap reads dev and if_inet6; /proc/net leads here
)
RLIMITS = {
    "cpu": resource.RLIMIT_CPU,
    "as": resource.RLIMIT_AS,
    "nofile": resource.RLIMIT_NOFILE,
    "core": resource.RLIMIT_CORE,
    "fsize": resource.RLIMIT_FSIZE,
}
MORE_TASKS = 512
"""How many processes and threads a user may have more than the whole host had when a program started."""
NICENESS = 10
"""How far programs stand back behind the server (nice(2)): many scans at once must not make it slow to answer."""
_INTERPRETERS = 4
"""How many interpreters of interpreters the kernel follows (fs/exec.c)."""
_LINE_BYTES = 256
"""How much of a file the kernel reads to find its interpreter (BINPRM_BUF_SIZE)."""


def become(argv: list[str], folder: str, *, limits: Mapping[str, int], reads: list[str], raw: bool) -> NoReturn:
    """Turn this process, whose descriptors are in place already, into the program.

    ``folder`` is its working directory and all it may write to. ``raw`` leaves it CAP_NET_RAW, if it is held.
    """
    os.chdir(folder)
    os.nice(NICENESS)
    if sys.platform == "linux":
        from mcp_server.sandbox import syscalls

        _bound_tasks()
        # The runner has set no_new_privs and emptied the bounding set of all but CAP_NET_RAW when it started.
        if not raw:
            syscalls.drop_from_bounding_set(syscalls.CAP_NET_RAW)
        held = syscalls.effective_capabilities()
        syscalls.keep_capabilities(held & (1 << syscalls.CAP_NET_RAW) if raw else 0)
        version = landlock.abi()
        if version:
            landlock.restrict(list(rules(argv[0], folder, reads)), version)
        seccomp.restrict(seccomp.code(raw=raw))
    for name, value in limits.items():
        _limit(RLIMITS[name], value)
    os.execve(argv[0], argv, ENVIRONMENT)  # noqa: S606 - argv exec without a shell is the point


def rules(path: str, folder: str, reads: list[str]) -> Iterator[tuple[str, int]]:
    """The files a program may open, with the rights to them: what `landlock.restrict` takes."""
    for program in programs(path):
        yield program, landlock.READ_FILE | landlock.EXECUTE
    for library in LIBRARIES:
        yield library, landlock.RUN
    yield from _FILES
    for readable in reads:
        yield readable, landlock.RUN
    yield folder, landlock.OWN


def programs(path: str) -> list[str]:
    """The file and, where it is a script, its interpreter, also where env(1) looks for that on the PATH."""
    found = [path]
    while len(found) <= _INTERPRETERS and (words := _shebang(found[-1])):
        found.append(words[0])
        if words[0].endswith("/env"):
            named = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), "")
            candidates = (f"{entry}/{named}" for entry in SYSTEM_PATH.split(":"))
            found += next(([each] for each in candidates if named and os.access(each, os.X_OK)), [])
    return found


def _shebang(path: str) -> list[str]:
    """The words after ``#!``; none where the file is no script or cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return []
    try:
        head = os.read(fd, _LINE_BYTES)
    except OSError:
        return []
    finally:
        os.close(fd)
    return os.fsdecode(head.split(b"\n", 1)[0][2:]).split() if head.startswith(b"#!") else []


def _limit(which: int, value: int) -> None:
    """Set both limits. None is set above the hard one there is: raising it needs a privilege."""
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(which, (value, value))
    except ValueError:
        if sys.platform == "linux":
            raise
        # macOS refuses RLIMIT_AS; a missing bound is better there than a tool that never runs


def _bound_tasks() -> None:
    """Bound a program that forks without end.

    The limit counts all tasks of a user (in its user namespace), so it lies above all that there are: others that this
    user runs do not keep a program from starting a few of its own. The kernel does not hold it against root.
    """
    try:
        fd = os.open("/proc/loadavg", os.O_RDONLY)
    except OSError:
        return
    try:
        there = os.read(fd, 128).split()[3].partition(b"/")[2]  # proc_loadavg(5): running/all tasks of the host
    finally:
        os.close(fd)
    _limit(resource.RLIMIT_NPROC, int(there) + MORE_TASKS)


def default_signals() -> None:
    """Undo what the runner ignores: a program would inherit that."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_DFL)


IGNORED = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM),
)
"""Signals that a runner and a supervisor ignore: what is asked of them comes by their sockets."""
