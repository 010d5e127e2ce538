"""Confines a forked child and replaces it with the program: resource limits, file access, capabilities, execve(2).

This runs in children of the runner only. It imports nothing that is slow to import. It raises OSError for every failed
step, so that no program starts with less confinement than the kernel can provide.
"""

from __future__ import annotations

import os
import resource
import sys

from mcp_server.sandbox import landlock, seccomp

TYPE_CHECKING = False  # importing it from typing would double the start time of the runner
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator, Mapping
    from typing import NoReturn
else:
    import _signal as signal

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH of every program. Programs do not get the server's PATH."""
ENVIRONMENT = {"PATH": SYSTEM_PATH, "LC_ALL": "C"}

LIBRARIES = (
    *("/lib", "/lib32", "/lib64", "/libx32"),
    *("/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32", "/usr/local/lib"),
)
"""Folders of the shared libraries and of the dynamic linker, which the kernel itself executes."""
_FILES = (
    ("/etc/ld.so.cache", landlock.READ_FILE),
    ("/dev/null", landlock.DEVICE),
    ("/dev/urandom", landlock.READ_FILE),
    ("/dev/random", landlock.READ_FILE),
    ("/proc/self/net", landlock.READ),  # nmap reads dev and if_inet6; /proc/net is a link to this folder
)
RLIMITS = {
    "cpu": resource.RLIMIT_CPU,
    "as": resource.RLIMIT_AS,
    "nofile": resource.RLIMIT_NOFILE,
    "core": resource.RLIMIT_CORE,
    "fsize": resource.RLIMIT_FSIZE,
}
MORE_TASKS = 512
"""Processes and threads that a user may have in addition to all that the host had when the program started."""
NICENESS = 10
"""Added to the niceness of programs (nice(2)), so that many concurrent scans do not slow the server down."""
_INTERPRETERS = 4
"""The number of nested interpreters that the kernel follows (fs/exec.c)."""
_LINE_BYTES = 256
"""Bytes of a file that the kernel reads to find its interpreter (BINPRM_BUF_SIZE)."""

IGNORED_SIGNALS = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM),
)
"""Signals that the runner and the supervisors ignore. They take requests over their sockets only."""


def exec_program(argv: list[str], folder: str, *, limits: Mapping[str, int], reads: list[str], raw: bool) -> NoReturn:
    """Confine this process and execute the program in it; the three standard descriptors are already set up.

    ``folder`` becomes the working directory. It is the only folder that the program can write to. ``raw`` keeps
    CAP_NET_RAW if this process holds it.
    """
    os.chdir(folder)
    os.nice(NICENESS)
    if sys.platform == "linux":
        from mcp_server.sandbox import syscalls

        _limit_tasks()
        # At its start, the runner set no_new_privs and removed all but CAP_NET_RAW from the bounding set.
        if not raw:
            syscalls.drop_from_bounding_set(syscalls.CAP_NET_RAW)
        held = syscalls.effective_capabilities()
        syscalls.keep_capabilities(held & (1 << syscalls.CAP_NET_RAW) if raw else 0)
        version = landlock.abi()
        if version:
            landlock.restrict(list(file_rules(argv[0], folder, reads)), version)
        seccomp.restrict(seccomp.program_filter(raw=raw))
    for name, value in limits.items():
        _set_limit(RLIMITS[name], value)
    os.execve(argv[0], argv, ENVIRONMENT)  # noqa: S606 - execve takes an argv and starts no shell


def file_rules(path: str, folder: str, reads: list[str]) -> Iterator[tuple[str, int]]:
    """Yield the files that a program may open and the rights to each, in the form that `landlock.restrict` takes."""
    for program in executed_files(path):
        yield program, landlock.READ_FILE | landlock.EXECUTE
    for library in LIBRARIES:
        yield library, landlock.RUN
    yield from _FILES
    for readable in reads:
        yield readable, landlock.RUN
    yield folder, landlock.OWN


def executed_files(path: str) -> list[str]:
    """Return the file at ``path`` and, if it is a script, its interpreters.

    This includes the interpreter that env(1) looks for in PATH.
    """
    found = [path]
    while len(found) <= _INTERPRETERS and (words := _shebang(found[-1])):
        found.append(words[0])
        if words[0].endswith("/env"):
            named = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), "")
            candidates = (f"{entry}/{named}" for entry in SYSTEM_PATH.split(":"))
            found += next(([each] for each in candidates if named and os.access(each, os.X_OK)), [])
    return found


def _shebang(path: str) -> list[str]:
    """Return the words after ``#!``, or no words if the file is not a script or cannot be read."""
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


def _set_limit(which: int, value: int) -> None:
    """Set the soft and the hard limit, but not above the present hard limit: raising that needs a privilege."""
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(which, (value, value))
    except ValueError:
        if sys.platform == "linux":
            raise
        # macOS refuses RLIMIT_AS. On macOS, programs run without that limit.


def _limit_tasks() -> None:
    """Limit the number of tasks, so that a program cannot fork without end.

    The kernel counts all tasks of the user in its user namespace. So the limit is above the number of tasks that exist
    now, and other processes of the user do not prevent the program from starting a few. Root is not limited.
    """
    try:
        fd = os.open("/proc/loadavg", os.O_RDONLY)
    except OSError:
        return
    try:
        existing = os.read(fd, 128).split()[3].partition(b"/")[2]  # proc_loadavg(5): running/all tasks of the host
    finally:
        os.close(fd)
    _set_limit(resource.RLIMIT_NPROC, int(existing) + MORE_TASKS)


def default_signals() -> None:
    """Reset the signals that the runner ignores. A program would inherit that they are ignored."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
