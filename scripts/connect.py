"""The snippets that connect each client: the one source for docs/clients.md, README.md and the output of `make run`.

tests/contract/test_clients.py starts the command of each snippet and speaks MCP to it.

    python -m scripts.connect --check      compare the snippets with the pages
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs/clients.md"
NAME: Final = "network-tools"
COMMAND: Final = "/path/to/.venv/bin/mcp-network-tools"
"""The placeholder for the program of an installation in the pages."""
URL: Final = "http://127.0.0.1:8080/mcp"
TOKEN: Final = "TOKEN"  # noqa: S105 - the placeholder in the pages
TOKEN_VARIABLE: Final = "MCP_NETWORK_TOOLS_TOKEN"  # noqa: S105 - the name of a variable
INSPECTOR: Final = "@modelcontextprotocol/inspector@2.12.0"


@dataclass(frozen=True, slots=True)
class Snippet:
    """One way to connect one client: a command (``shell``) or the content of a file (``json``)."""

    client: str
    interface: str
    language: str
    text: str


def snippets(command: str = COMMAND) -> list[Snippet]:
    """Return every snippet, for a program at ``command``."""
    entry: dict[str, Any] = {"command": command, "args": ["serve"]}
    bearer = f"Authorization: Bearer {TOKEN}"
    header = {"Authorization": f"Bearer ${{env:{TOKEN_VARIABLE}}}"}
    asked = {"Authorization": "Bearer ${input:network-tools-token}"}
    question = {
        "type": "promptString",
        "id": "network-tools-token",
        "description": "Token of the network tools",
        "password": True,
    }
    return [
        Snippet("Claude Code", "stdio", "shell", f"claude mcp add {NAME} -- {command} serve"),
        Snippet("Claude Code", "http", "shell", f'claude mcp add --transport http {NAME} {URL} --header "{bearer}"'),
        Snippet("Claude Desktop, Cursor", "stdio", "json", _json({"mcpServers": {NAME: entry}})),
        Snippet("Cursor", "http", "json", _json({"mcpServers": {NAME: {"url": URL, "headers": header}}})),
        Snippet("VS Code", "stdio", "json", _json({"servers": {NAME: {"type": "stdio", **entry}}})),
        Snippet(
            "VS Code",
            "http",
            "json",
            _json({"inputs": [question], "servers": {NAME: {"type": "http", "url": URL, "headers": asked}}}),
        ),
        Snippet("MCP Inspector", "stdio", "shell", f"npx {INSPECTOR} --cli {command} serve --method tools/list"),
        Snippet(
            "MCP Inspector",
            "http",
            "shell",
            f'npx {INSPECTOR} --cli {URL} --transport http --header "{bearer}" --method tools/list',
        ),
    ]


def lines(command: str) -> list[tuple[str, str]]:
    """Return the names of the usual clients with one line for each, as `make run` prints them."""
    usual = {"Claude Code": "Claude Code", "Claude Desktop, Cursor": "", "VS Code": "VS Code (.vscode/mcp.json)"}
    return [
        (usual[each.client] or each.client, one_line(each))
        for each in snippets(command)
        if each.client in usual and each.interface == "stdio"
    ]


def one_line(snippet: Snippet) -> str:
    """Return the snippet on one line."""
    return snippet.text if snippet.language == "shell" else json.dumps(json.loads(snippet.text), ensure_ascii=False)


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the fenced blocks of a page that are for a client: language and text."""
    return [
        (kind, text.strip())
        for kind, text in re.findall(r"^```(json|shell)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    ]


def differences(page: str) -> list[str]:
    """Return the snippets that a page lacks, and the blocks on it that are not snippets."""
    wanted = [(each.language, each.text) for each in snippets()]
    found = blocks(page)
    return [f"missing: {text}" for kind, text in wanted if (kind, text) not in found] + [
        f"not in scripts/connect.py: {text}" for kind, text in found if (kind, text) not in wanted
    ]


def _json(value: dict[str, Any]) -> str:
    """Return indented JSON with lists of one text on one line, as people write these files."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return re.sub(r"\[\s+(\"[^\"]*\")\s+\]", r"[\1]", text)


def main() -> int:
    """Print the snippets, or with ``--check`` the differences between them and the page."""
    if "--check" in sys.argv:
        found = differences(PAGE.read_text())
        print("\n".join(found) or "The page has all snippets.")
        return 1 if found else 0
    for each in snippets():
        print(f"# {each.client}, {each.interface}\n{each.text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
