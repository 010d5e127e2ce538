"""Slots for requests: one caller cannot use all of them."""

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
    """Requests through one limit. They wait until `leave`, which returns the statuses of their responses."""

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


async def test_one_caller_gets_at_most_three_quarters_of_the_slots() -> None:
    crowd = Crowd()
    for _ in range(LIMIT):
        await crowd.ask("key:greedy")
    assert len(crowd.inside) == LIMIT * 3 // 4
    await crowd.ask("key:other")
    await crowd.ask("sub:third")
    await crowd.ask("key:fourth")
    assert len(crowd.inside) == LIMIT, "three callers together must be able to use all slots"
    statuses = await crowd.leave()
    assert statuses.count(429) == LIMIT - LIMIT * 3 // 4 + 1
    again = await crowd.ask("key:greedy")
    assert await again == 200, "slots of finished requests must be free again"


async def test_an_admin_may_use_every_slot() -> None:
    crowd = Crowd()
    for _ in range(LIMIT + 1):
        await crowd.ask("token", FULL_ACCESS)
    assert len(crowd.inside) == LIMIT
    assert (await crowd.leave()).count(429) == 1
