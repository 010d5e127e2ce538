"""Makes one call through every interface of a real server, and brings the answers to one form."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx2
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from mcp_server.api.http.callers import with_identity
from mcp_server.identity.base import Identity
from mcp_server.model.access import FULL_ACCESS

SCOPE = "loopback,RFC1918,.lab.internal"
INTERFACES = ("stdio", "http", "rest", "cli")
ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reply:
    """The response of an interface: ``error`` is the problem (code, message, hint, retryable) or None, ``body`` the
    rest.

    ``status`` is the HTTP status, the exit code, or the code of a protocol error, if the interface has one.
    """

    error: dict[str, Any] | None
    body: dict[str, Any]
    text: str = ""
    status: int | None = None

    @property
    def code(self) -> str | None:
        return self.error["code"] if self.error else None


def environment(state: Path, **extra: str) -> dict[str, str]:
    """Return the environment of a server under test: the current one without any setting of the project."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MCP_", "TOOL", "LOG_"))}
    # Set explicitly, because the best tier that works differs between machines.
    own = {"MCP_STATE_DIR": str(state), "MCP_SECURITY_ALLOWED_TARGETS": SCOPE, "MCP_SECURITY_GUARD": "argument"}
    # Tests call often, and always the same address; other tests check these limits.
    own |= {"MCP_RATE_LIMIT_CALLS_PER_MINUTE": "0", "MCP_RATE_LIMIT_TOTAL_CALLS_PER_MINUTE": "0"}
    own |= {"MCP_AUTH_LOCKOUT_FAILURES": "0"}
    own |= {"MCP_ADMISSION_PER_HOST": "100", "MCP_ADMISSION_PER_ACTOR": "100"}
    return kept | own | extra


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def http_server(
    env: Mapping[str, str], *arguments: str, prefix: Sequence[str] = (), module: str = "mcp_server"
) -> Iterator[tuple[str, str, subprocess.Popen[str]]]:
    """Serve HTTP in a child process; yield its base URL, its token, and the process.

    ``module`` is the module to run; ``prefix`` is put before the command, as in ``("setpriv", "--reuid=65534")``. The
    log of the server is in ``server-PORT.log`` beside the state folder.
    """
    port = free_port()
    command = [sys.executable, "-m", module, "serve", "--transport", "http", "--port", str(port), *arguments]
    log = Path(env["MCP_STATE_DIR"]).parent / f"server-{port}.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*prefix, *command], env=dict(env), cwd=ROOT, stderr=stderr, stdout=subprocess.DEVNULL, text=True
        )
    try:
        deadline = time.monotonic() + 30
        while "Listening on" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        token_file = Path(env["MCP_STATE_DIR"]) / "token"
        yield f"http://127.0.0.1:{port}", token_file.read_text().strip() if token_file.exists() else "", process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        finally:
            process.kill()


def spawned(state: Path) -> list[dict[str, Any]]:
    """Return the ends of calls for which a process ran, from the audit log."""
    return [record for record in log_records(state) if record["event"] == "end" and "pid" in record]


def log_records(state: Path) -> list[dict[str, Any]]:
    """Return every record of the audit log, or none if there is no log."""
    log = state / "audit.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def accepted(state: Path) -> list[dict[str, Any]]:
    """Return the calls that were allowed, from the audit log: no process starts without such a record."""
    return [record for record in log_records(state) if record.get("decision") == "accept"]


@dataclass(slots=True)
class Interfaces:
    """A stdio server, an HTTP server (MCP and REST) and the command line, with one state folder."""

    env: dict[str, str]
    stdio: Client
    http: Client
    rest: httpx2.AsyncClient
    token: str
    base: str
    prefix: tuple[str, ...] = ()

    async def call(self, interface: str, tool: str, arguments: dict[str, Any]) -> Reply:
        """Call a tool through one interface."""
        match interface:
            case "stdio":
                return await over_mcp(self.stdio, tool, arguments)
            case "http":
                return await over_mcp(self.http, tool, arguments)
            case "rest":
                return await over_rest(self.rest, tool, arguments)
            case _:
                return await over_cli(self.env, tool, arguments, prefix=self.prefix)


