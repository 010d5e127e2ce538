"""One interface of a real server, and its process, for tests of a server that stops during calls."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.interfaces import ROOT, Reply, http_server, mcp_client, over_mcp, over_rest, rest_client
from tests.support.mcp_wire import MODERN_META

SERVED = ("stdio", "http", "rest")


class Interface:
    """A connection to a server process. ``base`` and ``token`` are those of the HTTP interfaces."""

    base = token = ""

    def __init__(self, process: Any, log: Path) -> None:
        self.process = process
        self.log = log

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> Reply:
        """Call a tool."""
        raise NotImplementedError

    async def read(self) -> bool:
        """Return whether a request that is not a call gets a response."""
        raise NotImplementedError

    def signal(self, number: int) -> float:
        """Send a signal to the process. Returns the time at which it was sent."""
        self.process.send_signal(number)
        return time.monotonic()

    async def exit_code(self, within: float) -> int:
        """Wait for the end of the process."""
        end = time.monotonic() + within
        while (code := self._poll()) is None:
            assert time.monotonic() < end, f"the process is still there after {within} s\n{self.log.read_text()}"
            await asyncio.sleep(0.01)
        return code

    def _poll(self) -> int | None:
        code: int | None = self.process.poll()
        return code


class _Http(Interface):
    def __init__(self, process: Any, log: Path, base: str, token: str, rest: Any, client: Any) -> None:
        super().__init__(process, log)
        self.base, self.token, self.rest, self._client = base, token, rest, client

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> Reply:
        if self._client is not None:
            return await over_mcp(self._client, tool, dict(arguments))
        return await over_rest(self.rest, tool, dict(arguments))

    async def read(self) -> bool:
        if self._client is not None:
            return bool((await self._client.list_tools()).tools)
        return bool((await self.rest.get("/runs")).status_code == 200)


class _Stdio(Interface):
    """JSON lines of the 2026-07-28 revision, with responses by id."""

    def __init__(self, process: Any, log: Path) -> None:
        super().__init__(process, log)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read())

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> Reply:
        answer = await self._ask("tools/call", name=tool, arguments=dict(arguments))
        body = answer["result"]["structuredContent"]
        return Reply(error=body.get("error"), body=body)

    async def read(self) -> bool:
        return bool((await self._ask("tools/list"))["result"]["tools"])

    async def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": {"_meta": MODERN_META, **params}}
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        await self.process.stdin.drain()
        return await self._waiting[number]

    async def _read(self) -> None:
        while line := await self.process.stdout.readline():
            message = json.loads(line)
            if message.get("id") in self._waiting:
                self._waiting.pop(message["id"]).set_result(message)
        for unanswered in self._waiting.values():
            unanswered.set_exception(ConnectionError("the server closed its output"))

    def _poll(self) -> int | None:
        code: int | None = self.process.returncode
        return code

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading


@asynccontextmanager
async def one_interface(kind: str, env: Mapping[str, str], *prefix: str) -> AsyncIterator[Interface]:
    """Serve an interface of `SERVED` in its own process. ``prefix`` is put before the command."""
    folder = Path(env["MCP_STATE_DIR"]).parent
    if kind == "stdio":
        log = folder / "stdio.log"
        with log.open("w") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(*prefix, sys.executable, "-m", "mcp_server", "serve", "--transport", "stdio"),
                env=dict(env),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                limit=16 << 20,
            )
        interface = _Stdio(process, log)
        try:
            assert await interface.read(), log.read_text()
            yield interface
        finally:
            await interface.close()
        return
    with http_server(env, prefix=prefix) as (base, token, served):
        log = folder / f"server-{base.rpartition(':')[2]}.log"
        async with rest_client(base, token) as rest:
            if kind == "rest":
                yield _Http(served, log, base, token, rest, None)
                return
            async with mcp_client(base, token) as client:
                yield _Http(served, log, base, token, rest, client)
