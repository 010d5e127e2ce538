"""A host that cannot run a tool, through all interfaces: no program, no disk space, no permission, no address."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mcp_server.errors import ERRORS
from tests.support.interfaces import INTERFACES, ROOT, Reply, accepted, environment, open_interfaces, spawned
from tests.support.namespaces import mount_namespace
from tests.support.processes import binary
from tests.unit.scope.loopback_dns import Zone

CALL = {"target": "127.0.0.1", "mode": "discover"}


def assert_failed(reply: Reply, interface: str, code: str) -> None:
    """Check that the interface returned this error, with a hint and with its status for it."""
    assert reply.error is not None, f"{interface}: {reply.text}"
    assert reply.code == code, f"{interface}: {reply.error}"
    assert reply.error["message"], f"{interface}: the error has no message"
    assert reply.error["hint"], f"{interface}: the error has no hint"
    spec = ERRORS[code]
    if interface == "rest":
        assert reply.status == spec.http
    if interface == "cli":
        assert reply.status == spec.exit
    if interface in {"stdio", "http"}:
        assert reply.body["outcome"] in {"refused", "failed"}


async def test_a_missing_program_is_an_error_with_the_command_that_installs_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    async with open_interfaces(tmp_path / "state", PATH=str(tmp_path / "empty")) as interfaces:
        for interface in INTERFACES:
            reply = await interfaces.call(interface, "nmap", CALL)
            assert_failed(reply, interface, "binary_not_found")
            assert reply.error is not None
            assert "apt-get install nmap" in reply.error["hint"]
        health = await interfaces.rest.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
    nmap = next(check for check in health.json()["checks"] if check["name"] == "tool nmap")
    assert nmap["state"] == "failed"
    assert "apt-get install nmap" in nmap["remedy"]


async def test_a_program_without_execute_permission_is_an_error_with_the_command_that_sets_it(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nmap").write_text("#!/bin/sh\n")
    async with open_interfaces(tmp_path / "state", PATH=str(tmp_path / "bin")) as interfaces:
        for interface in INTERFACES:
            reply = await interfaces.call(interface, "nmap", CALL)
            assert_failed(reply, interface, "permission_denied")
            assert reply.error is not None
            assert f"chmod a+x {tmp_path}/bin/nmap" in reply.error["hint"]


def fill(folder: Path, *, leaving: int) -> None:
    """Fill the file system of ``folder`` up to ``leaving`` bytes (whole pages)."""
    filler = folder / "filler"
    filler.unlink(missing_ok=True)
    status = os.statvfs(folder)
    filler.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - leaving)))


@pytest.mark.parametrize("leaving", [0, 8192], ids=["for-the-log", "for-the-store"])
async def test_a_full_disk_refuses_calls_until_there_is_space(tmp_path: Path, leaving: int) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    with mount_namespace('mount -t tmpfs -o size=1m,mode=700 tmpfs "$1"', str(state)) as inside:
        # The server can read a token that exists. The test reads the token outside the mount namespace.
        (inside.see(state) / "token").write_text("t" * 43)
        (state / "token").write_text("t" * 43)
        for token in (inside.see(state) / "token", state / "token"):
            token.chmod(0o600)
        async with open_interfaces(state, prefix=inside.prefix) as interfaces:
            for interface in INTERFACES:
                fill(inside.see(state), leaving=leaving)
                reply = await interfaces.call(interface, "nmap", CALL)
                assert_failed(reply, interface, "disk_full")
            (inside.see(state) / "filler").unlink()
            reply = await interfaces.call("rest", "nmap", {"target": "8.8.8.8"})
            assert reply.code == "target_out_of_scope", "the server works again"
            assert not spawned(inside.see(state)), "a process was started"


def without_file_privileges() -> tuple[str, ...]:
    """Return a prefix that runs a command as this user, and makes file modes apply to root too."""
    if os.geteuid():
        return ()
    return (binary("setpriv"), "--bounding-set=-dac_override,-dac_read_search", "--")


async def test_a_state_folder_that_became_read_only_refuses_calls(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with open_interfaces(state, prefix=without_file_privileges()) as interfaces:
        state.chmod(0o500)
        try:
            for interface in INTERFACES:
                assert_failed(await interfaces.call(interface, "nmap", CALL), interface, "store_unavailable")
            (state / "audit.jsonl").chmod(0o400)
            for interface in INTERFACES:
                assert_failed(await interfaces.call(interface, "nmap", CALL), interface, "audit_unavailable")
            health = await interfaces.rest.get("/health")
        finally:
            state.chmod(0o700)
    assert health.status_code == 503
    folder = next(check for check in health.json()["checks"] if check["name"] == "state folder")
    assert folder["state"] == "failed"
    assert str(state) in folder["remedy"]


@pytest.mark.parametrize("words", [["serve", "--transport", "http"], ["serve"], ["call", "nmap", "target=127.0.0.1"]])
def test_a_state_folder_that_cannot_be_created_ends_the_program(tmp_path: Path, words: list[str]) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    done = subprocess.run(
        [*without_file_privileges(), sys.executable, "-m", "mcp_server", *words],
        env=environment(locked / "state"),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 9, done.stderr
    assert f"permission_denied: The state folder {locked}/state cannot be created" in done.stderr
    assert "MCP_STATE_DIR" in done.stderr
    assert "Traceback" not in done.stderr


@asynccontextmanager
async def name_server(address: str, records: dict[str, list[str]]) -> AsyncIterator[Zone]:
    """Serve DNS records on port 53 of a loopback address."""
    zone = Zone(records=records)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: zone, local_addr=(address, 53))
    try:
        yield zone
    finally:
        transport.close()


NAMES: list[tuple[str, list[str] | None, str]] = [
    ("nowhere.lab.internal", None, "target_unresolvable"),
    ("empty.lab.internal", [], "target_unresolvable"),
    ("public.lab.internal", ["A 8.8.8.8"], "target_out_of_scope"),
    ("one-of-two.lab.internal", ["A 10.0.0.1", "A 8.8.8.8"], "target_out_of_scope"),
    ("metadata.lab.internal", ["A 169.254.169.254"], "target_out_of_scope"),
    ("mapped.lab.internal", ["AAAA ::ffff:10.0.0.1"], "target_out_of_scope"),
    ("alias.lab.internal", ["CNAME public.lab.internal."], "target_out_of_scope"),
]


async def test_names_without_an_address_or_out_of_scope_are_refused(tmp_path: Path) -> None:
    address = f"127.53.{os.getpid() >> 8 & 255}.{os.getpid() & 255 or 1}"
    (tmp_path / "resolv.conf").write_text(f"nameserver {address}\noptions timeout:2 attempts:1\n")
    zone = {name: records for name, records, _ in NAMES if records is not None}
    script = 'mount --bind "$1" "$(readlink -f /etc/resolv.conf)"'
    with mount_namespace(script, str(tmp_path / "resolv.conf")) as inside:
        async with (
            name_server(address, zone | {"here.lab.internal": ["A 127.0.0.1"]}) as server,
            open_interfaces(tmp_path / "state", prefix=inside.prefix) as interfaces,
        ):
            for interface in INTERFACES:
                for name, _, code in NAMES:
                    reply = await interfaces.call(interface, "nmap", {"target": name})
                    assert_failed(reply, interface, code)
                    assert reply.error is not None
                    assert name in reply.error["message"], "the message does not have the name"
            assert ("nowhere.lab.internal.", "A") in server.questions
            assert not accepted(tmp_path / "state")
            reply = await interfaces.call("rest", "nmap", {"target": "here.lab.internal", "mode": "discover"})
    assert reply.error is None, "a name in the scope on the same server was refused"
    assert reply.body["hosts"][0]["address"] == "127.0.0.1"
    assert len(accepted(tmp_path / "state")) == 1


def test_doctor_names_a_missing_program_what_still_works_and_the_command_that_installs_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mcp_server", "doctor", "--json"],
        env=environment(tmp_path / "state", PATH=str(tmp_path)), cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    report: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode, report["state"]) == (9, "failed")
    nmap = report["checks"][0]
    assert nmap["name"] == "tool nmap"
    assert nmap["works"]
    assert nmap["remedy"] == "Install it, on Debian or Ubuntu with 'sudo apt-get install nmap'."
    assert shutil.which("nmap"), "this test needs a host with nmap"
