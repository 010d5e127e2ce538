"""What contains a run on this machine: the tier that ends its process tree, and whether its files are confined.

`docs/decisions/0007-runner.md` holds the measurements behind the choice.
"""

from __future__ import annotations

import dataclasses
import functools
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mcp_server.errors import PlatformError
from mcp_server.sandbox.executor import probe_argv

_PROBE_SEC: Final = 10.0


class Tier(StrEnum):
    """What ends the process tree of a run, strongest first."""

    PID_NAMESPACE = "pid-namespace"
    USER_NAMESPACE = "user-namespace"
    SUPERVISOR = "supervisor"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class Containment:
    """What the active tier promises, for `doctor` and the audit log.

    ``ends_detached``: a descendant that left the session dies with its run. ``ends_with_server``: and when the
    server is killed with SIGKILL. ``files_confined``: a program opens only the files its `Sandbox` names.
    ``signals_confined``: and cannot signal the server. ``calls_filtered``: nor change the owner, mode or times of
    files, connect to sockets that are files, or set the limits of others (`seccomp.py`). ``remedy`` says what would
    give more, or is empty.
    """

    tier: Tier
    ends_detached: bool
    ends_with_server: bool
    detail: str
    remedy: str = ""
    files_confined: bool = True
    signals_confined: bool = True
    landlock_abi: int = 0
    calls_filtered: bool = True


_TIERS: Final = {
    Tier.PID_NAMESPACE: Containment(
        Tier.PID_NAMESPACE, True, True, "each run has its own PID namespace; the kernel ends it whole"
    ),
    Tier.USER_NAMESPACE: Containment(
        Tier.USER_NAMESPACE,
        True,
        True,
        "each run has its own PID namespace inside a user namespace; the kernel ends it whole, and raw sockets are "
        "not to be had",
    ),
    Tier.SUPERVISOR: Containment(
        Tier.SUPERVISOR, True, True, "a supervisor ends each run with all it forked, also what left its session"
    ),
    Tier.SESSION: Containment(
        Tier.SESSION,
        False,
        True,
        "a run's session is ended; a descendant that left it survives",
        "Run on Linux.",
    ),
}
_WITHOUT_FILES: Final = (
    "; files are not confined: a program can read and write what this user can",
    "Use a kernel of 5.13 or later with Landlock on (the boot parameter lsm= names landlock).",
)
_WITHOUT_SIGNALS: Final = (
    "; a program can signal other processes of this user (Landlock ABI {abi}, 6 is needed)",
    "Use a kernel of 6.12 or later.",
)
_WITHOUT_FILTER: Final = (
    "; system calls are not filtered: a program can change the mode and owner of this user's files",
    "Use x86_64, aarch64 or riscv64 and a kernel with CONFIG_SECCOMP_FILTER.",
)


@functools.cache
def containment(*, allow_raw: bool = True) -> Containment:
    """What a run started here is held by, found by trying it once, in about 25 ms.

    ``allow_raw`` is that of `Place.here`. Raises PlatformError where no program can be started at all.
    """
    try:
        words = probe_argv(allow_raw=allow_raw)
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SEC, check=True)
        tier, abi, filtered = done.stdout.split()
        return describe(Tier(tier.decode()), int(abi), calls_filtered=filtered == b"1")
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise PlatformError(f"the runner cannot be started: {error}") from error


def describe(tier: Tier, abi: int, *, calls_filtered: bool) -> Containment:
    """What a tier promises with that version of Landlock, 0 for none, and with or without the filter of calls."""
    found = dataclasses.replace(_TIERS[tier], files_confined=abi > 0, landlock_abi=abi, calls_filtered=calls_filtered)
    alone = tier in {Tier.PID_NAMESPACE, Tier.USER_NAMESPACE}  # no process outside can be named in there
    found = dataclasses.replace(found, signals_confined=alone or abi >= 6)
    if not found.files_confined:
        return _lacking(found, *_WITHOUT_FILES)
    if not found.signals_confined:
        return _lacking(found, _WITHOUT_SIGNALS[0].format(abi=abi), _WITHOUT_SIGNALS[1])
    if not found.calls_filtered:
        return _lacking(found, *_WITHOUT_FILTER)
    return found


def _lacking(found: Containment, what: str, remedy: str) -> Containment:
    return dataclasses.replace(found, detail=found.detail + what, remedy=found.remedy or remedy)
