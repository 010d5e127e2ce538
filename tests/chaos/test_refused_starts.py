"""Refused starts: the reason is on standard error, the exit code matches it, and no file is left."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from mcp_server.errors import ExitCode
from tests.chaos.interfaces_under_way import one_interface
from tests.support import cli
from tests.support.interfaces import ROOT, environment, free_port
from tests.support.namespaces import mount_namespace
from tests.support.postgres import running_postgres
from tests.support.processes import binary

INTERFACES = ("stdio", "http")
AS_NOBODY = () if os.geteuid() else (binary("setpriv"), "--bounding-set=-dac_override,-dac_read_search", "--")
"""A prefix that runs a command as this user. File modes apply to the command even if the user is root."""


def start(env: Mapping[str, str], interface: str, *words: str, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    """Try to start a server. Returns its exit code and standard error. Fails if the server starts."""
    command = [*prefix, sys.executable, "-m", "mcp_server", "serve", "--transport", interface]
    port = () if "--port" in words else ("--port", str(free_port()))
    with subprocess.Popen(
        [*command, *port, *words],
        env=dict(env),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            # Standard input stays open, because a stdio server ends by itself if it is closed.
            code = process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError("the server started") from None
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.stdout.read() == "", "standard output is for MCP messages only"
    assert "Traceback" not in said
    assert "Listening on" not in said
    return code, said


def files(folder: Path) -> dict[str, bytes | None]:
    """Return every path below a folder, with its content if it is a file."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def create_store(state: Path, env: Mapping[str, str]) -> None:
    """Create the store with this version of the program."""
    state.mkdir(mode=0o700, exist_ok=True)
    done = cli.run("runs", "list", env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_newer_schema_is_refused(tmp_path: Path, interface: str) -> None:
    state = tmp_path / "state"
    env = environment(state)
    create_store(state, env)
    with closing(sqlite3.connect(state / "store.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.commit()
    before = files(state)
    code, said = start(env, interface)
    assert code == ExitCode.ENVIRONMENT
    assert "store_unavailable" in said
    assert "'9999', which is newer than this version knows" in said
    assert "Run the version of mcp-network-tools that wrote it" in said
    assert files(state) == before


def test_a_newer_schema_in_postgres_is_refused(tmp_path: Path) -> None:
    with running_postgres() as server:
        env = environment(tmp_path / "state", MCP_DATABASE_URL=server.new_database())
        create_store(tmp_path / "state", env)
        server._run(
            "psql", "-h", "127.0.0.1", "-p", str(server.port), "-U", "tester", "-c",
            "UPDATE alembic_version SET version_num = '9999'", "test1",
        )  # fmt: skip
        for interface in INTERFACES:
            code, said = start(env, interface)
            assert code == ExitCode.ENVIRONMENT
            assert "'9999', which is newer" in said
        assert not (tmp_path / "state" / "audit.jsonl").exists()


BAD_POLICIES = {
    "not YAML": "networks: [",
    "an unknown key": "networks:\n  - cidr: 10.0.0.0/8\nnetwroks: []\n",
    "host bits": "version: 1\nnetworks:\n  - cidr: 10.0.0.1/8\n",
    "empty": "",
}


@pytest.mark.parametrize("text", BAD_POLICIES.values(), ids=BAD_POLICIES.keys())
def test_an_invalid_policy_is_refused(tmp_path: Path, text: str) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(text)
    env = environment(tmp_path / "state", MCP_SECURITY_POLICY_FILE=str(policy))
    del env["MCP_SECURITY_ALLOWED_TARGETS"]
    code, said = start(env, "http")
    assert code == ExitCode.CONFIG
    assert "config_invalid" in said
    assert str(policy) in said
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_policy_that_cannot_be_read_is_refused(tmp_path: Path, interface: str) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\n")
    policy.chmod(0)
    env = environment(tmp_path / "state", MCP_SECURITY_POLICY_FILE=str(policy))
    del env["MCP_SECURITY_ALLOWED_TARGETS"]
    code, said = start(env, interface, prefix=AS_NOBODY)
    assert code == ExitCode.CONFIG
    assert str(policy) in said
    policy.unlink()
    assert start(env, interface)[0] == ExitCode.CONFIG
    assert not (tmp_path / "state").exists()


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        code, said = start(environment(tmp_path / "state"), "http", "--port", port)
    assert code == ExitCode.CONFIG
    assert f"server.port {port} cannot be bound: the port is in use" in said
    assert files(tmp_path / "state") == {}


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_state_folder_of_another_user_is_refused(tmp_path: Path, interface: str) -> None:
    if os.geteuid():
        pytest.fail("this test needs root, because it changes the owner of a folder")
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    os.chown(state, 65534, 65534)
    code, said = start(environment(state), interface)
    assert code == ExitCode.ENVIRONMENT
    assert "permission_denied" in said
    assert "belongs to another user" in said
    assert files(state) == {}


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_state_folder_that_others_may_write_is_refused(tmp_path: Path, interface: str) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    code, said = start(environment(state), interface)
    assert code == ExitCode.ENVIRONMENT
    assert f"chmod 700 {state}" in said
    assert files(state) == {}


@pytest.mark.parametrize("interface", INTERFACES)
def test_an_audit_log_that_cannot_be_written_prevents_a_start(tmp_path: Path, interface: str) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "audit.jsonl").mkdir()
    code, said = start(environment(state), interface)
    assert code == ExitCode.ENVIRONMENT
    assert "audit_unavailable" in said
    assert not (state / "token").exists()
    assert not list(state.rglob("*.lock"))


def test_a_broken_audit_log_prevents_a_start(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "audit.jsonl").write_text('{"seq": 0}\nnonsense\n')
    (state / "audit-000001.jsonl").write_text("nonsense\n")
    code, said = start(environment(state), "stdio")
    assert code == ExitCode.TOOL_FAILED
    assert "audit_broken" in said


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_log_file_that_cannot_be_written_prevents_a_start(tmp_path: Path, interface: str) -> None:
    (tmp_path / "log").mkdir()
    env = environment(tmp_path / "state", MCP_LOGGING_FILE_PATH=str(tmp_path / "log"))
    code, said = start(env, interface)
    assert code == ExitCode.ENVIRONMENT
    assert f"The log file {tmp_path}/log cannot be written" in said
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_full_disk_prevents_a_start(tmp_path: Path, interface: str) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    script = 'mount -t tmpfs -o size=1m,mode=700 tmpfs "$1"; head -c 1m /dev/zero >"$1/filler" 2>/dev/null || true'
    with mount_namespace(script, str(state)) as inside:
        code, said = start(environment(state), interface, prefix=inside.prefix)
        assert code == ExitCode.ENVIRONMENT
        assert "disk_full" in said
        assert list(files(inside.see(state))) == ["filler"]


async def test_a_second_server_can_start_in_the_same_folder(tmp_path: Path) -> None:
    env = environment(tmp_path / "state")
    async with one_interface("stdio", env) as one, one_interface("rest", env) as two:
        for interface in (one, two):
            assert (await interface.call("nmap", {"target": "127.0.0.1", "mode": "discover"})).error is None
        for interface in (one, two):
            interface.signal(signal.SIGTERM)
            assert await interface.exit_code(5) == 0
    assert cli.run("audit", "verify", env=env).returncode == 0
