"""What this process may do: whether a tool started by it can open raw sockets."""

from __future__ import annotations

import os
from pathlib import Path

_CAP_NET_RAW = 13
"""Bit number of CAP_NET_RAW in a capability set (capabilities(7), linux/capability.h)."""


def can_open_raw_sockets() -> bool:
    """Whether a child process will hold CAP_NET_RAW: it is root with the capability, or inherits it as ambient."""
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError:
        return os.geteuid() == 0
    sets = dict(line.split(":\t", 1) for line in lines if line.startswith("Cap"))
    held = sets["CapBnd"] if os.geteuid() == 0 else sets["CapAmb"]
    return bool(int(held, 16) >> _CAP_NET_RAW & 1)
