"""Helpers for tests of processes: executors of every tier, markers to find a process by, and waiting for its end."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from mcp_server.sandbox.confine import SYSTEM_PATH
from mcp_server.sandbox.executor import Executor, runner_argv
from mcp_server.sandbox.process import Exit, ProcessLimits, run_process
from mcp_server.sandbox.sandbox import Sandbox

_numbers = itertools.count(1)
_adopted: weakref.WeakKeyDictionary[Executor, int] = weakref.WeakKeyDictionary()

SHELL = Sandbox(reads=("/usr/bin", "/proc", "/dev/zero"), raw_sockets=True)
"""The sandbox for the shell scripts of tests. They need other programs, /proc, and an endless file."""

AS_NOBODY = """
import os, socket, sys
sys.path.append(sys.argv[4])
from mcp_server.sandbox import runner, syscalls
raw = sys.argv[2] == "raw"
os.setgroups([])
os.setresgid(65534, 65534, 65534)
syscalls.prctl(8, 1)  # PR_SET_KEEPCAPS
os.setresuid(65534, 65534, 65534)
syscalls.keep_capabilities(1 << 13 if raw else 0)
runner.serve_control(socket.socket(fileno=int(sys.argv[1])), allow_raw=sys.argv[3] == "allow")
"""
"""Root becomes an unprivileged user, optionally with CAP_NET_RAW, and then serves a runner, as in the kernel tier."""

WITHOUT_LINUX = "import sys; sys.platform = 'darwin'; "

EXECUTORS = ("root", "nobody", "nobody-raw")
"""One kind of executor for each tier on Linux: PID namespace, user namespace, supervisor."""


@contextlib.contextmanager
def executor(kind: str) -> Iterator[Executor]:
    """An executor with a runner of one kind: an item of EXECUTORS, or ``elsewhere`` for one that is not on Linux."""
    if kind == "root":
        assert os.geteuid() == 0, "this executor needs root"
        here = Executor.here()
        try:
            yield here
        finally:
            here.close()
        return
    ours, runner_end = socket.socketpair()
    fd = runner_end.fileno()
    source = str(Path(runner_argv.__code__.co_filename).parents[2])
    if kind == "elsewhere":
        words = [word if "import sys" not in word else WITHOUT_LINUX + word for word in runner_argv(fd)]
    else:
        raw = "raw" if kind == "nobody-raw" else "no-raw"
        words = [sys.executable, "-I", "-S", "-c", AS_NOBODY, str(fd), raw, "allow", source]
    with runner_end:
        runner = subprocess.Popen(words, pass_fds=(fd,), stdin=subprocess.DEVNULL, env={"TMPDIR": "/tmp"})
    there = Executor.adopt(kind, ours.detach())
    _adopted[there] = runner.pid
    try:
        yield there
    finally:
        there.close()
        code = runner.wait(10)
        assert code in {0, -signal.SIGKILL}, f"expected the runner to end normally or by SIGKILL, found {code}"


def runner_of(at: Executor) -> int:
    """The PID of the runner of an executor."""
    return _adopted.get(at, at.runner_pid)


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """A temporary folder that every user can read. The folders of pytest are private."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def binary(name: str) -> str:
    """The absolute path of a system program."""
    found = shutil.which(name, path=SYSTEM_PATH)
    assert found is not None, f"{name} is not installed"
    return found


def marker() -> str:
    """A sleep duration that no other process on this machine uses."""
    return f"{3600 + os.getpid() % 1000}.{os.getpid()}{time.monotonic_ns() % 10**6}{next(_numbers)}"


def alive(mark: str) -> list[int]:
    """The PIDs of ``sleep`` processes with the marker, without zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended in the meantime
                continue
            if words[0].endswith(b"sleep") and words[1:2] == [mark.encode()]:
                found.append(int(entry.name))
    return found


def until(mark: str, count: int, seconds: float = 5) -> int:
    """Wait until ``count`` sleep processes with the marker are alive. Return how many there are at the end."""
    end = time.monotonic() + seconds
    while (found := len(alive(mark))) != count and time.monotonic() < end:
        time.sleep(0.01)
    return found


def children(parent: int) -> list[str]:
    """The lines of /proc/PID/stat for the children of a process, including zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == parent:
                found.append(stat)
    return found


def idle(at: Executor, seconds: float = 2) -> bool:
    """Wait until the runner of an executor has no children and no zombies, and return whether that is so."""
    end = time.monotonic() + seconds
    parent = runner_of(at)
    if at.name == "nobody":  # the runner is process 1 of a PID namespace, and this is its parent
        parent = int(children(parent)[0].split()[0])
    while children(parent) and time.monotonic() < end:
        time.sleep(0.01)
    return not children(parent)


def detaching(mark: str) -> str:
    """A shell script with a child, a child in its own session and a twice forked one. It prints "ready" and waits."""
    return f"sleep {mark} & setsid sleep {mark} & (setsid setsid sleep {mark} &); sleep 0.1; echo ready; sleep {mark}"


async def run_script(
    script: str, limits: ProcessLimits, at: Executor | None = None, sandbox: Sandbox = SHELL
) -> tuple[Exit, bytes]:
    """Run a shell script and return how it ended and its output."""
    output = bytearray()
    ended = await run_process((binary("sh"), "-c", script), limits, output.extend, executor=at, sandbox=sandbox)
    return ended, bytes(output)
