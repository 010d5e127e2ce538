"""Write server.json for the MCP registry, and the manifest of the bundle for Claude Desktop.

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
"""Placeholder for the owner of the registry name. With it, `make release` fails."""
_SCOPE: Final = "MCP_SECURITY_ALLOWED_TARGETS"
_PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAME: Final[str] = _PROJECT["project"]["name"]
OWNER: Final[str] = _PROJECT["tool"]["mcp-network-tools"]["owner"]
REGISTRY_NAME: Final = f"io.github.{OWNER}/{NAME}"
MCP_NAME: Final = f"<!-- mcp-name: {REGISTRY_NAME} -->"
"""The line in README.md by which the registry verifies the owner of the package."""


def version() -> str:
    """Return the version, which is defined only in src/mcp_server/__init__.py."""
    source = (ROOT / "src/mcp_server/__init__.py").read_text()
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if found is None:
        raise ValueError("src/mcp_server/__init__.py defines no version")
    return found.group(1)


def server_json() -> dict[str, Any]:
    """Return the entry for the registry, schema 2025-12-11."""
    return {
        "$schema": "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json",
        "name": REGISTRY_NAME,
        "title": "Network Tools",
        "description": "Network security tools (nmap) for AI agents, limited to the scope that the operator sets",
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
                        "description": "Allowed targets: networks and names, separated by commas",
                        "default": "RFC1918,.lab.internal",
                        "isRequired": False,
                    }
                ],
            }
        ],
    }


def bundle_manifest() -> dict[str, Any]:
    """Return the manifest of the bundle, version 0.4: uv creates the environment from the source in the bundle."""
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
                "description": "Allowed targets: networks and names, separated by commas",
                "default": "RFC1918,.lab.internal",
                "required": True,
            }
        },
        "tools_generated": True,
    }


FILES: Final = {ROOT / "server.json": server_json, ROOT / "deploy/mcpb/manifest.json": bundle_manifest}


def stale() -> list[str]:
    """Return the files that differ from the generated text."""
    return [
        str(path.relative_to(ROOT))
        for path, make in FILES.items()
        if not path.exists() or path.read_text() != text(make())
    ]


def text(document: dict[str, Any]) -> str:
    """Return the text of a document as written to its file."""
    return json.dumps(document, indent=2) + "\n"


def main() -> int:
    found = stale()
    if "--check" in sys.argv:
        print(
            f"Stale: {', '.join(found)}. Run: .venv/bin/python -m scripts.manifests"
            if found
            else "The files are current."
        )
        return 1 if found else 0
    for path, make in FILES.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(make()))
    print(f"wrote {', '.join(found) or 'nothing new'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
