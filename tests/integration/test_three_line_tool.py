"""A tool of three lines works through every interface, from a package of the operator and from an installed one."""

from __future__ import annotations

import asyncio
import json
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest
import pytest_asyncio

from tests.support.interfaces import INTERFACES, Interfaces, Reply, in_own_task, open_interfaces

pytestmark = pytest.mark.asyncio(loop_scope="module")

PACKAGE = """
from mcp_server.base_tool import MCPBaseTool


class EchoTool(MCPBaseTool):
    command_name = "echo"
    allowed_flags = ["-n"]


class DatabaseTool(MCPBaseTool):
    command_name = "loud"
    allowed_flags = ["-c INT 1-3", "--color=CHOICE red|blue"]


class ToolBase(MCPBaseTool):
    command_name = "true"
"""
INSTALLED = """
from mcp_server.base_tool import MCPBaseTool


class WhisperTool(MCPBaseTool):
    command_name = "echo"
    allowed_flags = ["-n"]
"""
LOUD = """#!/bin/sh
printf 'name\\033[31m[red]\\t%s\\n' "$*"
printf 'second line\\342\\200\\256\\n' >&2
exit 0
"""


def install(folder: Path) -> None:
    """Create the files of an installed distribution: a module, its metadata and its entry point."""
    (folder / "whisper_tools.py").write_text(INSTALLED)
    info = folder / "whisper_tools-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: whisper-tools\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mcp_server.tools]\nwhisper = whisper_tools:WhisperTool\n")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def interfaces(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Interfaces]:
    folder = tmp_path_factory.mktemp("three-lines")
    package = folder / "lib" / "acme_tools"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "plain.py").write_text(PACKAGE)
    (package / "broken.py").write_text("raise SystemExit('this module exits')\n")
    install(folder / "lib")
    (folder / "bin").mkdir()
    (folder / "bin" / "loud").write_text(LOUD)
    (folder / "bin" / "loud").chmod(0o755)
    extra: dict[str, Any] = {
        "PYTHONPATH": str(folder / "lib"),
        "TOOLS_PACKAGE": "acme_tools",
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
    }
    async with in_own_task(open_interfaces(folder / "state", **extra)) as opened:
        yield opened


async def test_the_class_of_the_tool_has_three_lines() -> None:
    start = PACKAGE.index("class EchoTool")
    assert len(textwrap.dedent(PACKAGE[start : PACKAGE.index("class DatabaseTool")]).strip().splitlines()) == 3


def completed(reply: Reply) -> dict[str, Any]:
    """Check that the run completed, and return its result with the output of the program."""
    assert reply.error is None, reply.error
    assert (reply.body["outcome"], reply.body["returncode"]) == ("completed", 0)
    # MCP shows the output of a program with the untrusted text. REST and the command line have ToolOutput.
    from_target: dict[str, Any] = reply.body.get("from_target", {})
    return reply.body | from_target


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("tool", ["echo", "whisper", "EchoTool", "WhisperTool"])
async def test_the_tool_runs_and_its_run_and_output_are_stored(
    interfaces: Interfaces, interface: str, tool: str
) -> None:
    body = completed(await interfaces.call(interface, tool, {"target": "127.0.0.1"}))
    assert body["stdout"] == "127.0.0.1\n"
    assert body["coverage"]["planned"] == body["coverage"]["looked_at"] == 1
    body = completed(await interfaces.call(interface, tool, {"target": "10.0.0.1", "extra_args": "-n"}))
    assert body["stdout"] == "10.0.0.1"
    run = (await interfaces.rest.get(f"/runs/{body['run_id']}")).json()["run"]
    assert run["argv"] == ["/usr/bin/echo", "-n", "10.0.0.1"]
    assert run["tool"] == tool.removesuffix("Tool").lower()
    assert (await interfaces.rest.get(f"/runs/{body['run_id']}/raw")).content == b"10.0.0.1"


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"target": "8.8.8.8"}, "target_out_of_scope"),
        ({"target": "10.0.0.0/24"}, "too_many_targets"),
        ({"target": "127.0.0.1", "extra_args": "-e"}, "argument_not_allowed"),
        ({"target": "127.0.0.1", "extra_args": "-n 8.8.8.8"}, "argument_not_allowed"),
        ({"target": "127.0.0.1", "ports": "80"}, "invalid_arguments"),
        ({}, "invalid_arguments"),
    ],
)
async def test_scope_parameters_and_flags_of_the_tool_are_checked(
    interfaces: Interfaces, interface: str, arguments: dict[str, Any], code: str
) -> None:
    assert (await interfaces.call(interface, "echo", arguments)).code == code


@pytest.mark.parametrize("interface", INTERFACES)
async def test_a_class_name_with_a_suffix_word_is_found_and_its_output_is_escaped(
    interfaces: Interfaces, interface: str
) -> None:
    arguments = {"target": "127.0.0.1", "extra_args": "--color=blue -c 2"}
    body = completed(await interfaces.call(interface, "database", arguments))
    assert body["stdout"] == "name\\x1b[31m[red]\\x09--color=blue -c 2 127.0.0.1\n"
    if interface in {"rest", "cli"}:
        assert body["stderr"] == "second line\\u202e\n"
    raw = await interfaces.rest.get(f"/runs/{body['run_id']}/raw")
    assert raw.content == b"name\x1b[31m[red]\t--color=blue -c 2 127.0.0.1\n"


async def test_the_tool_is_described_in_every_list(interfaces: Interfaces) -> None:
    tools = {tool.name: tool for tool in (await interfaces.stdio.list_tools()).tools}
    assert list(tools) == ["database", "echo", "nmap", "scope", "whisper"]
    echo = tools["echo"]
    assert echo.title, "the tool has no title"
    assert echo.description, "the tool has no description"
    assert set(echo.input_schema["properties"]) == {"target", "extra_args", "timeout_sec", "correlation_id"}
    result = await interfaces.stdio.call_tool("echo", {"target": "127.0.0.1"})
    assert echo.output_schema is not None
    jsonschema.validate(result.structured_content, echo.output_schema)
    listed = {tool["name"]: tool for tool in (await interfaces.rest.get("/tools")).json()["tools"]}
    assert listed["database"]["class"] == "DatabaseTool"
    assert listed["database"]["flags"] == ["--color=", "-c"]


async def test_classes_that_were_left_out_are_listed_with_the_reason(interfaces: Interfaces) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mcp_server", "tools", "--json", env=interfaces.env, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    reasons = {item["name"]: item["reason"] for item in json.loads(out)["left_out"]}
    assert "scaffolding" in reasons["acme_tools.plain.ToolBase"]
    assert "this module exits" in reasons["acme_tools.broken"]
