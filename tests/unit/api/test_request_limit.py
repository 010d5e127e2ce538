"""Places for requests: one caller alone does not take those of the others."""

from __future__ import annotations

import asyncio
from typing import Any

from mcp_server.api.http.asgi import Message, Receive, Scope, Send
from mcp_server.api.http.callers import with_identity
from mcp_server.api.http.middleware import RequestLimitMiddleware
from mcp_server.identity.base import Identity
from mcp_server.model.access import FULL_ACCESS, Access, Role

LIMIT = 8
VIEWER = Access(Role.VIEWER.permissions)


class Crowd:
    """Requests through one limit, which stay until they are let go; the statuses they were answered with."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self._open = asyncio.Event()
        self._limit = RequestLimitMiddleware(self._app, LIMIT)
        self._tasks: list[asyncio.Task[int]] = []

    async def _app(self, scope: Scope, _receive: Receive, send: Send) -> None:
        self.inside.append(scope["path"])
        await self._open.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(self, name: str, access: Access = VIEWER, path: str = "/runs") -> asyncio.Task[int]:
        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        task = asyncio.create_task(self._one(with_identity(scope, Identity(name, access))))
        self._tasks.append(task)
        await asyncio.sleep(0.01)
        return task

    async def _one(self, scope: dict[str, Any]) -> int:
        statuses = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await self._limit(scope, receive, send)
        return int(statuses[0])

    async def leave(self) -> list[int]:
        self._open.set()
        return await asyncio.gather(*self._tasks)


async def test_one_caller_has_three_quarters_of_the_places_and_the_rest_is_for_others() -> None:
    crowd = Crowd()
    for _ in range(LIMIT):
        await crowd.ask("key:greedy")
    assert len(crowd.inside) == LIMIT * 3 // 4
    await crowd.ask("key:other")
    await crowd.ask("sub:third")
    await crowd.ask("key:fourth")
    assert len(crowd.inside) == LIMIT, "all places are taken, by three callers"
    statuses = await crowd.leave()
    assert statuses.count(429) == LIMIT - LIMIT * 3 // 4 + 1
    again = await crowd.ask("key:greedy")
    assert await again == 200, "what was left is free again"


async def test_an_admin_may_take_every_place() -> None:
    crowd = Crowd()
    for _ in range(LIMIT + 1):
        await crowd.ask("token", FULL_ACCESS)
    assert len(crowd.inside) == LIMIT
    assert (await crowd.leave()).count(429) == 1
