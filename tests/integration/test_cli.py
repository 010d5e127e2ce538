"""The command line as people and scripts use it: every command in text and JSON, exit codes, completion."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from mcp_server.cli.output import fail
from mcp_server.errors import ERRORS, NetworkToolsError
from tests.support.cli import batch, run
from tests.support.interfaces import environment
from tests.support.scans import own_network

QUICK = ["target=127.0.0.1", "mode=ports", "ports=1-3"]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory.mktemp("cli") / "state")


@pytest.fixture(scope="module")
def a_run(env: dict[str, str]) -> dict[str, Any]:
    """The result of one scan, as ``call --json`` printed it."""
    done = run("call", "nmap", *QUICK, "correlation_id=cli-1", "--json", env=env)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_call_prints_the_whole_result_as_json(a_run: dict[str, Any]) -> None:
    assert (a_run["outcome"], a_run["returncode"], a_run["correlation_id"]) == ("completed", 0, "cli-1")
    assert [host["address"] for host in a_run["hosts"]] == ["127.0.0.1"]
    assert a_run["coverage"]["complete"] is True


async def test_call_prints_a_table_and_a_summary(env: dict[str, str]) -> None:
    ((status, out, err),) = await batch(env, ["call", "NmapTool", *QUICK])
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["HOST", "PORT", "STATE", "SERVICE", "VERSION"]
    assert lines[1].split() == ["127.0.0.1", "-", "up"]
    assert lines[-1].startswith("nmap completed in ")
    assert "looked at 1 of 1 addresses; 3 tcp ports (connect); run r_" in lines[-1]
    assert not any(line.endswith(" ") for line in lines)


async def test_every_command_prints_text_and_json(env: dict[str, str], a_run: dict[str, Any], tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_text("server: {port: 8081}\n")
    commands = [
        ["tools"],
        ["runs", "list"],
        ["runs", "show", a_run["run_id"]],
        ["config", "show"],
        ["config", "check", str(good)],
        ["scope", "check", "127.0.0.1"],
        ["doctor"],
        ["version"],
    ]
    for words, (status, out, err) in zip(commands, await batch(env, *commands), strict=True):
        assert (status, err) == (0, ""), words
        assert out.strip(), words
        assert not out.startswith("{"), words
    in_json = await batch(env, *([*words, "--json"] for words in commands))
    for words, (status, out, err) in zip(commands, in_json, strict=True):
        assert (status, err) == (0, ""), words
        assert isinstance(json.loads(out), dict), words


async def test_the_output_of_the_commands(env: dict[str, str], a_run: dict[str, Any]) -> None:
    run_id = a_run["run_id"]
    tools, shown, listed, config, version, raw = (
        json.loads(out)
        for _, out, _ in await batch(
            env,
            ["tools", "--json"],
            ["runs", "show", run_id, "--json"],
            ["runs", "list", "--limit", "1000", "--tool", "nmap", "--json"],
            ["config", "show", "--json"],
            ["version", "--json"],
            ["runs", "raw", run_id, "--json"],
        )
    )
    nmap = next(tool for tool in tools["tools"] if tool["name"] == "nmap")
    assert (nmap["class"], nmap["risk"]) == ("NmapTool", "scan")
    assert "-T INT 0-5" in nmap["flags"] or "-TINT 0-5" in nmap["flags"]
    assert nmap["parameters"]["properties"]["target"]["description"]
    assert shown["run"]["id"] == run_id
    assert shown["run"]["actor"]["interface"] == "cli"
    assert shown["hosts"] == a_run["hosts"]
    assert run_id in [entry["id"] for entry in listed["runs"]]
    assert config["config"]["security"]["allowed_targets"] == ["loopback", "RFC1918", ".lab.internal"]
    sources = {f"{key['section']}.{key['key']}": (key["source"], key["status"]) for key in config["keys"]}
    assert sources["security.allowed_targets"] == ("env", "live")
    assert sources["circuit_breaker.failure_threshold"] == ("default", "live")
    assert sources["server.port"] == ("default", "restart")
    assert set(version) == {"version", "python", "platform"}
    assert set(raw) == {"sha256", "size", "stored", "truncated"}


async def test_runs_are_paged(env: dict[str, str], a_run: dict[str, Any]) -> None:
    await batch(env, ["call", "nmap", *QUICK], ["call", "nmap", "target=127.0.0.0/29", "mode=discover"])
    seen: list[str] = []
    cursor: list[str] = []
    for _ in range(50):
        ((status, out, _),) = await batch(env, ["runs", "list", "--limit", "1", *cursor, "--json"])
        page = json.loads(out)
        assert (status, len(page["runs"])) == (0, 1)
        seen += [entry["id"] for entry in page["runs"]]
        if page["next_cursor"] is None:
            break
        cursor = ["--cursor", page["next_cursor"]]
    assert len(seen) == len(set(seen)) == page["total"]
    assert a_run["run_id"] in seen
    ((_, out, _), (_, text, _)) = await batch(
        env, ["runs", "show", seen[0], "--limit", "5"], ["runs", "list", "--limit", "1"]
    )
    assert "8 hosts in all. Next page: --cursor " in out
    assert "Next page: --cursor " in text


EXITS: list[tuple[str, list[str], dict[str, str], int]] = [
    ("unknown-option", ["tools", "--no-such-option"], {}, 2),
    ("unknown-command", ["scan"], {}, 2),
    ("missing-argument", ["call"], {}, 2),
    ("limit-out-of-range", ["runs", "list", "--limit", "0"], {}, 2),
    ("port-no-number", ["serve", "--port", "http"], {}, 2),
    ("transport", ["serve", "--transport", "smoke-signals"], {}, 2),
    ("bad-parameter", ["call", "nmap", "target=127.0.0.1", "prots=1"], {}, 2),
    ("bad-cursor", ["runs", "list", "--cursor", "abc"], {}, 2),
    ("out-of-scope", ["call", "nmap", "target=8.8.8.8"], {}, 3),
    ("intrusive", ["call", "nmap", "target=127.0.0.1", "extra_args=-A"], {}, 3),
    ("scope-check", ["scope", "check", "127.0.0.1", "8.8.8.8"], {}, 3),
    ("unknown-tool", ["call", "nmpa", "target=127.0.0.1"], {}, 4),
    ("unknown-run", ["runs", "show", "r_0"], {}, 4),
    ("unknown-run-raw", ["runs", "raw", "r_0"], {}, 4),
    ("tool-failed", ["call", "false", "target=127.0.0.1"], {"TOOLS_PACKAGE": "cli_test_tools"}, 5),
    ("time-out", ["call", "nmap", "target=127.0.0.1", "ports=1-20", "extra_args=--scan-delay 300ms", "timeout_sec=1"],
     {}, 6),
    ("bad-variable", ["tools"], {"MCP_SERVER_PROT": "1"}, 8),
    ("bad-value", ["config", "show"], {"MCP_SERVER_TRANSPORT": "smoke"}, 8),
    ("port-out-of-range", ["serve", "--port", "70000"], {}, 8),
    ("bad-host", ["serve", "--transport", "http", "--host", "1.2.3"], {}, 8),
    ("missing-file", ["config", "check", "/no/such/file"], {}, 8),
    ("no-nmap", ["call", "nmap", "target=127.0.0.1"], {"PATH": "/no/such/folder"}, 9),
    ("no-nmap-doctor", ["doctor"], {"PATH": "/no/such/folder"}, 9),
]  # fmt: skip


@pytest.mark.parametrize(("words", "extra", "status"), [case[1:] for case in EXITS], ids=[case[0] for case in EXITS])
async def test_exit_codes(
    env: dict[str, str], tmp_path: Path, words: list[str], extra: dict[str, str], status: int
) -> None:
    (tmp_path / "cli_test_tools.py").write_text(
        "from mcp_server.base_tool import MCPBaseTool\nclass FalseTool(MCPBaseTool):\n    command_name = 'false'\n"
    )
    mine = env | extra | {"PYTHONPATH": str(tmp_path)}
    (text,) = await batch(mine, words)
    assert text[0] == status, text
    if words[0] not in {"doctor", "scope"}:
        assert text[2].strip(), "the reason stands on standard error"
        assert "Traceback" not in text[2]
    is_ours = not text[2].startswith("Usage:")
    if is_ours and words[0] not in {"doctor", "scope", "serve"}:
        code = text[2].split(":")[0]
        assert ERRORS[code].exit == status
        ((again, out, err),) = await batch(mine, [*words, "--json"])
        assert (again, err) == (status, "")
        assert json.loads(out)["error"]["code"] == code


async def test_parameters_are_converted_to_the_types_of_the_schema(env: dict[str, str]) -> None:
    network = own_network().split("/")[0]
    first, second = network, network[:-1] + "1"
    ways = (
        [f"target={first},{second}"],
        [f"target={first}", f"target={second}"],
        [f'target=["{first}","{second}"]'],
    )
    done = await batch(env, *(["call", "nmap", *words, "mode=discover", "timing=4", "--json"] for words in ways))
    for status, out, _ in done:
        assert status == 0
        assert json.loads(out)["coverage"]["planned"] == 2
    ((status, out, _),) = await batch(env, ["call", "nmap", f"target={first}", "ping=false", "ports=1,2", "--json"])
    assert status == 0
    run = json.loads((await batch(env, ["runs", "show", json.loads(out)["run_id"], "--json"]))[0][1])["run"]
    assert run["parameters"] == {"target": first, "ping": False, "ports": "1,2"}


@pytest.mark.parametrize(("typed", "offered"), [("n", ["nmap"]), ("", ["nmap", "scope"]), ("x", [])])
def test_the_shell_completes_tool_names(env: dict[str, str], typed: str, offered: list[str]) -> None:
    program = Path(sys.executable).with_name("mcp-network-tools")
    asked = {"_MCP_NETWORK_TOOLS_COMPLETE": "complete_bash", "COMP_WORDS": f"mcp-network-tools call {typed}",
             "COMP_CWORD": "2"}  # fmt: skip
    done = subprocess.run([program], env=env | asked, capture_output=True, text=True, check=False)
    assert done.stdout.split() == offered
    assert done.stderr == ""
    broken = subprocess.run(
        [program], env=env | asked | {"MCP_SERVER_PROT": "1"}, capture_output=True, text=True, check=False
    )
    assert (broken.stdout.split(), broken.stderr) == ([], "")


def test_completion_can_be_installed(env: dict[str, str]) -> None:
    program = Path(sys.executable).with_name("mcp-network-tools")
    done = subprocess.run([program, "--show-completion", "bash"], env=env, capture_output=True, text=True, check=False)
    assert "_MCP_NETWORK_TOOLS_COMPLETE=complete_bash" in done.stdout


DEFECT = """
from mcp_server.tools.registry import ToolRegistry

