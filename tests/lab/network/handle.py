"""What a test holds of a lab: start it, run programs in it, end it."""

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

# Runs in a mount namespace of its own. An empty /run hides the machine's resolver daemons (nscd, systemd-resolved),
# which would be asked in place of the lab's name server; /etc/resolv.conf is often a link into /run.
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
    """A lab that is up. ``pid`` is its process 1; ``build`` holds the seconds that each step of building took."""

    truth: Truth
    pid: int
    build: dict[str, float] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @classmethod
    def start(cls, *, fleet: int = 2000, databases: bool = True, detached: bool = False) -> Self:
        """Build a lab and return when every daemon listens. LabError names what is missing or what did not start.

        Unless ``detached``, the lab ends with the thread that started it, however that ends.
        """
        check_machine()
        truth = make_truth(fleet=fleet, databases=databases)
        process, report = launch(fleet, databases=databases, detached=detached)
        return cls(truth, report["pid"], {"total": report["seconds"], **report["steps"]}, process)

    @property
    def state(self) -> Path:
        """The lab's own files, seen from outside: configurations, data folders and ``log/NAME.log``."""
        return Path(f"/proc/{self.pid}/root{WORK}")

    def namespaces(self) -> list[str]:
        """The names of the lab's network namespaces; empty when it is down."""
        folder = Path(f"/proc/{self.pid}/root{NAMESPACES}")
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def exec_argv(self, namespace: str, argv: Sequence[str]) -> list[str]:
        """The argv that runs ``argv`` in one of the lab's network namespaces ("scan" is the scanner's).

        Standard input and output, the environment, the working directory and the machine's files are the caller's
        own; only /run is empty, and lab.internal names resolve. The process that is started becomes ``argv`` by
        exec, so signals reach it. LabError if there is no such namespace.
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
        """Run a program in a namespace to its end (``timeout`` in seconds), and never beyond the calling thread's.

        With ``check`` a status other than 0 is a LabError that shows what the program said.
        """
        tied = [find("setpriv"), "--pdeathsig", "KILL", "--", *self.exec_argv(namespace, argv)]
        done = subprocess.run(
            tied, input=text_in, env=uncovered(), capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise LabError(f"{' '.join(argv)} in {namespace} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done

    def stop(self) -> None:
        """End the lab with one SIGKILL; returns when its last process is gone. Safe to call again."""
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
