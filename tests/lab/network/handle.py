"""The object with which a test starts a lab, runs programs in it, and ends it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.lab.network.daemons import WORK
from tests.lab.network.launch import end, end_by_number, launch
from tests.lab.network.namespaces import NAMESPACES, check_machine
from tests.lab.network.programs import LabError, find, uncovered
from tests.lab.network.truth import RESOLVER, Truth, make_truth

# Runs in its own mount namespace. An empty /run hides the resolver daemons of the machine (nscd, systemd-resolved),
# which would be asked instead of the lab's name server; /etc/resolv.conf is often a link into /run.
_WITH_RESOLVER: Final = f"""
f=$(readlink -m /etc/resolv.conf) && mount -t tmpfs tmpfs /run || exit 125
case $f in /run/*) mkdir -p "${{f%/*}}" || exit 125 ;; esac
printf 'nameserver {RESOLVER}\\noptions timeout:1 attempts:1\\n' >/run/lab-resolv.conf || exit 125
case $f in
/run/*) cp /run/lab-resolv.conf "$f" ;;
*) mount --bind /run/lab-resolv.conf "$f" ;;
esac || exit 125
exec "$@"
"""


@dataclass(frozen=True)
class Lab:
    """A running lab. ``pid`` is its process 1; ``build`` has the seconds of each step of building."""

    truth: Truth
    pid: int
    build: dict[str, float] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @classmethod
    def start(cls, *, fleet: int = 2000, databases: bool = True, detached: bool = False) -> Self:
        """Build a lab and return when every daemon listens; raise LabError with what is missing or did not start.

        Unless ``detached``, the lab ends with the thread that started it, in whatever way the thread ends.
        """
        check_machine()
        truth = make_truth(fleet=fleet, databases=databases)
        process, report = launch(fleet, databases=databases, detached=detached)
        return cls(truth, report["pid"], {"total": report["seconds"], **report["steps"]}, process)

    @property
    def state(self) -> Path:
        """The folder of the lab's files, seen from outside: configurations, data folders and ``log/NAME.log``."""
        return Path(f"/proc/{self.pid}/root{WORK}")

    def namespaces(self) -> list[str]:
        """Return the names of the lab's network namespaces; empty if it is down."""
        folder = Path(f"/proc/{self.pid}/root{NAMESPACES}")
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def exec_argv(self, namespace: str, argv: Sequence[str]) -> list[str]:
        """Return the argv that runs ``argv`` in a network namespace of the lab ("scan" is that of the scanner).

        Standard input and output, environment, working directory and the files of the machine are those of the caller.
        Only /run is empty, and lab.internal names resolve. The started process becomes ``argv`` by exec, so it receives
        signals. Raises LabError if there is no such namespace.
        """
        if namespace not in self.namespaces():
            raise LabError(
                f"no namespace {namespace!r}; the lab has: {', '.join(self.namespaces()) or 'none, it is down'}"
            )
        target = f"/proc/{self.pid}/root{NAMESPACES}/{namespace}"
        unshare = [find("unshare"), "--mount", "--propagation", "private", "--"]
        return [find("nsenter"), f"--net={target}", "--", *unshare, "/bin/sh", "-c", _WITH_RESOLVER, "sh", *argv]

    def run(
        self, namespace: str, argv: Sequence[str], *, timeout: float = 60.0, text_in: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in a namespace to its end (``timeout`` in seconds), but not beyond the end of the calling
        thread.

        With ``check``, a status other than 0 raises LabError with the output of the program.
        """
        tied = [find("setpriv"), "--pdeathsig", "KILL", "--", *self.exec_argv(namespace, argv)]
        done = subprocess.run(
            tied, input=text_in, env=uncovered(), capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise LabError(f"{' '.join(argv)} in {namespace} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done

    def stop(self) -> None:
        """End the lab with one SIGKILL, and return when its last process is gone. It is safe to call this again."""
        if self._process is None:
            end_by_number(self.pid)
        else:
            end(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
