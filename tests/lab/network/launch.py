"""Start and end the process tree of a lab, from outside."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final

from tests.lab.network.namespaces import UNSHARE
from tests.lab.network.programs import ROOT, LabError, find

_BUILD_SECONDS: Final = 90.0
_END_SECONDS: Final = 20.0


def launch(fleet: int, *, databases: bool, detached: bool) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """Start a lab and wait for its report; return the unshare(1) process that runs it, and the report.

    Raises LabError if the lab could not be built or a daemon did not start; then no process is left.
    """
    tie = [] if detached else [find("setpriv"), "--pdeathsig", "KILL", "--"]
    build = [sys.executable, "-m", "tests.lab.network.build", str(fleet), str(int(databases))]
    with TemporaryFile() as complaints:
        process = subprocess.Popen(
            [*tie, find("unshare"), *UNSHARE[1:], *build],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,  # a detached lab must not keep the caller's standard error open
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if not key.startswith(("COV", "PYTEST"))},
            start_new_session=True,
        )
        try:
            report = _read_report(process, complaints)
        except BaseException:
            end(process)
            raise
    if report["error"] or report["failed"]:
        end(process)
        reasons = [f"{name}: {why}" for name, why in report["failed"].items()]
        raise LabError("\n  ".join([f"the lab could not be built: {report['error'] or 'daemons failed'}", *reasons]))
    return process, report


def _read_report(process: subprocess.Popen[bytes], complaints: IO[bytes]) -> dict[str, Any]:
    if process.stdout is None:
        raise LabError("the lab's report has no pipe")
    with process.stdout as pipe:
        ready, _, _ = select.select([pipe], [], [], _BUILD_SECONDS)
        line = pipe.readline() if ready else b""
    if not line:
        complaints.seek(0)
        why = "died" if ready else f"did not report within {_BUILD_SECONDS:.0f} s"
        raise LabError(f"the lab's process 1 {why}: {complaints.read().decode(errors='replace').strip()[-3000:]}")
    report: dict[str, Any] = json.loads(line)
    return report


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a lab that this process started and wait until nothing is left of it. It is safe to call this again."""
    if process.poll() is not None:
        return
    # unshare ends after its child, which ends after every process in its namespace: one wait covers all.
    child = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child[0]) if child else process.pid, signal.SIGKILL)
    process.wait(timeout=_END_SECONDS)


def end_by_number(pid: int) -> None:
    """Kill a lab of another process, by the id of its process 1, and wait until nothing is left of it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return
    # The id may have been reused: only the first process of a nested namespace is a lab.
    numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
    if len(numbers) < 2 or numbers[-1] != "1":
        raise LabError(f"process {pid} is not a lab")
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _END_SECONDS
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            raise LabError(f"the lab's process {pid} does not end")
        time.sleep(0.01)
