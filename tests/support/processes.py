"""What tests of processes share: places of every tier, markers to find a process by, and waiting for its end."""

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
"""What the scripts of tests need: other programs, a look at themselves, and an endless file."""

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
"""The road of the kernel tier: root becomes somebody without privilege, or with CAP_NET_RAW alone, and then serves."""

WITHOUT_LINUX = "import sys; sys.platform = 'darwin'; "

EXECUTORS = ("root", "nobody", "nobody-raw")
"""One place for each tier that Linux has: PID namespace, user namespace, supervisor."""


@contextlib.contextmanager
def executor(kind: str) -> Iterator[Executor]:
    """A place by its runner: ``root``, ``nobody``, ``nobody-raw`` (with CAP_NET_RAW), ``elsewhere`` (not Linux)."""
    if kind == "root":
        assert os.geteuid() == 0
        here = Executor.here()
        try:
            yield here
        finally:
            here.close()
        return
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    source = str(Path(runner_argv.__code__.co_filename).parents[2])
    if kind == "elsewhere":
        words = [word if "import sys" not in word else WITHOUT_LINUX + word for word in runner_argv(fd)]
    else:
        raw = "raw" if kind == "nobody-raw" else "no-raw"
        words = [sys.executable, "-I", "-S", "-c", AS_NOBODY, str(fd), raw, "allow", source]
    with theirs:
        runner = subprocess.Popen(words, pass_fds=(fd,), stdin=subprocess.DEVNULL, env={"TMPDIR": "/tmp"})
    there = Executor.at(kind, ours.detach())
    _adopted[there] = runner.pid
    try:
        yield there
    finally:
        there.close()
        assert runner.wait(10) in {0, -signal.SIGKILL}


def runner_of(at: Executor) -> int:
    """The pid of the runner that starts the programs of a place."""
    return _adopted.get(at, at.runner_pid)


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """A folder every user can read: pytest's own are closed to others."""
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
    """A number of seconds to sleep for that no other process on the machine sleeps for."""
    return f"{3600 + os.getpid() % 1000}.{os.getpid()}{time.monotonic_ns() % 10**6}{next(_numbers)}"


def alive(mark: str) -> list[int]:
    """The pids, zombies left out, of sleepers with the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it ended while we looked
                continue
            if words[0].endswith(b"sleep") and words[1:2] == [mark.encode()]:
                found.append(int(entry.name))
    return found


def until(mark: str, count: int, seconds: float = 5) -> int:
    """Wait until that many sleepers with the marker are alive; how many there are when the time is up."""
    end = time.monotonic() + seconds
    while (found := len(alive(mark))) != count and time.monotonic() < end:
        time.sleep(0.01)
    return found


def children(parent: int) -> list[str]:
    """The children of a process, zombies among them, one line of /proc/PID/stat each."""
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
    """Wait until the runner of a place has no child, not even a zombie."""
    end = time.monotonic() + seconds
    parent = runner_of(at)
    if at.name == "nobody":  # the runner itself is process 1 of a namespace, and that one its parent
        parent = int(children(parent)[0].split()[0])
    while children(parent) and time.monotonic() < end:
        time.sleep(0.01)
    return not children(parent)


def detaching(mark: str) -> str:
    """A shell script that says "ready" and leaves a child, one in its own session and one forked twice, then waits."""
    return f"sleep {mark} & setsid sleep {mark} & (setsid setsid sleep {mark} &); sleep 0.1; echo ready; sleep {mark}"


async def run_script(
    script: str, limits: ProcessLimits, at: Executor | None = None, sandbox: Sandbox = SHELL
) -> tuple[Exit, bytes]:
    """Run a shell script and return its end and its output."""
    output = bytearray()
    ended = await run_process((binary("sh"), "-c", script), limits, output.extend, executor=at, sandbox=sandbox)
    return ended, bytes(output)
