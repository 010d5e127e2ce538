"""Linux namespaces and the commands that create them. Runs inside process 1 of the lab, except `check_machine`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.lab.network.programs import INSTALL, LabError, find, run

NAMESPACES: Final = Path("/run/netns")

# Mount, network, process, hostname and System V IPC (PostgreSQL leaves a shared memory segment when it is killed).
UNSHARE: Final = (
    "unshare",
    "--mount",
    "--net",
    "--pid",
    "--uts",
    "--ipc",
    "--fork",
    "--kill-child",
    "--propagation",
    "private",
)


def check_machine() -> None:
    """Raise LabError with what is missing if this machine cannot run a lab."""
    if os.geteuid() != 0:
        raise LabError("the lab makes network namespaces and needs root; run the tests as root")
    for program in ("unshare", "nsenter", "setpriv", "ip", "nft", "sysctl", "nmap"):
        find(program)
    tried = subprocess.run([find("unshare"), *UNSHARE[1:], "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        raise LabError(
            f"this kernel or container refuses new namespaces (CAP_SYS_ADMIN is needed): {tried.stderr.strip()}"
        )
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        raise LabError(f"the lab's slow link needs a usable /dev/net/tun: {error}") from error
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError as error:
        raise LabError("the lab's certificates need the Python package cryptography of the dev group") from error


def ip_batch(lines: Iterable[str], namespace: str | None = None) -> None:
    """Run many ip(8) commands with one process."""
    inside = ["-n", namespace] if namespace else []
    try:
        run([find("ip"), *inside, "-batch", "-"], text_in="\n".join(lines) + "\n")
    except LabError as error:
        hint = "the kernel must have veth and bridge links (modprobe veth bridge)"
        raise LabError(f"{error}; {hint}") from error


def enter(namespace: str, argv: Iterable[str]) -> list[str]:
    """Return the argv that runs ``argv`` in a network namespace of the lab."""
    return [find("nsenter"), f"--net={NAMESPACES / namespace}", "--", *argv]


def load_rules(namespace: str, rules: str) -> None:
    """Load an nftables ruleset into a namespace."""
    try:
        run(enter(namespace, [find("nft"), "-f", "-"]), text_in=rules)
    except LabError as error:
        raise LabError(
            f"{error}; nftables with NAT and reject must be in the kernel, and its program from {INSTALL}"
        ) from error


def set_kernel(namespace: str, *settings: str) -> None:
    """Set sysctl keys (``key=value``) that belong to a network namespace."""
    run(enter(namespace, [find("sysctl"), "-qw", *settings]))
