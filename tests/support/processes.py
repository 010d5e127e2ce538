"""What tests of processes share: launchers by name, markers to find a process by, and waiting for its end."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from pathlib import Path

from mcp_server.execution.launcher import SYSTEM_PATH, Launcher, NamespaceLauncher, SupervisorLauncher, Tier
from mcp_server.execution.process import Exit, Limits, run_process

_numbers = itertools.count(1)


def binary(name: str) -> str:
    """The absolute path of a system program."""
    found = shutil.which(name, path=SYSTEM_PATH)
    assert found is not None, f"{name} is not installed"
    return found


def launcher(tier: str) -> Launcher:
    """The launcher of a tier, whatever tier this machine would choose."""
    if tier == Tier.SUPERVISOR:
        return SupervisorLauncher()
    programs = (binary(name) for name in ("setpriv", "prlimit", "unshare", "timeout"))
    setpriv, prlimit, unshare, timeout = programs
    return NamespaceLauncher(setpriv, prlimit, unshare, timeout, user=tier == Tier.USER_NAMESPACE)


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


def children() -> list[str]:
    """This process's own children, zombies among them, one line of /proc/PID/stat each."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == os.getpid():
                found.append(stat)
    return found


def detaching(mark: str) -> str:
    """A shell script that says "ready" and leaves a child, one in its own session and one forked twice, then waits."""
    return f"sleep {mark} & setsid sleep {mark} & (setsid setsid sleep {mark} &); sleep 0.1; echo ready; sleep {mark}"


async def run_script(script: str, limits: Limits, by: Launcher | None = None) -> tuple[Exit, bytes]:
    """Run a shell script and return its end and its output."""
    output = bytearray()
    ended = await run_process((binary("sh"), "-c", script), limits, output.extend, launcher=by)
    return ended, bytes(output)
