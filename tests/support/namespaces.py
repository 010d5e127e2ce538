"""A mount namespace of the test's own, which servers can be started in: what is mounted there is seen nowhere else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import binary


@dataclass(frozen=True, slots=True)
class MountNamespace:
    """A mount namespace, held by a process that sleeps in it."""

    pid: int

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command so that it runs inside; the process stays the one that was started."""
        user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        return (binary("nsenter"), "--target", str(self.pid), *user, "--mount")

    def see(self, path: Path) -> Path:
        """The path by which this process reaches ``path`` as it is inside."""
        return Path(f"/proc/{self.pid}/root{path}")


@contextmanager
def mount_namespace(script: str, *arguments: str) -> Iterator[MountNamespace]:
    """Make a mount namespace in which the shell ``script`` has run (its ``$1`` … are ``arguments``)."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    held = subprocess.Popen(
        [binary("unshare"), *user, "--mount", "--propagation", "private", "sh", "-ec",
         f"{script}\necho ready\nexec sleep 600", "sh", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == "ready\n", "the namespace could not be made"
        yield MountNamespace(held.pid)
    finally:
        held.kill()
        held.communicate()
