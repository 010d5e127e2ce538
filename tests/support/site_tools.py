"""A package of plain tools around one small script, for tests of the environment and the limits of a tool."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

SCRIPT = """#!/bin/sh
case "$2" in
  limits) echo "as=$(ulimit -v) nofile=$(ulimit -n) core=$(ulimit -c)";;
  sleep) exec sleep 60;;
  wait) until [ -e "${0%/*}/go" ]; do sleep 0.1; done;;
  out) head -c 300000 /dev/zero | tr '\\0' x;;
  huge) head -c 3000000 /dev/zero | tr '\\0' x;;
  err) head -c 300000 /dev/zero | tr '\\0' e >&2;;
  env) set;;
  fail) echo it failed >&2; exit 3;;
  *) echo "given: $*";;
esac
"""
MODULE = """
from mcp_server.base_tool import MCPBaseTool

class ProbeTool(MCPBaseTool):
    command_name = "site-probe"
    allowed_flags = ["--do WORD"]
    reads = ("/bin", "/usr/bin", "/dev/zero")

class SingleTool(ProbeTool):
    command_name = "site-probe"
    concurrency = 1
"""


@dataclass(frozen=True, slots=True)
class SiteTools:
    """The paths of the package and the script, and the environment with which a server finds them."""

    folder: Path
    package: str

    @property
    def env(self) -> dict[str, str]:
        python_path = os.pathsep.join(filter(None, [str(self.folder), os.environ.get("PYTHONPATH", "")]))
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return {"TOOLS_PACKAGE": self.package, "PYTHONPATH": python_path, "PATH": path}

    def end_waiting(self) -> None:
        """End the programs that were called with the word ``wait``."""
        (self.folder / "bin" / "go").touch()


def make_site_tools(folder: Path) -> SiteTools:
    """Write the package and the script into ``folder``; the package has a unique name, so that imports do not clash."""
    package = f"site_tools_{folder.name.replace('-', '_')}"
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    (folder / package / "probe.py").write_text(MODULE)
    (folder / "bin").mkdir()
    script = folder / "bin" / "site-probe"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    return SiteTools(folder, package)
