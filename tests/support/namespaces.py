"""A private mount namespace for a test. Servers can be started in it, and its mounts are visible nowhere else."""

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
    """A mount namespace that a sleeping process keeps alive."""

    pid: int

    @property
    def prefix(self) -> tuple[str, ...]:
        """The words before a command that run it in the namespace. They execute it, so the PID stays the same."""
        user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        return (binary("nsenter"), "--target", str(self.pid), *user, "--mount")

    def see(self, path: Path) -> Path:
        """The path by which this process reaches ``path`` of the namespace."""
        return Path(f"/proc/{self.pid}/root{path}")


@contextmanager
def mount_namespace(script: str, *arguments: str) -> Iterator[MountNamespace]:
    """Create a mount namespace and run the shell ``script`` in it, with ``arguments`` as ``$1`` and so on."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    held = subprocess.Popen(
        [binary("unshare"), *user, "--mount", "--propagation", "private", "sh", "-ec",
         f"{script}\necho ready\nexec sleep 600", "sh", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert held.stdout is not None
        line = held.stdout.readline()
        assert line == "ready\n", f"expected the script to succeed in the namespace, found {line!r}"
        yield MountNamespace(held.pid)
    finally:
        held.kill()
        held.communicate()
