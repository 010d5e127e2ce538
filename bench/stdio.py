"""A raw MCP client over standard input and output: JSON lines and nothing else, so that it adds next to no time."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
BIN: Final = Path(sys.executable).parent
CONSOLE_SCRIPT: Final = (str(BIN / "mcp-network-tools"), "serve")
MODULE: Final = (sys.executable, "-m", "mcp_server.server")
FLOOR: Final = (sys.executable, str(ROOT / "bench" / "floor_server.py"))

_PATIENCE_SEC: Final = 60.0
_MODERN_META: Final = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


def child_environment(state_dir: str | Path, targets: str = "loopback") -> dict[str, str]:
    """This environment without what would make a child unlike an installed program, and with its own state folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MCP_", "COV"))}
    # One caller calls far more often, and one address, than anybody may by default.
    free = {"MCP_RATE_LIMIT_CALLS_PER_MINUTE": "0", "MCP_RATE_LIMIT_TOTAL_CALLS_PER_MINUTE": "0"}
    free |= {"MCP_ADMISSION_PER_HOST": "100", "MCP_ADMISSION_PER_ACTOR": "100"}
    return {**kept, **free, "MCP_STATE_DIR": str(state_dir), "MCP_SECURITY_ALLOWED_TARGETS": targets}


class Session:
    """A server process and the conversation with it, one request at a time."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd=ROOT
        )
        self._meta: dict[str, Any] = {}
        self._next = 0
        self._held = b""

    def open(self, revision: str = "2025-11-25") -> None:
        """Shake hands in the older era; the 2026-07-28 one has no handshake."""
        if revision == "2026-07-28":
            self._meta = {"_meta": _MODERN_META}
            return
        client = {"name": "bench", "version": "1"}
        self.request("initialize", protocolVersion=revision, capabilities={}, clientInfo=client)
        self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def request(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a request and return its result; RuntimeError for an error, TimeoutError after a minute of silence."""
        self._next += 1
        self._send({"jsonrpc": "2.0", "id": self._next, "method": method, "params": params | self._meta})
        while True:
            message = json.loads(self._line())
            if message.get("id") == self._next:
                break
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        result: dict[str, Any] = message["result"]
        return result

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool; RuntimeError where the answer is an error."""
        result = self.request("tools/call", name=tool, arguments=arguments)
        if result.get("isError"):
            raise RuntimeError(f"{tool}: {result['content']}")
        return result

    def close(self) -> None:
        """End the server by ending its input."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _send(self, message: dict[str, Any]) -> None:
        if self.process.stdin is None:
            raise RuntimeError("the server was started without a pipe")
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def _line(self) -> bytes:
        if self.process.stdout is None:
            raise RuntimeError("the server was started without a pipe")
        descriptor = self.process.stdout.fileno()
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        until = time.monotonic() + _PATIENCE_SEC
        while b"\n" not in self._held:
            if not waiting.poll(1000 * max(0.0, until - time.monotonic())):
                raise TimeoutError(f"no answer within {_PATIENCE_SEC:g} s")
            data = os.read(descriptor, 1 << 20)
            if not data:
                raise RuntimeError(f"the server ended with {self.process.wait()}")
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return line


@contextmanager
def served(
    argv: Sequence[str] = CONSOLE_SCRIPT,
    *,
    revision: str = "2025-11-25",
    targets: str = "loopback",
    tools_package: str = "",
) -> Iterator[tuple[Session, Path]]:
    """An open session with a server of its own, and that server's state folder, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="mcp-bench-") as folder:
        environment = child_environment(folder, targets) | ({"TOOLS_PACKAGE": tools_package} if tools_package else {})
        session = Session(argv, environment)
        try:
            session.open(revision)
            yield session, Path(folder)
        finally:
            session.close()
