"""Notifies MCP clients that the list of tools has changed, in all protocol revisions.

Since 2026-07-28 a client subscribes with ``subscriptions/listen``, which the SDK serves. In earlier revisions the
server sends a notification: over stdio on the connection, over HTTP on the stream that the client may have opened with
GET.
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

from mcp_server.api.http.callers import find_identity

if TYPE_CHECKING:
    from mcp.server.connection import Connection
    from mcp.server.context import ServerRequestContext

MAX_STREAMS: Final = 32
"""Maximum number of clients of one interface that listen at the same time. Each one is a request in progress."""
MOST_OF_ONE: Final = MAX_STREAMS * 3 // 4
"""Maximum number of streams over HTTP for one caller that is not an admin."""
NOTIFY_SEC: Final = 5.0
"""Seconds that a notification may take. A client that does not read learns of the change at its next call."""


class ToolLists:
    """The clients of one interface that have asked for the list of tools. For one event loop."""

    def __init__(self) -> None:
        self._listen = ListenHandler(bus := InMemorySubscriptionBus(), max_subscriptions=MAX_STREAMS)
        self._bus = bus
        self._listening: Counter[str] = Counter()
        self._connections: WeakSet[Connection] = WeakSet()
        self._notifying: set[asyncio.Task[None]] = set()

    async def listen(
        self, ctx: ServerRequestContext[Any], params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        """Serve ``subscriptions/listen``. One caller cannot use all the streams."""
        caller = None if ctx.request is None else find_identity(ctx.request.scope)
        if caller is None or caller.access.sees_all_runs:
            return await self._listen(ctx, params)
        if self._listening[caller.name] >= MOST_OF_ONE:
            raise MCPError(
                types.INTERNAL_ERROR, f"This caller has {MOST_OF_ONE} streams, as many as one caller may have."
            )
        self._listening[caller.name] += 1
        try:
            return await self._listen(ctx, params)
        finally:
            self._listening[caller.name] -= 1
            if not self._listening[caller.name]:
                del self._listening[caller.name]

    def note_client(self, ctx: ServerRequestContext[Any]) -> None:
        """Remember the client of this request, because it receives the tool list now."""
        if ctx.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
            self._connections.add(ctx.session._connection)  # noqa: SLF001 - the SDK has no public name for what outlives the request

    def changed(self) -> None:
        """Notify every client, without waiting for any."""
        waiting = [self._bus.publish(ToolsListChanged()), *map(_notify, list(self._connections))]
        for each in waiting:
            task = asyncio.create_task(each)
            self._notifying.add(task)
            task.add_done_callback(self._notifying.discard)


async def _notify(connection: Connection) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(NOTIFY_SEC):
            await connection.send_tool_list_changed()