def get(self, name):
    raise RuntimeError("a defect\\x1b[31m")

ToolRegistry.get = get
"""


@pytest.mark.parametrize("debugging", [False, True])
def test_an_unexpected_exception_is_an_internal_error(env: dict[str, str], tmp_path: Path, debugging: bool) -> None:
    (tmp_path / "sitecustomize.py").write_text(DEFECT)
    mine = env | {"PYTHONPATH": str(tmp_path)} | ({"LOG_LEVEL": "DEBUG"} if debugging else {})
    done = run("call", "nmap", *QUICK, env=mine)
    assert done.returncode == 1
    assert "internal_error: RuntimeError: a defect\\x1b[31m" in done.stderr
    assert ("Traceback" in done.stderr) is debugging
    in_json = run("call", "nmap", *QUICK, "--json", env=mine)
    assert in_json.returncode == 1
    assert json.loads(in_json.stdout)["error"]["code"] == "internal_error"


async def test_help_lists_every_command(env: dict[str, str]) -> None:
    (root, *others) = await batch(
        env, ["--help"], ["runs", "--help"], ["config", "--help"], ["scope", "--help"], ["call", "--help"]
    )
    assert all(status == 0 for status, _, _ in (root, *others))
    for name in ("serve", "call", "tools", "runs", "config", "scope", "doctor", "version"):
        assert f"\n  {name} " in root[1]


@pytest.mark.parametrize("code", ERRORS)
def test_every_error_has_its_exit_code(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        fail(NetworkToolsError("it is so", code=code), as_json=False)
    assert caught.value.exit_code == ERRORS[code].exit
    assert capsys.readouterr().err == f"{code}: it is so\n{ERRORS[code].hint}\n"
