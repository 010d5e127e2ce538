"""Serve over stdio with a guard in the lab: ``python -m tests.lab.guarded_server``, in the namespace of the scanner.

The namespace of the scanner acts as the host. The server gets its own addresses on the scanner's segment. Users, policy
file and state folder of the host are created in the mount namespace that the lab gave this process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.lab.network.truth import RESOLVER
from tests.support.guarded import OPEN_FOLDERS, opened

SCOPE: Final = ("RFC1918", ".lab.internal", "fd77:1::/64", "fd77:2::/64")
ADDRESSES: Final = ("10.77.1.249", "fd77:1::f9")
_POLICY: Final = Path("/run/policy.yaml")
_USER: Final = "lab-server"
_SETUP: Final = (
    r"""
mkdir /run/keep
{ grep -v "^$1:" /etc/passwd; echo "$1:x:61301:61301::/nonexistent:/usr/sbin/nologin"; } >/run/keep/passwd
mount --bind /run/keep/passwd /etc/passwd
shift
"""
    + OPEN_FOLDERS
)


def main() -> None:
    """Prepare the host and become its guard helper."""
    subprocess.run(["/bin/sh", "-ec", _SETUP, "sh", _USER, *opened()], check=True)
    allowed = "".join(f'  - "{entry}"\n' for entry in SCOPE)
    _POLICY.write_text(f"version: 1\nallow:\n{allowed}resolvers:\n  - {RESOLVER}\n")
    _POLICY.chmod(0o644)
    settings = {
        "MCP_STATE_DIR": "/run/state",
        "MCP_SECURITY_POLICY_FILE": str(_POLICY),
        "MCP_GUARD_USER": _USER,
        "MCP_GUARD_ADDRESSES": f"{ADDRESSES[0]}/24,{ADDRESSES[1]}/64",
        "MCP_GUARD_GATEWAYS": "10.77.1.1,fd77:1::1",
        "MCP_SECURITY_REQUIRE_ENFORCEMENT": "kernel",
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MCP_", "TOOL", "LOG_", "COV"))}
    command = [sys.executable, "-m", "mcp_server", "serve", "--guard", "kernel"]
    os.execve(command[0], command, kept | settings)  # noqa: S606 - argv, no shell


if __name__ == "__main__":
    main()
