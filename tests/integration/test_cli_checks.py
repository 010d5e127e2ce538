"""The commands that check before anything is done: doctor, config check, scope check, and how serve starts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import COMMAND, batch, run
from tests.support.interfaces import ROOT, environment, free_port
from tests.support.processes import binary

ROOMY = {f"MCP_HEALTH_{each}_THRESHOLD": "100" for each in ("CPU", "MEMORY", "DISK")}
"""How full the machine is that the tests run on is not what they ask."""


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory.mktemp("cli") / "state", **ROOMY)


async def test_doctor_on_a_host_that_lacks_nothing(env: dict[str, str]) -> None:
    ((status, out, _), (_, text, _)) = await batch(env, ["doctor", "--json"], ["doctor"])
    report = json.loads(out)
    assert (status, report["state"]) == (0, "ok")
    names = [check["name"] for check in report["checks"]]
    assert names == [
        "tool nmap", "guard", "processes", "state folder", "disk", "store", "audit log", "scope", "cpu", "memory",
        "dependencies",
    ]  # fmt: skip
    assert all(check["detail"] for check in report["checks"])
    assert [line.partition(":")[0] for line in text.splitlines()] == [f"{'ok':9} {name}" for name in names]


async def test_doctor_on_a_first_start_makes_what_it_needs(tmp_path: Path) -> None:
    mine = environment(tmp_path / "new" / "state", **ROOMY)
    ((status, out, _),) = await batch(mine, ["doctor", "--json"])
    assert (status, json.loads(out)["state"]) == (0, "ok")
    assert (tmp_path / "new" / "state").stat().st_mode & 0o777 == 0o700


def test_doctor_without_a_writable_folder_says_what_still_works(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("doctor", env=environment(tmp_path / "file" / "state"))
    assert done.returncode == 9
    assert "failed    state folder:" in done.stdout
    assert "still works: the commands tools, config, scope and doctor" in done.stdout
    assert f"to fix: set MCP_STATE_DIR to another folder; {tmp_path}/file is a file" in done.stdout
    assert "ok        tool nmap" in done.stdout


def test_doctor_reports_the_argument_tier_and_how_to_get_the_guard(tmp_path: Path) -> None:
    # Neither root without guard.user nor this user can set up a guard, so the best tier is argument.
    prefix = [binary("setpriv"), "--bounding-set=-net_raw", "--"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*prefix, *COMMAND, "doctor", "--json"],
        env=environment(tmp_path / "state", MCP_SECURITY_GUARD="auto", PATH="/usr/bin"),
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert (done.returncode, report["state"]) == (0, "degraded")
    guard = next(check for check in report["checks"] if check["name"] == "guard")
    assert guard["detail"].startswith("enforcement: argument")
    assert "connect scans" in guard["works"]
    assert guard["remedy"].startswith("sudo useradd")
    assert "serve --guard kernel" in guard["remedy"]


async def test_doctor_names_a_folder_open_to_others_and_a_broken_tool(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o755)
    (tmp_path / "broken_tools.py").write_text(
        "from mcp_server.base_tool import MCPBaseTool\n"
        "class BrokenTool(MCPBaseTool):\n    command_name = 'echo'\n    allowed_flags = ['-x PATH']\n"
    )
    mine = environment(state, PYTHONPATH=str(tmp_path), TOOLS_PACKAGE="broken_tools,not_there_at_all")
    ((status, out, _),) = await batch(mine, ["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert (status, json.loads(out)["state"]) == (0, "degraded")
    assert checks["state folder"]["remedy"] == f"chmod 700 {state}"
    assert "'PATH'" in checks["tool class broken_tools.BrokenTool"]["detail"]
    assert "not_there_at_all" in checks["tool class not_there_at_all"]["detail"]
    assert checks["tool nmap"]["state"] == "ok"


async def test_config_check_tells_what_has_no_effect(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("server: {port: 99999}\nsecurity: {allowed_targets: [RFC1918, 169.254.0.0/16]}\n")
    plain = {key: value for key, value in environment(tmp_path / "s").items() if key != "MCP_SECURITY_ALLOWED_TARGETS"}
    ((status, text, err), (_, out, _)) = await batch(
        plain, ["config", "check", str(file)], ["config", "check", str(file), "--json"]
    )
    assert (status, err) == (0, "")
    assert "section=server key=port original=99999 adjusted=65535" in text
    assert "security.allowed_targets: 169.254.0.0/16 has no effect" in text
    report = json.loads(out)
    assert report["without_effect"] == ["169.254.0.0/16"]
    assert report["scope"] == ["RFC1918", "169.254.0.0/16"]
    assert len(report["clamped"]) == 1


@pytest.mark.parametrize(
    ("content", "named"),
    [("server: {prot: 1}", "server.prot"), ("server: [1]", "server"), ("a: b: c", "line 1"), ("x: 1", "'x'"),
     ("security: {allowed_targets: [10.0.0.1/8]}", "10.0.0.1/8")],
)  # fmt: skip
async def test_config_check_refuses_a_bad_file(tmp_path: Path, content: str, named: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    plain = {key: value for key, value in environment(tmp_path / "s").items() if key != "MCP_SECURITY_ALLOWED_TARGETS"}
    ((status, out, err),) = await batch(plain, ["config", "check", str(file)])
    assert (status, out) == (8, "")
    assert err.startswith("config_invalid: ")
    assert named in err


async def test_scope_check_says_why(env: dict[str, str]) -> None:
    targets = ["10.1.2.0/24", "8.8.8.8", "012.0.0.1", "169.254.169.254", "a\x1b[31mb"]
    ((status, text, _), (_, out, _)) = await batch(
        env, ["scope", "check", *targets], ["scope", "check", *targets, "--json"]
    )
    assert status == 3
    lines = text.splitlines()
    assert [line.split(":")[0] for line in lines] == ["allowed", "refused", "refused", "refused", "refused"]
    assert "10.1.2.0/24 is allowed by RFC1918" in lines[0]
    assert "\x1b" not in text
    report = json.loads(out)["targets"]
    assert [item["code"] for item in report] == [
        None, "target_out_of_scope", "invalid_target", "target_out_of_scope", "forbidden_characters",
    ]  # fmt: skip
    ((fine, _, _),) = await batch(env, ["scope", "check", "127.0.0.1", "::1"])
    assert fine == 0


def test_serve_says_where_it_listens_in_json(env: dict[str, str]) -> None:
    port = free_port()
    command = [*COMMAND, "serve", "--transport", "http", "--port", str(port), "--json"]
    with subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = (process.stderr.readline() for _ in range(20))
            listening = next(line for line in lines if "listening" in line)
        finally:
            process.terminate()
            process.wait(10)
    assert json.loads(listening) == {"event": "listening", "url": f"http://127.0.0.1:{port}"}


def test_a_port_in_use_is_a_configuration_error(env: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("serve", "--transport", "http", "--port", port, env=env)
        in_json = run("serve", "--transport", "http", "--port", port, "--json", env=env)
    assert done.returncode == in_json.returncode == 8
    assert "the port is in use" in done.stderr
    assert json.loads(in_json.stderr)["error"]["code"] == "config_invalid"
    assert in_json.stdout == ""


@pytest.mark.parametrize("mode", [0o777, 0o770])
async def test_a_state_folder_that_others_can_write_is_not_used(tmp_path: Path, mode: int) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    mine = environment(tmp_path / "state")
    call, doctor = await batch(mine, ["call", "nmap", "target=127.0.0.1", "--json"], ["doctor", "--json"])
    assert (call[0], json.loads(call[1])["error"]["code"]) == (9, "permission_denied")
    assert doctor[0] == 9
    assert "can be written by others" in doctor[1]
    assert list((tmp_path / "state").iterdir()) == []


USAGE_ERRORS = [("nope",), ("call",), ("runs", "list", "--limit", "0"), ("scope", "check"), ("--x",)]


@pytest.mark.parametrize("words", USAGE_ERRORS)
def test_usage_errors_are_json_too(words: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*words, "--json", env=environment(tmp_path))
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "invalid_arguments"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", ["version", "serve", "call nmap target=127.0.0.1 mode=discover"])
def test_closed_standard_streams_are_no_defect(closed: str, words: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m mcp_server {words} {closed}"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env=environment(tmp_path / "s"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


def test_output_that_cannot_be_written_is_no_defect(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "mcp_server", "version"]
        done = subprocess.run(command, env=environment(tmp_path), stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 9
    assert b"disk_full" in done.stderr


def test_what_was_clamped_is_in_the_servers_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    env = environment(tmp_path / "s", MCP_SECURITY_TIMEOUT_SECONDS="99999", MCP_LOGGING_FILE_PATH=str(log))
    command = [sys.executable, "-m", "mcp_server", "serve"]
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    first = json.loads(log.read_text().splitlines()[0])
    assert first["event"].startswith("config.value_clamped section=security key=timeout_seconds")
    assert log.stat().st_mode & 0o777 == 0o600
    assert all(line.startswith("{") for line in done.stderr.splitlines())
