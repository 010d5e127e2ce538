"""A server whose tools behave as a test needs, and a Prometheus that watches it with the shipped alerts."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any, Final

import httpx2

from tests.support.interfaces import environment, free_port, http_server
from tests.support.prometheus import Prometheus, prometheus, stage

SCRIPT: Final = """#!/bin/sh
# arguments: --do WORD TARGET
case "$2" in
  sleep) exec sleep 60;;
  flaky) [ -e {folder}/shop/open ] || exit 3;;
esac
echo done
"""
MODULE: Final = """
from mcp_server.base_tool import MCPBaseTool

class FlakyTool(MCPBaseTool):
    command_name = "watched-tool"
    allowed_flags = ["--do WORD"]
    concurrency = 4
    reads = ("/bin", "/usr/bin", "{folder}/shop")

class SlowTool(FlakyTool):
    command_name = "watched-tool"

class SingleTool(FlakyTool):
    command_name = "watched-tool"
    concurrency = 1

class PoliteTool(FlakyTool):
    command_name = "watched-tool"

class WideTool(FlakyTool):
    command_name = "watched-tool"

class BrokenTool(FlakyTool):
    command_name = "watched-tool"

    def build_command(self, parameters, targets, settings):
        raise RuntimeError("a mistake in this tool")

class GreedyTool(FlakyTool):
    command_name = "watched-tool"
    kept = b""

    def build_command(self, parameters, targets, settings):
        GreedyTool.kept = b"x" * (320 << 20)
        return super().build_command(parameters, targets, settings)
"""
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "health": {"check_interval": 5, "cpu_threshold": 100, "memory_threshold": 100, "disk_threshold": 100},
    "metrics": {"collection_interval": 5},
    "circuit_breaker": {"failure_threshold": 5, "recovery_timeout": 1},
    "admission": {"max_waiting": 0},
    "rate_limit": {"calls_per_minute": 0, "total_calls_per_minute": 0},
    "server": {"shutdown_grace_period": 20},
}


@dataclass
class Watched:
    """A server, its process, and its Prometheus."""

    folder: Path
    env: dict[str, str]
    port: int
    prometheus: Prometheus = field(init=False)
    process: Popen[str] = field(init=False)
    token: str = ""

    @property
    def state(self) -> Path:
        """The state folder."""
        return self.folder / "state"

    @property
    def base(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def configure(self, **sections: dict[str, Any]) -> None:
        """Change sections of the configuration file, which the server then reloads."""
        present = {name: values | sections.get(name, {}) for name, values in SETTINGS.items()}
        self.write(json.dumps(present | {name: sections[name] for name in sections if name not in present}))

    def write(self, text: str) -> None:
        """Replace the configuration file."""
        new = self.folder / "config.new"
        new.write_text(text)
        new.replace(self.folder / "config.json")

    def get(self, path: str, *, token: str | None = None) -> httpx2.Response:
        """Request a path, with the right token unless another is given."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        return httpx2.get(f"{self.base}{path}", headers=headers, timeout=30)

    def post(self, path: str) -> httpx2.Response:
        """Send a POST request as an operator."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx2.post(f"{self.base}{path}", headers=headers, timeout=30).raise_for_status()

    def call(self, tool: str, do: str = "nothing", **arguments: Any) -> httpx2.Response:
        """Call a tool over REST."""
        body = {"target": "127.0.0.1", "extra_args": f"--do {do}"} | arguments
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx2.post(f"{self.base}/tools/{tool}/execute", json=body, headers=headers, timeout=60)

    def calls(self, count: int, tool: str, do: str = "nothing", **arguments: Any) -> list[int]:
        """Call a tool many times at once and return the statuses."""
        with ThreadPoolExecutor(count) as crowd:
            return [each.status_code for each in crowd.map(lambda _: self.call(tool, do, **arguments), range(count))]

    @contextmanager
    def serving(self, *, prefix: Sequence[str] = ()) -> Iterator[None]:
        """Run the server on its port for the block."""
        # The last --port is used: the one of the scrape configuration.
        with http_server(self.env, "--port", str(self.port), prefix=prefix) as (_, self.token, self.process):
            yield

    @contextmanager
    def watching(self, *, window_sec: int = 6) -> Iterator[None]:
        """Run Prometheus with the shipped settings for the block."""
        address = f"127.0.0.1:{self.port}"
        settings = stage(self.folder / f"prometheus-{window_sec}", address, self.token, window_sec=window_sec)
        with prometheus(settings) as self.prometheus:
            yield


def prepare(folder: Path, **extra: str) -> Watched:
    """Write the tools and the configuration of a server."""
    package = f"watched_{folder.name.replace('-', '_')}"
    for made in (package, "bin", "shop"):
        (folder / made).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    (folder / package / "tools.py").write_text(MODULE.format(folder=folder))
    script = folder / "bin" / "watched-tool"
    script.write_text(SCRIPT.format(folder=folder))
    script.chmod(0o755)
    found = {
        "TOOLS_PACKAGE": package,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")])),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "MCP_CONFIG_FILE": str(folder / "config.json"),
    }
    env = environment(folder / "state", **found, **extra)
    for section in ("RATE_LIMIT", "HEALTH", "METRICS", "CIRCUIT_BREAKER"):  # variables would override the file
        env = {key: value for key, value in env.items() if not key.startswith(f"MCP_{section}_")}
    watched = Watched(folder, env, free_port())
    watched.configure()
    return watched


@contextmanager
def network_of(pid: int) -> Iterator[None]:
    """Move the calling thread, its new sockets and its new processes into the network of a process for the block."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as before, Path(f"/proc/{pid}/ns/net").open() as there:
        assert libc.setns(there.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(before.fileno(), 0) == 0, os.strerror(ctypes.get_errno())


@contextmanager
def watched_server(folder: Path) -> Iterator[Watched]:
    """Yield a server that its Prometheus has scraped."""
    made = prepare(folder)
    with ExitStack() as running:
        running.enter_context(made.serving())
        running.enter_context(made.watching())
        assert made.prometheus.until_some("up == 1"), "Prometheus did not scrape the server"
        yield made
