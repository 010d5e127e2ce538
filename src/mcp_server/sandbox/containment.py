"""The containment of runs on this host: the mechanism that ends their processes, and the confinement of their files.

`docs/decisions/0007-runner.md` has the measurements behind these tiers.
"""

from __future__ import annotations

import functools
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mcp_server.errors import PlatformError
from mcp_server.sandbox.executor import probe_argv

_PROBE_SEC: Final = 10.0


class Tier(StrEnum):
    """The mechanism that ends the process tree of a run, strongest first."""

    PID_NAMESPACE = "pid-namespace"
    USER_NAMESPACE = "user-namespace"
    SUPERVISOR = "supervisor"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class Containment:
    """The guarantees of the active tier.

    ``files_confined`` says whether a program can open only the files in its `Sandbox`. ``detail`` describes the
    guarantees in full sentences. ``remedy`` says how to contain runs better, and is empty if nothing is missing.
    """

    tier: Tier
    files_confined: bool
    detail: str
    remedy: str = ""


_DETAILS: Final = {
    Tier.PID_NAMESPACE: "Each run has its own PID namespace. The kernel ends all processes in it together.",
    Tier.USER_NAMESPACE: "Each run has its own PID namespace inside a user namespace. The kernel ends all processes in "
    "it together. Raw sockets are not available.",
    Tier.SUPERVISOR: "A supervisor ends each run with all its descendants, even those that left its session.",
    Tier.SESSION: "The session of a run is ended. A descendant that left the session keeps running.",
}


@functools.cache
def containment(*, allow_raw: bool = True) -> Containment:
    """Find out, by trying it once, how a run that is started here is contained. This takes about 25 ms.

    ``allow_raw`` has the same meaning as in `Executor.here`. Raises PlatformError if no program can be started.
    """
    try:
        words = probe_argv(allow_raw=allow_raw)
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SEC, check=True)
        tier, abi, filtered = done.stdout.split()
        return describe(Tier(tier.decode()), int(abi), calls_filtered=filtered == b"1")
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = str(error).removesuffix(".")
        raise PlatformError(f"The runner cannot be started: {reason}.") from error


def describe(tier: Tier, abi: int, *, calls_filtered: bool) -> Containment:
    """Describe a tier with a Landlock ABI (0: no Landlock), and with or without the system call filter."""
    missing, remedy = "", "Run the server on Linux." if tier is Tier.SESSION else ""
    if abi == 0:
        missing = "Files are not confined: a program can read and write everything that this user can."
        remedy = remedy or (
            "Use Linux 5.13 or later with Landlock enabled (the boot parameter 'lsm=' must include landlock)."
        )
    elif abi < 6 and tier not in {Tier.PID_NAMESPACE, Tier.USER_NAMESPACE}:  # in these, other processes have no PID
        missing = f"A program can send signals to other processes of this user, because the Landlock ABI is {abi}."
        remedy = remedy or "Use Linux 6.12 or later, which has ABI 6."
    elif not calls_filtered:
        missing = "System calls are not filtered: a program can change the mode and the owner of this user's files."
        remedy = remedy or "Use x86_64, aarch64 or riscv64 and a kernel with CONFIG_SECCOMP_FILTER."
    return Containment(tier, abi > 0, f"{_DETAILS[tier]} {missing}".rstrip(), remedy)
