"""What a test holds of a lab: start it, run programs in it, end it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.lab.network.daemons import WORK
from tests.lab.network.namespaces import NAMESPACES, UNSHARE, check_machine
from tests.lab.network.programs import ROOT, LabError, find
from tests.lab.network.truth import RESOLVER, Truth, make_truth

DETACHED_LOG: Final = ROOT / ".cache/lab.log"
_BUILD_SECONDS: Final = 90.0

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
    """A lab that is up. ``pid`` is its process 1, ``build`` the seconds each step of building took."""

    truth: Truth
    pid: int
    build: dict[str, float]
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @classmethod
    def start(cls, *, fleet: int = 2000, databases: bool = True, detached: bool = False) -> Self:
        """Build a lab and return when every daemon listens. LabError names what is missing or what did not start.

        Unless ``detached``, the lab ends with the thread that started it, however that ends.
        """
        check_machine()
        truth = make_truth(fleet=fleet, databases=databases)
        tie = [] if detached else [find("setpriv"), "--pdeathsig", "KILL", "--"]
        # A detached lab must not keep the terminal's or a pipe's other end waiting.
        errors = os.open(DETACHED_LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if detached else None
        module = [sys.executable, "-m", "tests.lab.network.build", str(fleet), str(int(databases))]
        process = subprocess.Popen(
            [*tie, find("unshare"), *UNSHARE[1:], *module],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if not key.startswith(("COV", "PYTEST"))},
            start_new_session=True,
        )
        if errors is not None:
            os.close(errors)
        try:
            report = _read_report(process)
        except BaseException:
            _end(process)
            raise
        if report["error"] or report["failed"]:
            _end(process)
            raise LabError(_explain(report))
        return cls(truth, report["pid"], {"total": report["seconds"], **report["steps"]}, process)

    @property
    def state(self) -> Path:
        """The lab's own files, seen from outside: configurations, data folders and ``log/NAME.log``."""
        return Path(f"/proc/{self.pid}/root{WORK}")

    def exec_argv(self, namespace: str, argv: Sequence[str]) -> list[str]:
        """The argv that runs ``argv`` in one of the lab's network namespaces ("scan" is the scanner's).

        Standard input and output, the environment, the working directory and the machine's files are the caller's
        own, only /run is empty; lab.internal names resolve. LabError if there is no such namespace.
        """
        target = Path(f"/proc/{self.pid}/root{NAMESPACES}") / namespace
        if not target.exists():
            raise LabError(
                f"the lab has no namespace {namespace!r}, or is down; there are {', '.join(self.namespaces())}"
            )
        unshare = [find("unshare"), "--mount", "--propagation", "private", "--"]
        return [find("nsenter"), f"--net={target}", "--", *unshare, "/bin/sh", "-c", _WITH_RESOLVER, "sh", *argv]

    def run(
        self, namespace: str, argv: Sequence[str], *, timeout: float = 60.0, text_in: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in a namespace to its end (seconds: ``timeout``), and never beyond the calling thread's.

        With ``check`` a status other than 0 is a LabError that shows what the program said.
        """
        tied = [find("setpriv"), "--pdeathsig", "KILL", "--", *self.exec_argv(namespace, argv)]
        done = subprocess.run(tied, input=text_in, capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode:
            raise LabError(f"{' '.join(argv)} in {namespace} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done

    def namespaces(self) -> list[str]:
        """The names of the lab's network namespaces; empty when it is down."""
        folder = Path(f"/proc/{self.pid}/root{NAMESPACES}")
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def stop(self) -> None:
        """End the lab with one SIGKILL; returns when its last process is gone. Safe to call again."""
        if self._process is not None:
            _end(self._process, self.pid)
        else:
            kill_init(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def kill_init(pid: int, seconds: float = 20.0) -> None:
    """Kill a lab's process 1 and wait until the kernel has cleared its namespaces away."""
    # Only a process 1 of its own process namespace counts: a number may have passed to somebody else.
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return
    nested = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
    if len(nested) < 3 or nested[-1] != "1":
        raise LabError(f"process {pid} is not a lab")
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            raise LabError(f"the lab's process {pid} does not end")
        time.sleep(0.01)


def _end(process: subprocess.Popen[bytes], init: int | None = None) -> None:
    """Kill the lab and collect the unshare that carries it."""
    if process.poll() is None:
        # unshare ends after its child, and that after every process in its namespace: one wait is a wait for all.
        try:
            os.kill(init if init is not None else _only_child(process.pid), signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        process.wait(timeout=20)
    if process.stdout:
        process.stdout.close()


def _only_child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid


def _read_report(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    if process.stdout is None:
        raise LabError("the lab's report has no pipe")
    ready, _, _ = select.select([process.stdout], [], [], _BUILD_SECONDS)
    line = process.stdout.readline() if ready else b""
    if not line:
        raise LabError(
            "the lab did not report in time" if not ready else "the lab's process 1 died; see its traceback above"
        )
    report: dict[str, Any] = json.loads(line)
    return report


def _explain(report: dict[str, Any]) -> str:
    lines = [f"the lab could not be built: {report['error']}"] if report["error"] else ["daemons did not start:"]
    return "\n".join([*lines, *(f"  {name}: {why}" for name, why in report["failed"].items())])
