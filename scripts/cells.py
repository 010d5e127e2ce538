"""Run one cell of the compatibility matrix: an installed server, used by a user, on a host that lacks programs.

For root, a cell is a separate host in network, mount and PID namespaces. The missing programs are removed from its
folders, its only networks are loopback and a device without a peer network, and no process outlives it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from scripts.interpreters import Interpreter

OPTIONAL: Final = ("nmap", "libnftables", "ip", "pasta")
"""Optional programs and libraries: for a tool (nmap), or for the tiers of the guard (the others)."""
USERS: Final = {"root": "kernel", "unprivileged": "rootless"}
"""The users that run the server, with the tier that each can have."""
UPLINK: Final = "10.99.0.1"
NOBODY: Final = "65534"
SMOKE: Final = Path(__file__).with_name("smoke.py")
_FOLDERS: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")
_WHOLE_CELL_SEC: Final = 400

# A folder that other users may not enter is replaced by one that they may, which contains only the interpreter.
_HOST: Final = r"""
mount -t tmpfs -o mode=755 run /run
mkdir /run/keep /run/hide
while [ "$1" != -- ]; do
  mkdir -p /run/keep/folder
  mount --bind "$2" /run/keep/folder
  mount -t tmpfs -o mode=755 private "$1"
  mkdir -p "$2"
  mount --bind /run/keep/folder "$2"
  umount /run/keep/folder
  shift 2
done
shift
mount -t tmpfs -o mode=755 net /dev/net
mknod -m 666 /dev/net/tun c 10 200  # as udev creates it; in some containers only root may use it
ip link set lo up
ip link add up0 type veth peer name up1
ip addr add 10.99.0.1/24 dev up0
ip link set up0 up
ip link set up1 up
ip route add default via 10.99.0.2
while [ "$1" != -- ]; do
  folder=$(dirname "$1")
  if ! mountpoint -q "$folder"; then
    over=$(mktemp -d /run/hide/XXXXXX)
    mkdir "$over/upper" "$over/work"
    mount -t overlay -o "lowerdir=$folder,upperdir=$over/upper,workdir=$over/work" overlay "$folder"
  fi
  rm -f "$1"
  shift
done
shift
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """The interpreter ("3.12"), the user that runs the server, and the programs that the host lacks."""

    python: str
    user: str
    absent: tuple[str, ...] = ()

    @property
    def lacks(self) -> str:
        """The names of the missing programs, or "nothing"."""
        return "nothing" if not self.absent else "all of them" if set(self.absent) == set(OPTIONAL) else self.absent[0]


@dataclass(slots=True)
class Verdict:
    """The state of a cell (``passed``, ``failed``, ``in part``: a step was not run, ``not run``) with the reasons."""

    state: str
    notes: list[str] = field(default_factory=list)
    cold_start: float | None = None


def cells(pythons: list[str], lacking: list[tuple[str, ...]] | None = None) -> Iterator[Cell]:
    """Return every cell: each interpreter, each user, and no, one or all optional programs missing."""
    for python in pythons:
        for user in USERS:
            for absent in lacking or [(), *((name,) for name in OPTIONAL), OPTIONAL]:
                yield Cell(python, user, absent)


def obstacle(cell: Cell) -> str:
    """Return why this machine or user cannot run a cell, or an empty text if it can."""
    missing = sorted(set(OPTIONAL) - set(cell.absent) - {name for name in OPTIONAL if files_of(name)})
    if missing:
        return f"this machine has no {', '.join(missing)}"
    if os.geteuid() == 0:
        needed = ("unshare", "mountpoint", "setpriv", "ip")
        return next((f"cells need {name}" for name in needed if not shutil.which(name)), "")
    if cell.user == "root":
        return "the matrix was not started by root"
    return "only root can hide a program" if any(map(files_of, cell.absent)) else ""


def files_of(name: str) -> list[str]:
    """Return the paths of an optional program or library on this machine."""
    if name.startswith("lib"):
        return sorted(str(path) for path in Path("/usr/lib").glob(f"*/{name}.so.*"))
    folders = dict.fromkeys(os.path.realpath(folder) for folder in _FOLDERS)
    return [path for folder in folders if os.path.lexists(path := f"{folder}/{name}")]


def closed_folder(prefix: Path) -> list[str]:
    """Return the folder above an interpreter that only its owner may enter, and the interpreter's; empty if none."""
    for folder in reversed(prefix.parents):
        if not folder.stat().st_mode & 0o001:
            return [str(folder), str(prefix)]
    return []


def run(cell: Cell, interpreter: Interpreter, environment: Path, version: str) -> Verdict:
    """Run a cell. ``environment`` is the installation of the server; all users can read it."""
    if reason := obstacle(cell):
        return Verdict("not run", [reason])
    with tempfile.TemporaryDirectory(dir=environment.parent) as name:
        folder = Path(name)
        folder.chmod(0o755)
        state = folder / "state"
        state.mkdir(mode=0o755)
        shutil.copy(SMOKE, folder)
        root = os.geteuid() == 0
        if root and cell.user != "root":
            os.chown(state, int(NOBODY), int(NOBODY))
        smoke = [str(environment / "bin/python"), "-I", str(folder / "smoke.py"), f"--state={state}"]
        smoke += [f"--program={environment / 'bin/mcp-network-tools'}", f"--version={version}", f"--target={UPLINK}"]
        smoke += ["--guard", USERS[cell.user] if root else ""]
        smoke += ["--absent", *cell.absent] if cell.absent else []
        command = _on_a_host(cell, interpreter, smoke) if root else smoke
        own = {"PATH": os.defpath + ":/usr/sbin:/sbin", "LC_ALL": "C.UTF-8", "SMOKE_OWN_PIDS": "1" if root else ""}
        try:
            done = subprocess.run(
                command,
                env=own,
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
                timeout=_WHOLE_CELL_SEC,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return Verdict("failed", [f"the cell did not end within {_WHOLE_CELL_SEC} s"])
    return read(done)


def _on_a_host(cell: Cell, interpreter: Interpreter, smoke: list[str]) -> list[str]:
    """Return the command that runs the steps on a separate host, as the user of the cell."""
    namespaces = ["--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    hidden = [path for name in cell.absent for path in files_of(name)]
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    return [
        *("unshare", *namespaces, "sh", "-ec", _HOST, "sh", *closed_folder(interpreter.prefix), "--", *hidden, "--"),
        *(drop if cell.user != "root" else []),
        *smoke,
    ]


def read(done: subprocess.CompletedProcess[str]) -> Verdict:
    """Return the verdict of a cell from its output; if the line of a step is missing, it is ``failed``."""
    steps = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    failed = [f"{step['step']}: {step['detail']}" for step in steps if step["state"] == "failed"]
    left_out = [f"{step['step']} not run: {step['detail']}" for step in steps if step["state"] == "not run"]
    started = next((step["detail"] for step in steps if step["step"] == "stdio" and step["state"] == "passed"), "")
    cold_start = float(started.partition(" ")[0]) if started else None
    if failed or done.returncode or not steps or steps[-1]["step"] != "nothing_left":
        return Verdict("failed", failed or [f"exit {done.returncode}: {done.stderr.strip()[-600:]}"], cold_start)
    return Verdict("in part" if left_out else "passed", left_out, cold_start)
