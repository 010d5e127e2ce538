"""The class, the commands and the entry point on the page about adding a tool work as printed."""

from __future__ import annotations

import json
import re
import shlex
import socket
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import ROOT, batch
from tests.support.interfaces import environment

PAGE = (ROOT / "docs/adding-a-tool.md").read_text()


def block(kind: str) -> str:
    """Return the first code block in this language."""
    blocks: list[tuple[str, str]] = re.findall(r"^ *```([a-z]*)\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)
    return next(text for language, text in blocks if language == kind)


@pytest.fixture
def port() -> Iterator[int]:
    """Yield a port of loopback on which connections are accepted."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    listening.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


async def test_the_class_and_the_commands_on_the_page_run_as_printed(tmp_path: Path, port: int) -> None:
    named = re.search(r"`(site_tools/\w+_tool\.py)`", PAGE)
    assert named, "the page does not name the file of the tool"
    module = tmp_path / named[1]
    module.parent.mkdir()
    module.write_text(block("python"))
    (package,) = re.findall(r"TOOLS_PACKAGE=(\w+)\n", block(""))
    listing, call = (line for line in block("").splitlines() if line.startswith("mcp-network-tools"))
    env = environment(tmp_path / "state", PYTHONPATH=str(tmp_path), TOOLS_PACKAGE=package)
    ours = call.replace("192.168.1.10", "127.0.0.1").replace("-p 22", f"-p {port}").replace("-c 3", "-c 1")
    too_many = ours.replace("-c 1", "-c 99")
    commands = [[*shlex.split(line)[1:], "--json"] for line in (listing, ours, too_many)]
    listed, called, refused = await batch(env, *commands)
    assert "nping" in {tool["name"] for tool in json.loads(listed[1])["tools"]}
    status, out, err = called
    assert status == 0, err
    result = json.loads(out)
    assert result["outcome"] == "completed"
    assert "Successful connections: 1" in result["stdout"]
    assert refused[0] == 2, refused
    assert json.loads(refused[2] or refused[1])["error"]["code"] == "invalid_arguments"


def test_the_entry_point_on_the_page_names_the_class_on_the_page() -> None:
    indented = block("toml")
    table = tomllib.loads("\n".join(line.strip() for line in indented.splitlines()))
    ((name, target),) = table["project"]["entry-points"]["mcp_server.tools"].items()
    assert target == "site_tools.nping_tool:NpingTool"
    assert f"class {target.split(':')[1]}(" in block("python")
    assert name == "nping"
