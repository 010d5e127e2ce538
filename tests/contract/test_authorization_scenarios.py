"""The conformance suite has no scenario for the authorization of a server; these tests fail when that changes.

Its ``auth/…`` scenarios act as server and issuer for a *client*. Two more test an *authorization server*, which this
project is not. None of its server scenarios sends a credential, and its ``server`` command has no option for one.
tests/integration/test_identity.py tests authorization with the client of the SDK.
"""

from __future__ import annotations

import re
import subprocess

from tests.support.mcp_node import NODE, entry_point


def output_of(*words: str) -> str:
    script = entry_point("conformance", "conformance")
    done = subprocess.run([str(NODE), str(script), *words], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def scenarios() -> dict[str, list[str]]:
    """Return the names of scenarios by the part they test: server, client, authorization server."""
    parts = re.split(r"^(\w[\w ]*) scenarios \(", output_of("list"), flags=re.MULTILINE)
    return {
        part.lower(): re.findall(r"^  - (\S+)", names, re.MULTILINE)
        for part, names in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_no_scenario_tests_the_authorization_of_a_server() -> None:
    found = scenarios()
    words = ("auth", "oauth", "token", "scope", "credential", "bearer")
    assert [name for name in found["server"] if any(word in name for word in words)] == []
    assert len([name for name in found["client"] if name.startswith("auth/")]) == 33
    assert found["authorization server"] == ["authorization-server-metadata-endpoint", "authorization-code-grant"]


def test_the_suite_cannot_send_a_credential_to_a_server() -> None:
    options = re.findall(r"^  (?:-\w, )?--([\w-]+)", output_of("server", "--help"), re.MULTILINE)
    assert "url" in options
    assert not {"header", "headers", "token", "auth", "authorization", "bearer"} & set(options)
