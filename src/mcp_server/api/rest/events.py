"""``GET /events``: the events of the server, as a stream of server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import Field

from mcp_server import metrics
from mcp_server.api.http.callers import rest_actor
from mcp_server.api.http.problems import COMMON_STATUSES, problem_responses
from mcp_server.api.runs import reader
from mcp_server.observability.events import KINDS, LAGGED, MAX_SUBSCRIBERS, Event, EventBus, Subscription, read_kinds

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

HEARTBEAT_SEC: Final = 15.0
"""Seconds without an event after which a comment is sent. Proxies close a connection that is idle for a minute."""
LONGEST_SEC: Final = 3600.0
"""Seconds after which a stream is ended, so that a reader that has disappeared does not occupy a stream for ever.

A browser reconnects by itself with the id of the last event, and misses none.
"""
RETRY_MS: Final = 3000
"""Milliseconds that a browser waits before it reconnects."""

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # otherwise nginx collects events until its buffer is full
    "X-Content-Type-Options": "nosniff",
}
_STREAM: Final[dict[str, Any]] = {
    "description": "An endless stream of server-sent events. The data of each is one JSON object",
    "content": {
        "text/event-stream": {
            # The key of OpenAPI 3.2 for the items of a stream. Readers of 3.1 ignore it.
            "itemSchema": {
                "type": "object",
                "required": ["event", "data"],
                "properties": {
                    "id": {"type": "string"},
                    "event": {"enum": [*KINDS, LAGGED]},
                    "data": {
                        "type": "string",
                        "contentMediaType": "application/json",
                        "contentSchema": {"type": "object", "required": ["kind", "at"]},
                    },
                },
            }
        }
    },
    "headers": {"Cache-Control": {"required": True, "schema": {"const": "no-store"}}},
}
_NAMES: Final = "|".join(sorted({name for kind in KINDS for name in (kind, kind.partition(".")[0])})).replace(
    ".", r"\."
)
_Kinds = Annotated[
    str,
    # Only documented here. `read_kinds` checks it, and its error says more.
    Field(json_schema_extra={"pattern": f"^({_NAMES})( *, *({_NAMES}))*$"}),
]


def add_event_routes(
    app: FastAPI,
    events: EventBus,
    max_connections: Callable[[], int],
    *,
    heartbeat_sec: float = HEARTBEAT_SEC,
    longest_sec: float = LONGEST_SEC,
) -> None:
    """Add ``GET /events``, and a metric of its readers."""
    metrics.gauge_function("mcp_event_subscribers", lambda: events.subscribers)

    @app.get(
        "/events",
        summary="Events as they happen: runs, refusals, health, alarms (server-sent events)",
        response_class=StreamingResponse,
        responses={200: _STREAM, **problem_responses(*COMMON_STATUSES)},
    )
    async def stream(
        request: Request,
        kind: Annotated[
            list[_Kinds] | None,
            Query(
                description="Only these: run, call, health, alarm, config, tool, server, or a single kind. Separate "
                "several by commas"
            ),
        ] = None,
        last_event_id: Annotated[
            str | None, Header(description="The id of the last event that was received. Later events are sent first")
        ] = None,
    ) -> StreamingResponse:
        caller, kinds = reader(rest_actor(request)), read_kinds(kind or ())
        # Streams are requests in progress. Half of the allowed requests stay free for all others.
        limit = max(1, min(MAX_SUBSCRIBERS, max_connections() // 2))
        subscription = events.subscribe(kinds, after=last_event_id, limit=limit, reader=caller)
        return _Stream(subscription, heartbeat_sec, longest_sec)


class _Stream(StreamingResponse):
    """Sends the events of a subscription until either side ends the connection."""

    media_type = "text/event-stream"

    def __init__(self, subscription: Subscription, heartbeat_sec: float, longest_sec: float) -> None:
        super().__init__(_pieces(subscription, heartbeat_sec, longest_sec), headers=_HEADERS)
        self._subscription = subscription

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # This also runs if the reader disconnects in the middle of a send.
            self._subscription.close()


async def _pieces(subscription: Subscription, heartbeat_sec: float, longest_sec: float) -> AsyncIterator[bytes]:
    # A block with an id and no data is not an event. A reader that loses the connection now reconnects with this id.
    yield format_sse_event(id=subscription.position, retry=RETRY_MS)
    loop = asyncio.get_running_loop()
    end = loop.time() + longest_sec
    while (left := end - loop.time()) > 0:
        try:
            async with asyncio.timeout(min(heartbeat_sec, left)):
                events = await subscription.take()
        except TimeoutError:
            # The comment has an id. Otherwise a reader of few kinds could reconnect with an id that is no longer kept.
            yield format_sse_event(comment="", id=subscription.position)
            continue
        if not events:
            return
        yield b"".join(map(_block, events))


def _block(event: Event) -> bytes:
    return format_sse_event(data_str=event.json, event=event.kind, id=event.id or None)
