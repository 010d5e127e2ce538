"""Telling MCP clients that ``tools/list`` would answer otherwise now, in both wire eras.

Since 2026-07-28 a client asks for it with ``subscriptions/listen``, which the SDK serves. Before, the server says it on
the connection itself: on the wire of stdio, and over HTTP on the stream that the client may have opened with GET.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import mcp_types as types
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from mcp_server.api.http.request_identity import known_identity

if TYPE_CHECKING:
    from mcp.server.connection import Connection
    from mcp.server.context import ServerRequestContext

MAX_STREAMS: Final = 32
"""Clients of one interface that may listen at once; each holds a request."""
MOST_OF_ONE: Final = MAX_STREAMS * 3 // 4
"""Streams of one caller over HTTP that is no admin."""
NOTIFY_SEC: Final = 5.0
"""Seconds that one client gets to take the notice. One that does not read finds out when it calls."""


class ToolLists:
    """The clients of one interface that have a list of the tools; for one event loop."""

    def __init__(self) -> None:
        self._listen = ListenHandler(bus := InMemorySubscriptionBus(), max_subscriptions=MAX_STREAMS)
        self._bus = bus
        self._listening: Counter[str] = Counter()
        self._connections: WeakSet[Connection] = WeakSet()
        self._notifying: set[asyncio.Task[None]] = set()

    async def listen(
        self, ctx: ServerRequestContext[Any], params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        """Serve ``subscriptions/listen``; one caller alone does not get all the places."""
        caller = None if ctx.request is None else known_identity(ctx.request.scope)
        if caller is None or caller.access.sees_all_runs:
            return await self._listen(ctx, params)
        if self._listening[caller.name] >= MOST_OF_ONE:
            raise MCPError(types.INTERNAL_ERROR, f"{MOST_OF_ONE} streams of this caller listen, the share of one")
        self._listening[caller.name] += 1
        try:
            return await self._listen(ctx, params)
        finally:
            self._listening[caller.name] -= 1
            if not self._listening[caller.name]:
                del self._listening[caller.name]

    def given_to(self, ctx: ServerRequestContext[Any]) -> None:
        """Note that the client of this request has a list now."""
        if ctx.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
            self._connections.add(ctx.session._connection)  # noqa: SLF001 - what outlives the request has no other name

    def changed(self) -> None:
        """Tell every one of them, without waiting for any."""
        waiting = [self._bus.publish(ToolsListChanged()), *map(_notify, list(self._connections))]
        for each in waiting:
            task = asyncio.create_task(each)
            self._notifying.add(task)
            task.add_done_callback(self._notifying.discard)

    def close(self) -> None:
        """End the streams of ``subscriptions/listen``, each with its last answer."""
        self._listen.close()


async def _notify(connection: Connection) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(NOTIFY_SEC):
            await connection.send_tool_list_changed()
