"""What tells others of this server: the MCP registry's server.json and the manifest of the bundle for Claude Desktop.

Both are made from the version in src/mcp_server/__init__.py, and from name, description and owner in pyproject.toml.

    python -m scripts.manifests [--check]
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from typing import Any, Final

from scripts.connect import ROOT

NO_OWNER: Final = "owner-not-set"
"""Marks that nobody is named who could publish; `make release` says so."""
_SCOPE: Final = "MCP_SECURITY_ALLOWED_TARGETS"
_PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAME: Final[str] = _PROJECT["project"]["name"]
OWNER: Final[str] = _PROJECT["tool"]["mcp-network-tools"]["owner"]
REGISTRY_NAME: Final = f"io.github.{OWNER}/{NAME}"
MCP_NAME: Final = f"<!-- mcp-name: {REGISTRY_NAME} -->"
"""The line in README.md by which the registry sees that the package is its owner's."""


def version() -> str:
    """The version, from the one place where it stands."""
    source = (ROOT / "src/mcp_server/__init__.py").read_text()
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if found is None:
        raise ValueError("src/mcp_server/__init__.py names no version")
    return found.group(1)


def server_json() -> dict[str, Any]:
    """The registry's entry, schema 2025-12-11."""
    return {
        "$schema": "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json",
        "name": REGISTRY_NAME,
        "title": "Network Tools",
        "description": "Network security tools (nmap) for AI agents, held inside the owner's scope",
        "version": version(),
        "packages": [
            {
                "registryType": "pypi",
                "identifier": NAME,
                "version": version(),
                "runtimeHint": "uvx",
                "transport": {"type": "stdio"},
                "packageArguments": [{"type": "positional", "value": "serve"}],
                "environmentVariables": [
                    {
                        "name": _SCOPE,
                        "description": "What may be looked at: networks and names, separated by commas",
                        "default": "RFC1918,.lab.internal",
                        "isRequired": False,
                    }
                ],
            }
        ],
    }


def bundle_manifest() -> dict[str, Any]:
    """The bundle's manifest, version 0.4: uv makes the environment from the source in the bundle."""
    return {
        "manifest_version": "0.4",
        "name": NAME,
        "display_name": "Network Tools",
        "version": version(),
        "description": _PROJECT["project"]["description"],
        "author": {"name": f"The {NAME} authors"},
        "license": "MIT",
        "keywords": _PROJECT["project"]["keywords"],
        "server": {
            "type": "uv",
            "entry_point": "src/mcp_server/__main__.py",
            "mcp_config": {
                "command": "uv",
                "args": ["run", "--no-dev", "--directory", "${__dirname}", NAME, "serve"],
                "env": {_SCOPE: "${user_config.scope}"},
            },
        },
        "compatibility": {
            "platforms": ["linux"],
            "runtimes": {"python": _PROJECT["project"]["requires-python"]},
        },
        "user_config": {
            "scope": {
                "type": "string",
                "title": "Scope",
                "description": "What may be looked at: networks and names, separated by commas",
                "default": "RFC1918,.lab.internal",
                "required": True,
            }
        },
        "tools_generated": True,
    }


FILES: Final = {ROOT / "server.json": server_json, ROOT / "deploy/mcpb/manifest.json": bundle_manifest}


def stale() -> list[str]:
    """The files that are not what is made here."""
    return [
        str(path.relative_to(ROOT))
        for path, make in FILES.items()
        if not path.exists() or path.read_text() != text(make())
    ]


def text(document: dict[str, Any]) -> str:
    """A document as it stands in its file."""
    return json.dumps(document, indent=2) + "\n"


def main() -> int:
    found = stale()
    if "--check" in sys.argv:
        print(
            f"stale: {', '.join(found)}; run: .venv/bin/python -m scripts.manifests"
            if found
            else "the files are current"
        )
        return 1 if found else 0
    for path, make in FILES.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(make()))
    print(f"wrote {', '.join(found) or 'nothing new'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
