"""Run a command in a root folder as a container runtime would, with the same refusals.

The command gets its own namespaces (mount, PID, IPC, host name), a read-only root, /tmp and /run in memory, few
devices, a read-only /proc/sys unless unmasked, a bounding set, and no new privileges. It uses the network in which it
is started. A runtime also has a default system call filter, an AppArmor profile, cgroup limits and a pivoted root,
which are missing here. The root is changed with chroot(2), under which the kernel refuses user namespaces, as the
default filter does. Needs root.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.processes import binary

_MOUNTS: Final = r"""
root=$1 masked=$2 readonly=$3 proc=$4; shift 4
mount --bind "$root" "$root"
while [ "$1" != -- ]; do mount -t tmpfs -o "nosuid,nodev,$2" tmpfs "$root$1"; shift 2; done; shift
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p "$root$2"; elif [ ! -e "$root$2" ]; then mkdir -p "$root${2%/*}"; touch "$root$2"; fi
  mount --bind "$1" "$root$2"
  [ "$3" = rw ] || mount -o remount,bind,ro "$root$2"
  shift 3
done; shift
mount -t proc -o "nosuid,nodev,noexec$proc" proc "$root/proc"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
[ "$masked" = no ] || mount --bind "$root/proc/sys" "$root/proc/sys"
[ "$masked" = no ] || mount -o remount,bind,ro "$root/proc/sys"
mount -t tmpfs -o mode=755,nosuid,size=64k dev "$root/dev"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"; ln -s /proc/self/fd/2 "$root/dev/stderr"
[ "$readonly" = no ] || mount -o remount,bind,ro "$root"
exec "$@"
"""


@dataclass(frozen=True)
class Spec:
    """The description of a container: root folder, user, privileges and mounts.

    ``volumes`` lists a folder or file of this machine, the path inside, and "rw" or "ro"; ``tmpfs`` a path and options.
    ``masked`` leaves /proc/sys read-only, as every runtime does by default; ``proc`` has options of /proc, each with a
    comma before it.
    """

    root: Path
    user: str
    capabilities: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"
    volumes: tuple[tuple[Path, str, str], ...] = ()
    tmpfs: tuple[tuple[str, str], ...] = (("/tmp", "size=64m,mode=1777"), ("/run", "size=8m,mode=755"))
    masked: bool = True
    readonly: bool = True
    proc: str = ""

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command to execute, as root of this machine."""
        for source, executor, _ in self.volumes:
            target = self.root / executor.lstrip("/")
            # A runtime creates mount points in a layer above the image. Those below another mount are created after it.
            if not target.exists() and not any(executor.startswith(f"{each[1]}/") for each in self.volumes):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.mkdir() if source.is_dir() else target.touch()
        masked, readonly = ("yes" if each else "no" for each in (self.masked, self.readonly))
        return [
            binary("unshare"), "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child",
            "--propagation", "private", "sh", "-euc", _MOUNTS, "sh", str(self.root), masked, readonly, self.proc,
            *(word for each in self.tmpfs for word in each), "--",
            *(str(word) for volume in self.volumes for word in volume), "--",
            binary("chroot"), str(self.root), *self._as_user(), "/usr/bin/env", "-C", self.folder, *argv,
        ]  # fmt: skip

    def _as_user(self) -> list[str]:
        user, _, group = self.user.partition(":")
        bounded = ",".join(["-all", *(f"+{name.lower()}" for name in self.capabilities)])
        return [
            "/usr/bin/setpriv", f"--reuid={user}", f"--regid={group or user}", "--clear-groups", "--inh-caps=-all",
            f"--bounding-set={bounded}", "--no-new-privs", "/usr/bin/env", "-i",
            *(f"{name}={value}" for name, value in self.env.items()),
        ]  # fmt: skip


@dataclass
class Container:
    """A running container; ``pid`` is the PID of its first process on this machine."""

    spec: Spec
    process: subprocess.Popen[bytes]
    pid: int
    logged: Path

    @property
    def log(self) -> str:
        """Return its output on standard error and standard output."""
        return self.logged.read_text()

    def execute(self, *argv: str, user: str = "") -> subprocess.CompletedProcess[str]:
        """Run another command in it, as ``docker exec`` or a health check does."""
        spec = Spec(**{**self.spec.__dict__, "user": user or self.spec.user})
        enter = [
            binary("nsenter"), "--target", str(self.pid), "--mount", "--pid", "--ipc", "--uts", "--net", "--root",
            "--wd", "--", *spec._as_user(), *argv,
        ]  # fmt: skip
        return subprocess.run(enter, capture_output=True, text=True, timeout=60, check=False)

    def status(self, pid: int = 0) -> dict[str, str]:
        """Return the entry of its first process (or another) in /proc, by name."""
        lines = Path(f"/proc/{pid or self.pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 40) -> int:
        """Signal the first process and wait for its end; return its exit code."""
        os.kill(self.pid, number)
        return self.process.wait(seconds)

    def members(self) -> list[int]:
        """Return all its processes."""
        own = Path(f"/proc/{self.pid}/ns/pid").readlink()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "ns/pid").readlink() == own:
                    found.append(int(entry.name))
            except OSError:
                continue
        return found


@contextmanager
def container(
    spec: Spec, argv: Sequence[str], log: Path, *, inside: Sequence[str] = (), seconds: float = 20, started: bool = True
) -> Iterator[Container]:
    """Start a command as a container, and end it at the end; ``inside`` is put before it, to enter a network namespace.

    Without ``started``, the function does not look for the first process, for example if it ends soon by itself.
    """
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*inside, *spec.command(argv)], stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd="/"
        )
    try:
        yield Container(spec, process, _first(process, log, seconds) if started else 0, log)
    finally:
        # The end of the first process ends its namespace. It has changed its user, so the kernel does not end it with
        # its parent.
        for child in _children(process.pid):
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()


def _first(process: subprocess.Popen[bytes], log: Path, seconds: float) -> int:
    """Return the process of the command after it has entered its root."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            for child in _children(process.pid):
                if Path(f"/proc/{child}/root").readlink() != Path("/"):
                    return child
        except OSError:
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
