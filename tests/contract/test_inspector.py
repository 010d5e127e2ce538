"""The command line of the official inspector lists and calls tools over both transports."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.mcp_node import inspect
from tests.support.mcp_wire import EVERYTHING, ROOT, everything_over_http

TOKEN = "correct-horse-battery-staple-0123456789"
PRODUCT = str(Path(sys.executable).with_name("mcp-network-tools"))


@dataclass(frozen=True)
class Target:
    """How the inspector reaches a server, with a tool to call there."""

    arguments: tuple[str, ...]
    tool: str
    call: dict[str, Any]
    expected: str


def product_environment(state: Path) -> dict[str, str]:
    return {"MCP_SECURITY_ALLOWED_TARGETS": "loopback,RFC1918,.lab.internal", "MCP_STATE_DIR": str(state)}


@pytest.fixture(scope="module")
def everything_port() -> Iterator[int]:
    with everything_over_http("--token", TOKEN) as port:
        yield port


@pytest.fixture(scope="module")
def product_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Start the server over HTTP; yield its URL and the token that it created."""
    state = tmp_path_factory.mktemp("state")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with subprocess.Popen(
        [PRODUCT, "serve", "--transport", "http", "--host", "127.0.0.1", "--port", port],
        cwd=ROOT,
        env={**os.environ, **product_environment(state)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "http://" in line:
                    url = "http://" + line.partition("http://")[2].split()[0].rstrip("/")
                    break
            else:
                raise AssertionError("The server ended without printing its URL.")
            yield url.removesuffix("/mcp"), (state / "token").read_text().strip()
        finally:
            process.terminate()
            process.communicate(timeout=20)


@pytest.fixture(params=["everything-stdio", "everything-http", "product-stdio", "product-http"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    nmap = ("nmap", {"target": "127.0.0.1", "mode": "ports", "ports": "9"}, "127.0.0.1")
    simple: tuple[str, dict[str, Any], str] = ("test_simple_text", {}, "This is a simple text response for testing.")
    match request.param:
        case "everything-stdio":
            return Target((*EVERYTHING, "stdio"), *simple)
        case "everything-http":
            return Target(over_http(f"http://127.0.0.1:{request.getfixturevalue('everything_port')}", TOKEN), *simple)
        case "product-stdio":
            environment = (f"{key}={value}" for key, value in product_environment(tmp_path / "state").items())
            options = (option for pair in environment for option in ("-e", pair))
            return Target((PRODUCT, "serve", *options), *nmap)
    return Target(over_http(*request.getfixturevalue("product_url")), *nmap)


def over_http(url: str, token: str) -> tuple[str, ...]:
    return (f"{url}/mcp", "--transport", "http", "--header", f"Authorization: Bearer {token}")


REVISIONS = pytest.mark.parametrize("revision", ["legacy", "modern"])


@REVISIONS
def test_the_inspector_lists_the_tools(target: Target, tmp_path: Path, revision: str) -> None:
    listed = inspect(
        *target.arguments, "--protocol-era", revision, "--method", "tools/list", env={"HOME": str(tmp_path)}
    )
    tools = {tool["name"]: tool for tool in listed["tools"]}
    assert tools[target.tool]["inputSchema"]["type"] == "object"
    assert tools[target.tool]["description"]


@REVISIONS
def test_the_inspector_calls_a_tool(target: Target, tmp_path: Path, revision: str) -> None:
    answer = inspect(
        *target.arguments,
        *("--protocol-era", revision, "--method", "tools/call", "--tool-name", target.tool),
        *("--tool-args-json", json.dumps(target.call), "--format", "json"),
        env={"HOME": str(tmp_path)},
    )
    answer = answer.get("result", answer)
    assert not answer.get("isError")
    assert target.expected in json.dumps(answer["content"])
