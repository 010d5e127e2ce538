"""Nothing of a lab is left after its end, even after SIGKILL, and an error names a missing requirement."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.network import namespaces, programs
from tests.lab.network.handle import Lab
from tests.lab.network.programs import ROOT, LabError, find

HOLD_A_LAB = """
import time
from tests.lab.network.handle import Lab
print(Lab.start(fleet=0, databases=False).pid, flush=True)
time.sleep(60)
"""


def net_namespace(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return None


def processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def of_lab(pid: int) -> set[int]:
    """Return the processes in the process namespace of the lab, which must be up."""
    own = Path(f"/proc/{pid}/ns/pid").readlink()
    found = set()
    for candidate in processes():
        try:
            if Path(f"/proc/{candidate}/ns/pid").readlink() == own:
                found.add(candidate)
        except OSError:
            continue
    return found


def outside() -> tuple[str, str]:
    """Return the mounts and links of the machine, where a lab could leave something."""
    return Path("/proc/self/mounts").read_text(), programs.run([find("ip"), "-br", "link"])


def test_stopping_leaves_no_process_namespace_mount_or_file() -> None:
    before = outside()
    lab = Lab.start(fleet=10)
    members = of_lab(lab.pid)
    networks = {net_namespace(pid) for pid in members}
    assert len(members) > 30
    assert len(networks) > 20
    assert outside() == before  # it is not visible from outside while it is up
    # A killed PostgreSQL leaves System V and POSIX shared memory. In the lab, both end with the lab.
    assert Path(f"/proc/{lab.pid}/ns/ipc").readlink() != Path("/proc/self/ns/ipc").readlink()
    assert (Path(f"/proc/{lab.pid}/root") / "dev/shm").stat().st_dev != Path("/dev/shm").stat().st_dev
    start = time.monotonic()
    lab.stop()
    assert time.monotonic() - start < 5
    assert not members & set(processes())
    assert not networks & {net_namespace(pid) for pid in processes()}
    assert outside() == before
    assert lab.namespaces() == []
    lab.stop()


def test_a_lab_ends_with_the_process_that_started_it_even_after_kill_9() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD_A_LAB], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        members = of_lab(pid)
        assert len(members) > 20
        holder.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while members & set(processes()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not members & set(processes())


def test_a_program_run_in_the_lab_ends_with_its_time_limit() -> None:
    with Lab.start(fleet=0, databases=False) as lab:
        with pytest.raises(subprocess.TimeoutExpired):
            lab.run("scan", [find("sleep"), "61.5"], timeout=0.5)
        lines = [Path(f"/proc/{pid}/cmdline") for pid in processes()]
        assert not [line for line in lines if line.exists() and b"\x0061.5\x00" in line.read_bytes()]


def test_two_labs_run_at_the_same_time() -> None:
    with Lab.start(fleet=0, databases=False) as one, Lab.start(fleet=0, databases=False) as other:
        assert one.pid != other.pid
        for lab in (one, other):
            assert "10.77.1.250" in lab.run("scan", [find("ip"), "-br", "addr"]).stdout
        assert "pg1" not in one.namespaces()


def test_without_root_the_error_says_so() -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(LabError, match="needs root"):
            namespaces.check_machine()
    finally:
        os.seteuid(0)


def test_a_missing_program_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(LabError, match=r"the program no-such-daemon, .*system-packages\.sh test"):
        find("no-such-daemon")


def test_a_process_that_is_not_a_lab_is_not_killed() -> None:
    with pytest.raises(LabError, match="is not a lab"):
        Lab(truth=None, pid=os.getpid()).stop()  # type: ignore[arg-type] # the truth is not looked at
