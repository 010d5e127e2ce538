"""A server over HTTP with several authenticated callers that have different permissions, and clients for it.

As a program, this is the command line of the project without authentication: the text of a credential names the
caller.

- ``ROLE.NAME`` is the actor ``key:NAME`` with that role and the limits of the actors file.
- ``seed.NAME`` is the same actor with all permissions.
- ``only+SCOPE.NAME`` is the same actor with only that scope.

Other tests cover how a real credential is checked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from mcp_server.api.http.asgi import Receive, Scope, Send, header_values
from mcp_server.api.http.callers import with_identity
from mcp_server.identity.actors import CurrentDirectory
from mcp_server.identity.base import Identity, bounded
from mcp_server.model.access import FULL_ACCESS, Permission, Role
from tests.support.interfaces import environment
from tests.support.mcp_wire import INITIALIZED, MODERN_META, initialize, request

MODULE = "tests.support.several_callers"
TOOLS = """
from mcp_server.base_tool import MCPBaseTool
from mcp_server.model.run import Risk

class PassiveTool(MCPBaseTool):
    command_name = "true"
    risk = Risk.PASSIVE

class ProbingTool(MCPBaseTool):
    command_name = "true"
    risk = Risk.PROBE

class ScanningTool(MCPBaseTool):
    command_name = "true"
    risk = Risk.SCAN

class IntrudingTool(MCPBaseTool):
    command_name = "true"
    risk = Risk.INTRUSIVE
"""
"""One tool of each risk. The program that they start does nothing."""


def caller_environment(folder: Path, actors: str | None, **extra: str) -> dict[str, str]:
    """Return the environment of such a server; ``actors`` is the text of its actors file."""
    package = f"caller_tools_{folder.name.replace('-', '_')}"
    (folder / f"{package}.py").write_text(TOOLS)
    own = {"MCP_SERVER_AUTH": "none", "MCP_SECURITY_ALLOW_INTRUSIVE": "true", "TOOLS_PACKAGE": package}
    own |= {"PYTHONPATH": str(folder)}
    if actors is not None:
        own["MCP_AUTH_ACTORS_FILE"] = str(folder / "actors.yaml")
        (folder / "actors.yaml").write_text(actors)
        (folder / "actors.yaml").chmod(0o600)
    return environment(folder / "state", **own, **extra)


def identity(credential: str, directory: CurrentDirectory) -> Identity:
    """Return the identity that a credential names."""
    role, _, name = credential.partition(".")
    if role == "seed":
        return Identity(f"key:{name}", FULL_ACCESS)
    scope = role.removeprefix("only+")
    if scope != role:
        held = bounded(directory.find(f"key:{name}", Role.ADMIN), frozenset({Permission(scope)}))
        return Identity(f"key:{name}", held)
    return Identity(f"key:{name}", directory.find(f"key:{name}", Role(role)))


@dataclass(frozen=True, slots=True)
class Said:
    """A response: ``outcome`` is ``ok`` or the error code, ``body`` is the parsed document."""

    outcome: str
    status: int
    headers: httpx2.Headers
    body: dict[str, Any]
    content: bytes


class Rest:
    """The REST interface for one caller."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.client = client

    async def ask(self, method: str, path: str, **options: Any) -> Said:
        answer = await self.client.request(method, path, **options)
        is_json = "json" in answer.headers.get("content-type", "")
        body = answer.json() if is_json else {}
        outcome = body.get("code", str(answer.status_code)) if answer.status_code >= 400 else "ok"
        return Said(outcome, answer.status_code, answer.headers, body, answer.content)

    async def tool(self, name: str, target: str) -> Said:
        return await self.ask("POST", f"/tools/{name}/execute", json={"target": target})


class Mcp:
    """The MCP interface for one caller, in revision 2026-07-28 (``modern``) or 2025-06-18."""

    def __init__(self, client: httpx2.AsyncClient, *, modern: bool) -> None:
        self.client = client
        self.modern = modern
        self.session: dict[str, str] = {}

    async def open(self) -> None:
        if self.modern:
            return
        opened = await self.client.post("/mcp", json=initialize(1))
        assert opened.status_code == 200, opened.text
        self.session = {
            "Mcp-Session-Id": opened.headers["mcp-session-id"],
            "MCP-Protocol-Version": "2025-06-18",
        }
        ready = await self.client.post("/mcp", json=INITIALIZED, headers=self.session)
        assert ready.status_code == 202, ready.text

    async def ask(self, method: str, headers: Mapping[str, str] | None = None, **params: Any) -> Said:
        own = self.session
        if self.modern:
            params = {"_meta": MODERN_META, **params}
            own = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": method}
            named = params.get("name") or params.get("uri")
            own |= {"Mcp-Name": named} if named else {}
        answer = await self.client.post("/mcp", json=request(2, method, **params), headers={**own, **(headers or {})})
        lines = [line.removeprefix("data:") for line in answer.text.splitlines() if line.startswith("data:")]
        body = json.loads(lines[-1] if lines else answer.text)
        return Said(_outcome(body), answer.status_code, answer.headers, body, answer.content)

    async def tool(self, name: str, target: str) -> Said:
        return await self.ask("tools/call", name=name, arguments={"target": target})


def _outcome(body: dict[str, Any]) -> str:
    if "code" in body:  # a problem document (RFC 9457)
        return str(body["code"])
    if "error" in body:
        data = body["error"].get("data")
        return data["code"] if isinstance(data, dict) and "code" in data else str(body["error"]["code"])
    result = body["result"]
    return result["structuredContent"]["error"]["code"] if result.get("isError") else "ok"


@asynccontextmanager
async def coming_as(base: str, credential: str) -> AsyncIterator[httpx2.AsyncClient]:
    """Yield an HTTP client with this credential."""
    headers = {"Authorization": f"Bearer {credential}", "Accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(base_url=base, headers=headers, timeout=60) as client:
        yield client


def main() -> None:
    """Run the command line, with credentials that name the caller."""
    from mcp_server.api.http import authorization as permissions

    class UnauthenticatedPermissionMiddleware(permissions.PermissionMiddleware):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                credential = header_values(scope, b"authorization")[0].decode().removeprefix("Bearer ")
                scope = with_identity(
                    scope, identity(credential, CurrentDirectory(lambda: self._pipeline.current.value.actors))
                )
            await super().__call__(scope, receive, send)

    permissions.PermissionMiddleware = UnauthenticatedPermissionMiddleware  # type: ignore[misc]  # the only change
    from mcp_server.cli import main as command_line

    sys.argv[0] = "mcp-network-tools"
    command_line()


if __name__ == "__main__":
    main()
