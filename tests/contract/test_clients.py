"""The guide for clients: each command and file of docs/clients.md reaches a real server.

Claude Code and the Inspector are the real programs. Claude Desktop, Cursor and VS Code have windows and cannot run
here. The tests start the command of their file, or send the request that they would send over HTTP.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scripts import connect
from tests.support.clock import SOON
from tests.support.mcp_node import NODE, entry_point, node_package
from tests.support.mcp_wire import INITIALIZED, ServedProcess, exchange, initialize, modern, post, request
from tests.support.processes import binary

PRODUCT = str(Path(sys.executable).with_name("mcp-network-tools"))
BLOCKS = connect.blocks(connect.PAGE.read_text())
ASKED = re.compile(r"\$\{(?:env|input):[^}]+\}")


def block_id(block: tuple[str, str]) -> str:
    language, text = block
    return text.partition(" ")[0] if language == "shell" else re.sub(r"\W+", "-", text)[:40]


def of_kind(language: str, interface: str) -> pytest.MarkDecorator:
    """Return the blocks of the page that start a command (stdio) or contain a URL (http)."""
    found = [block for block in BLOCKS if block[0] == language and ("http://" in block[1]) == (interface == "http")]
    assert found
    return pytest.mark.parametrize("block", found, ids=block_id)


def servers(text: str) -> dict[str, Any]:
    """Return the servers in the file of a client: under ``servers`` in VS Code, otherwise under ``mcpServers``."""
    document = json.loads(text)
    found: dict[str, Any] = document.get("mcpServers") or document["servers"]
    return found


@contextmanager
def over_http(state: Path, *before: str) -> Iterator[tuple[str, str]]:
    """Start a server over HTTP, with a prefix for its command; yield its URL and its token."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MCP_STATE_DIR": str(state)}
    command = [*before, PRODUCT, "serve", "--transport", "http", "--port", port]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            while "Listening on" not in (line := process.stderr.readline()):
                assert line, "the server ended"
            yield f"http://127.0.0.1:{port}/mcp", (state / "token").read_text().strip()
        finally:
            process.terminate()
            process.communicate(timeout=2 * SOON)


def test_the_page_has_the_snippets_of_every_client() -> None:
    assert len(BLOCKS) == len(connect.snippets())
    assert connect.differences(connect.PAGE.read_text()) == []


@of_kind("json", "stdio")
@pytest.mark.parametrize("revision", ["handshake", "stateless"])
async def test_the_command_in_a_file_serves_both_protocol_revisions(
    block: tuple[str, str], revision: str, tmp_path: Path
) -> None:
    (server,) = servers(block[1]).values()
    assert server.get("type", "stdio") == "stdio"
    command = PRODUCT if server["command"] == connect.COMMAND else server["command"]
    environment = {**server.get("env", {}), "MCP_STATE_DIR": str(tmp_path)}
    async with ServedProcess.open(command, *server["args"], env=environment) as client:
        if revision == "handshake":
            await client.send(initialize(0))
            assert (await client.receive())["result"]["serverInfo"]["name"] == "mcp-network-tools"
            await client.send(INITIALIZED, request(1, "tools/list"))
        else:
            await client.send(modern(1, "tools/list"))
        tools = (await client.receive())["result"]["tools"]
    assert "nmap" in {tool["name"] for tool in tools}


@of_kind("json", "http")
async def test_the_url_in_a_file_needs_its_header(block: tuple[str, str], tmp_path: Path) -> None:
    (server,) = servers(block[1]).values()
    assert server.get("type", "http") == "http"
    (header,) = server["headers"].items()
    for asked in re.findall(r"\$\{input:([^}]+)\}", header[1]):
        (question,) = [each for each in json.loads(block[1])["inputs"] if each["id"] == asked]
        assert question["password"]
    with over_http(tmp_path) as (url, token):
        assert server["url"].rpartition(":")[0] == url.rpartition(":")[0]
        port = int(url.rpartition(":")[2].partition("/")[0])
        path = "/" + server["url"].rpartition("/")[2]
        headers = {header[0]: ASKED.sub(token, header[1])}
        answer = await exchange(port, post(port, modern(1, "tools/list"), path=path, headers=headers))
        refused = await exchange(port, post(port, modern(1, "tools/list"), path=path))
    assert answer.status == 200
    assert "nmap" in {tool["name"] for tool in answer.json()["result"]["tools"]}
    assert refused.status == 401


@pytest.mark.parametrize("block", [each for each in BLOCKS if "inspector" in each[1]], ids=["stdio", "http"])
def test_the_inspector_lists_the_tools_with_the_command_of_the_page(block: tuple[str, str], tmp_path: Path) -> None:
    npx, package, *words = shlex.split(block[1])
    name, _, version = package.rpartition("@")
    assert (npx, version) == ("npx", node_package(name)["version"])
    inspector = entry_point("inspector", "mcp-inspector")
    with over_http(tmp_path / "state") as (url, token):
        words = [word.replace(connect.URL, url).replace(connect.TOKEN, token) for word in words]
        words = [PRODUCT if word == connect.COMMAND else word for word in words]
        environment = {**os.environ, "HOME": str(tmp_path), "MCP_STATE_DIR": str(tmp_path / "other")}
        done = subprocess.run(
            [str(NODE), str(inspector), *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "nmap" in {tool["name"] for tool in json.loads(done.stdout)["tools"]}


@contextmanager
def island() -> Iterator[list[str]]:
    """Yield the prefix of a command that runs in a network namespace with only loopback."""
    held = subprocess.Popen(
        [binary("unshare"), "--net", "sh", "-ec", "ip link set lo up; echo ready; exec sleep 300"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == "ready\n"
        yield [binary("nsenter"), "--target", str(held.pid), "--net"]
    finally:
        held.kill()
        held.communicate()


@pytest.mark.parametrize("interface", ["stdio", "http"])
def test_claude_code_connects_with_the_command_of_the_page(interface: str, tmp_path: Path) -> None:
    """Runs the real program, without an account, in a namespace that has only loopback."""
    folder = node_package("@anthropic-ai/claude-code-linux-x64")["folder"]
    (line,) = [
        text for _, text in BLOCKS if text.startswith("claude ") and ("http://" in text) == (interface == "http")
    ]
    project = tmp_path / "project"
    project.mkdir()
    environment = {
        "HOME": str(tmp_path),
        "PATH": os.defpath,
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "MCP_STATE_DIR": str(tmp_path / "its-own"),
    }
    with island() as inside, over_http(tmp_path / "state", *inside) as (url, token):

        def claude(*words: str) -> str:
            done = subprocess.run(
                [*inside, f"{folder}/claude", *words],
                env=environment,
                cwd=project,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        _, *words = shlex.split(line)
        claude(
            *(
                word.replace(connect.URL, url).replace(connect.TOKEN, token).replace(connect.COMMAND, PRODUCT)
                for word in words
            )
        )
        assert re.search(rf"^{connect.NAME}: .* Connected$", claude("mcp", "list"), re.MULTILINE)
        if interface == "http":
            (tmp_path / ".claude.json").write_text((tmp_path / ".claude.json").read_text().replace(token, "x" * 43))
            assert " Connected" not in claude("mcp", "list")
