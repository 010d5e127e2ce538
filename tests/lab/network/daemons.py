"""Start the daemons of the lab and wait until they listen. Runs inside process 1 of the lab."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.lab.network.namespaces import enter
from tests.lab.network.programs import ROOT, find

WORK: Final = Path("/run/lab")
"""All files of a lab: a memory file system in the lab's own mount namespace, which ends with the lab."""

_COPIED: Final = ("named", "ntpd")
_LISTENING: Final = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}  # include/net/tcp_states.h


@dataclass(frozen=True, slots=True)
class Daemon:
    """A program that stays in the foreground.

    ``ports`` lists what it must listen on before it counts as started, as ``(transport, number)``. ``ready`` is a
    further condition for a program that listens before it is ready.
    """

    name: str
    namespace: str
    argv: Sequence[str]
    ports: Sequence[tuple[str, int]] = ()
    user: str | None = None
    ready: Callable[[], bool] = field(default=lambda: True)


def write(path: str, text: str, mode: int = 0o644) -> Path:
    """Write a file of the lab, below `WORK`."""
    file = WORK / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)
    return file


def copy_programs() -> None:
    """Copy the programs that AppArmor knows by their path, because it would deny them the files of the lab.

    Call this before there are threads: a file that a child of another thread still has open for writing cannot be
    executed.
    """
    for program in _COPIED:
        shutil.copy(find(program), folder("bin") / program)


def own_copy(program: str) -> str:
    """Return the path of a program's copy in the lab."""
    return str(WORK / "bin" / program)


def folder(path: str, owner: str | None = None) -> Path:
    """Create a folder below `WORK`, writable for ``owner`` if one is given."""
    made = WORK / path
    made.mkdir(parents=True, exist_ok=True)
    if owner:
        shutil.chown(made, owner, owner)
    return made


class Running:
    """The started daemons, each with its log under ``log/``."""

    def __init__(self) -> None:
        self._processes: dict[str, tuple[Daemon, subprocess.Popen[bytes]]] = {}
        folder("log")

    def start(self, daemon: Daemon) -> None:
        """Start one daemon in its namespace, as its user."""
        argv = list(daemon.argv)
        if daemon.user:
            argv = [find("setpriv"), f"--reuid={daemon.user}", f"--regid={daemon.user}", "--init-groups", "--", *argv]
        with (WORK / f"log/{daemon.name}").open("wb") as log:
            process = subprocess.Popen(
                enter(daemon.namespace, argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=WORK,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        self._processes[daemon.name] = (daemon, process)

    def wait_until_ready(self, seconds: float) -> dict[str, str]:
        """Wait until all daemons listen; return those that do not, by name, with the end of their log."""
        deadline = time.monotonic() + seconds
        pending = dict(self._processes)
        while pending and time.monotonic() < deadline:
            pending = {name: entry for name, entry in pending.items() if not _is_ready(*entry)}
            if any(process.poll() is not None for _, process in pending.values()):
                break
            if pending:
                time.sleep(0.02)
        return {name: self._why(name) for name in pending}

    def _why(self, name: str) -> str:
        daemon, process = self._processes[name]
        ended = process.poll()
        state = "is still starting" if ended is None else f"ended with {ended}"
        log = (WORK / f"log/{daemon.name}").read_text(errors="replace").strip()[-800:]
        return f"{daemon.argv[0]} in {daemon.namespace} {state}; its log: {log or '(empty)'}"


def _is_ready(daemon: Daemon, process: subprocess.Popen[bytes]) -> bool:
    return set(daemon.ports) <= listening(process.pid) and daemon.ready()


def listening(pid: int) -> set[tuple[str, int]]:
    """Return every bound ``(transport, port)`` in the network namespace of a process (/proc/PID/net of proc(5))."""
    found = set()
    for table, state in _LISTENING.items():
        for line in _lines(Path(f"/proc/{pid}/net/{table}")):
            fields = line.split()
            if fields[3] == state:
                found.add((table[:3], int(fields[1].rpartition(":")[2], 16)))
    return found


def _lines(table: Path) -> Iterable[str]:
    try:
        return table.read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError, OSError):
        return ()  # the process has just ended; the caller notices that itself
