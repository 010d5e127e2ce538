"""A minimal MCP client over stdio: it reads and writes JSON lines, so that it adds almost no time."""

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

_TIMEOUT_SEC: Final = 60.0
_MODERN_META: Final = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


def child_environment(state_dir: str | Path, targets: str = "loopback") -> dict[str, str]:
    """Return the environment of an installed program: without variables of Python, and with its own state folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MCP_", "COV"))}
    # A benchmark makes more calls, and to one address, than the default limits allow.
    free = {"MCP_RATE_LIMIT_CALLS_PER_MINUTE": "0", "MCP_RATE_LIMIT_TOTAL_CALLS_PER_MINUTE": "0"}
    free |= {"MCP_ADMISSION_PER_HOST": "100", "MCP_ADMISSION_PER_ACTOR": "100"}
    return {**kept, **free, "MCP_STATE_DIR": str(state_dir), "MCP_SECURITY_ALLOWED_TARGETS": targets}


def argv_of_last_call(state_dir: Path) -> tuple[str, ...]:
    """Return the argv of the last decision on the audit log."""
    records = map(json.loads, (state_dir / "audit.jsonl").read_text().splitlines())
    return tuple([record for record in records if record["event"] == "decision"][-1]["argv"])


class Session:
    """A server process and a client for it that sends one request at a time."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd=ROOT
        )
        self._meta: dict[str, Any] = {}
        self._next = 0
        self._buffer = b""

    def open(self, revision: str = "2025-11-25") -> None:
        """Initialize the session; revision 2026-07-28 has no handshake."""
        if revision == "2026-07-28":
            self._meta = {"_meta": _MODERN_META}
            return
        client = {"name": "bench", "version": "1"}
        self.request("initialize", protocolVersion=revision, capabilities={}, clientInfo=client)
        self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def request(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a request and return its result; raise RuntimeError for an error, TimeoutError after a minute."""
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
        """Call a tool and return its result; raise RuntimeError if it is an error."""
        result = self.request("tools/call", name=tool, arguments=arguments)
        if result.get("isError"):
            raise RuntimeError(f"{tool}: {result['content']}")
        return result

    def close(self) -> None:
        """Close the input of the server and wait for its end."""
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
            raise RuntimeError("The server was started without a pipe.")
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def _line(self) -> bytes:
        if self.process.stdout is None:
            raise RuntimeError("The server was started without a pipe.")
        descriptor = self.process.stdout.fileno()
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        until = time.monotonic() + _TIMEOUT_SEC
        while b"\n" not in self._buffer:
            if not waiting.poll(1000 * max(0.0, until - time.monotonic())):
                raise TimeoutError(f"No response within {_TIMEOUT_SEC:g} s.")
            data = os.read(descriptor, 1 << 20)
            if not data:
                raise RuntimeError(f"The server ended with {self.process.wait()}.")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


@contextmanager
def served(
    argv: Sequence[str] = CONSOLE_SCRIPT,
    *,
    revision: str = "2025-11-25",
    targets: str = "loopback",
    tools_package: str = "",
) -> Iterator[tuple[Session, Path]]:
    """Start a server and open a session; yield the session and the state folder, which is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="mcp-bench-") as folder:
        environment = child_environment(folder, targets) | ({"TOOLS_PACKAGE": tools_package} if tools_package else {})
        session = Session(argv, environment)
        try:
            session.open(revision)
            yield session, Path(folder)
        finally:
            session.close()
