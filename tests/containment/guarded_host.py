"""Prepares the namespace that represents the host for guarded servers: users, policy file and settings."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.containment import lab_scope
from tests.lab.network.programs import ROOT
from tests.support.guarded import OPEN_FOLDERS, opened

SERVER_UID: Final = 61201
_POLICY: Final = "/run/policy.yaml"
_SETUP: Final = (
    r"""
mkdir /run/keep
grep -v '^containment' /etc/passwd >/run/keep/passwd
echo "containment-server:x:$1:$1::/nonexistent:/usr/sbin/nologin" >>/run/keep/passwd
mount --bind /run/keep/passwd /etc/passwd
shift
"""
    + OPEN_FOLDERS
)


def prepare() -> None:
    """Create the server's user, give it access to the interpreter, and write the policy, in this mount namespace."""
    subprocess.run(["/bin/sh", "-ec", _SETUP, "sh", str(SERVER_UID), *opened()], check=True)
    lab_scope.write_policy(_POLICY)


def settings(addresses: Sequence[str]) -> dict[str, str]:
    """The environment of a guarded server whose namespace has these addresses."""
    return {
        "MCP_SECURITY_POLICY_FILE": _POLICY,
        "MCP_SECURITY_REQUIRE_ENFORCEMENT": "kernel",
        "MCP_GUARD_USER": "containment-server",
        "MCP_GUARD_MODE": "macvlan",
        "MCP_GUARD_UPLINK": "eth0",
        "MCP_GUARD_ADDRESSES": ",".join(addresses),
        "MCP_GUARD_GATEWAYS": ",".join(lab_scope.GATEWAYS),
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "TOOLS_PACKAGE": "tests.containment.unchecked",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src"))),
    }


def state_folder(path: str) -> Path:
    """Create a state folder. The guard helper gives it to its server."""
    made = Path(path)
    made.mkdir(mode=0o700)
    return made