async def over_mcp(client: Client, tool: str, arguments: dict[str, Any]) -> Reply:
    """Call over MCP; protocol errors and tool errors are returned in the same form."""
    try:
        result = await client.call_tool(tool, arguments)
    except MCPError as error:
        return Reply(error=error.error.data, body={}, text=error.error.message, status=error.error.code)
    body = result.structured_content or {}
    text = "\n".join(getattr(block, "text", "") for block in result.content)
    assert result.is_error == ("error" in body), f"isError is {result.is_error}, which does not agree with {body}"
    return Reply(error=body.get("error"), body=body, text=text)


async def over_rest(client: httpx2.AsyncClient, tool: str, arguments: dict[str, Any]) -> Reply:
    """Call over REST; a problem body is the error."""
    # The encoder of the client is not used: it writes characters as they are, and a lone surrogate has no UTF-8.
    response = await client.post(
        f"/tools/{tool}/execute", content=json.dumps(arguments), headers={"Content-Type": "application/json"}
    )
    body = response.json()
    is_problem = response.headers["content-type"].startswith("application/problem+json")
    assert is_problem == (response.status_code >= 400), f"{response.status_code} with {response.text}"
    return Reply(error=body if is_problem else None, body=body, text=response.text, status=response.status_code)


def cli_words(arguments: Mapping[str, Any]) -> list[str]:
    """Return arguments as the command line takes them."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in arguments.items()]


async def over_cli(
    env: Mapping[str, str], tool: str, arguments: Mapping[str, Any], *, prefix: Sequence[str] = ()
) -> Reply:
    """Call through the command line, in another process, with ``--json``."""
    command = [*prefix, sys.executable, "-m", "mcp_server", "call", tool, *cli_words(arguments), "--json"]
    process = await asyncio.create_subprocess_exec(
        *command, env=dict(env), cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    return cli_reply(process.returncode, out.decode(), err.decode())


def cli_reply(status: int | None, out: str, err: str) -> Reply:
    """Parse the output of ``call --json``."""
    assert out, err
    body = json.loads(out)
    assert bool(status) == ("error" in body), f"the exit code is {status}, which does not agree with {body}"
    return Reply(error=body.get("error") if status else None, body=body, text=out, status=status)


@asynccontextmanager
async def open_interfaces(state: Path, *, prefix: tuple[str, ...] = (), **extra: str) -> AsyncIterator[Interfaces]:
    """Start a server for each interface with one state folder, and connect to them; ``prefix`` as for `http_server`."""
    env = environment(state, **extra)
    command = [*prefix, sys.executable, "-m", "mcp_server.server"]
    parameters = StdioServerParameters(command=command[0], args=command[1:], env=env, cwd=ROOT)
    with http_server(env, prefix=prefix) as (base, token, _):
        async with (
            rest_client(base, token) as rest,
            Client(parameters) as stdio,
            mcp_client(base, token) as http,
        ):
            yield Interfaces(env, stdio, http, rest, token, base, prefix)


def owned(app: Any) -> Any:
    """Return ``app`` for the operator."""

    async def known(scope: Any, receive: Any, send: Any) -> None:
        await app(with_identity(scope, Identity("token", FULL_ACCESS)), receive, send)

    return known


def rest_client(base: str, token: str) -> httpx2.AsyncClient:
    """A client of the REST interface."""
    return httpx2.AsyncClient(base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=120)


@asynccontextmanager
async def mcp_client(
    base: str, token: str, *, mode: Literal["auto", "legacy"] = "auto", **options: Any
) -> AsyncIterator[Client]:
    """A client of MCP over HTTP."""
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=120) as wire,
        Client(streamable_http_client(f"{base}/mcp", http_client=wire), mode=mode, **options) as client,
    ):
        yield client


@asynccontextmanager
async def in_own_task(manager: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave ``manager`` in one task, as its cancel scopes require, whatever the task of a fixture is."""
    entered: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    leave = asyncio.Event()

    async def hold() -> None:
        try:
            async with manager as value:
                entered.set_result(value)
                await leave.wait()
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(error)

    task = asyncio.create_task(hold())
    try:
        yield await entered
    finally:
        leave.set()
        await task
