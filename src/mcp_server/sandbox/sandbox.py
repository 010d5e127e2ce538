"""The files that a sandboxed process may access, and a check whether it can open raw sockets on this host."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CAP_NET_RAW: Final = 13
"""Bit number of CAP_NET_RAW in a capability set (linux/capability.h, capabilities(7))."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The files that a process may read and execute, and whether it keeps CAP_NET_RAW.

    ``reads`` are absolute paths. A folder includes everything below it. The program itself, its interpreter and the
    system's libraries are always readable. The process can write to its own scratch folder only. It loses every other
    capability and cannot gain new privileges. Raises ValueError if a path is not absolute.
    """

    reads: tuple[str, ...] = ()
    raw_sockets: bool = False

    def __post_init__(self) -> None:
        """Check the paths. The runner would resolve a relative path against its own working directory."""
        for path in self.reads:
            if not path.startswith("/") or "\0" in path:
                raise ValueError(f"{path!r} is not an absolute path.")


def can_open_raw_sockets() -> bool:
    """Return whether a child process of this one can hold CAP_NET_RAW.

    A child of root holds it if the bounding set contains it. A child of any other user holds it if the ambient set
    contains it.
    """
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError:
        return os.geteuid() == 0
    sets = dict(line.split(":\t", 1) for line in lines if line.startswith("Cap"))
    held = sets["CapBnd"] if os.geteuid() == 0 else sets["CapAmb"]
    return bool(int(held, 16) >> _CAP_NET_RAW & 1)
