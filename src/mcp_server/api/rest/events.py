"""``GET /events``: what happens on the server, as a stream of server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import Field

from mcp_server import metrics
from mcp_server.api.http.problems import GUARDED, problem_responses
from mcp_server.api.http.request_identity import caller
from mcp_server.api.runs import reader
from mcp_server.observability.events import KINDS, LAGGED, MAX_SUBSCRIBERS, Event, Subscription, read_kinds

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from mcp_server.server.enhanced import EnhancedMCPServer

HEARTBEAT_SEC: Final = 15.0
"""Seconds without an event after which a comment is sent: proxies close what is silent for a minute."""
LONGEST_SEC: Final = 3600.0
"""Seconds after which a stream is ended, so that a reader which is not there any more keeps no place for ever.

A browser comes back by itself with the id of the last event, and misses none.
"""
RETRY_MS: Final = 3000
"""Milliseconds a browser waits before it comes back."""

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold events back until it has a buffer full of them
    "X-Content-Type-Options": "nosniff",
}
_STREAM: Final[dict[str, Any]] = {
    "description": "A stream without an end of server-sent events; the data of each is one JSON object",
    "content": {
        "text/event-stream": {
            # OpenAPI 3.2's word for what each item of a stream is, which readers of 3.1 pass over.
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
    # Said, not checked here: what reads them says more about a wrong one.
    Field(json_schema_extra={"pattern": f"^({_NAMES})( *, *({_NAMES}))*$"}),
]


def add_event_routes(
    app: FastAPI, server: EnhancedMCPServer, *, heartbeat_sec: float = HEARTBEAT_SEC, longest_sec: float = LONGEST_SEC
) -> None:
    """Add the stream of ``server.pipeline.events`` to the REST application, and count its readers."""
    metrics.gauge_function("mcp_event_subscribers", lambda: server.pipeline.events.subscribers)

    @app.get(
        "/events",
        summary="What happens, as server-sent events: runs, refusals, health, alarms",
        response_class=StreamingResponse,
        responses={200: _STREAM, **problem_responses(*GUARDED)},
    )
    async def events(
        request: Request,
        kind: Annotated[
            list[_Kinds] | None,
            Query(description="Only these: run, call, health, alarm, config, tool, server, or a kind; commas between"),
        ] = None,
        last_event_id: Annotated[
            str | None, Header(description="The id of the last event the reader has had; those since then come first")
        ] = None,
    ) -> StreamingResponse:
        his, kinds = reader(caller(request)), read_kinds(kind or ())
        # Streams count as requests under way: half of those places stay for everything else.
        limit = max(1, min(MAX_SUBSCRIBERS, server.config.server.max_connections // 2))
        subscription = server.pipeline.events.subscribe(kinds, after=last_event_id, limit=limit, reader=his)
        return _Stream(subscription, heartbeat_sec, longest_sec)


class _Stream(StreamingResponse):
    """The answer that sends a subscription's events until either side ends it."""

    media_type = "text/event-stream"

    def __init__(self, subscription: Subscription, heartbeat_sec: float, longest_sec: float) -> None:
        super().__init__(_pieces(subscription, heartbeat_sec, longest_sec), headers=_HEADERS)
        self._subscription = subscription

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # However it ends: a reader that went away in the middle of a send must not keep its place.
            self._subscription.close()


async def _pieces(subscription: Subscription, heartbeat_sec: float, longest_sec: float) -> AsyncIterator[bytes]:
    # An id without data is no event, but a reader that loses the connection now comes back with it.
    yield format_sse_event(id=subscription.position, retry=RETRY_MS)
    loop = asyncio.get_running_loop()
    end = loop.time() + longest_sec
    while (left := end - loop.time()) > 0:
        try:
            async with asyncio.timeout(min(heartbeat_sec, left)):
                events = await subscription.take()
        except TimeoutError:
            # The id as well: a reader of few kinds would come back with one that is not kept any more.
            yield format_sse_event(comment="", id=subscription.position)
            continue
        if not events:
            return
        yield b"".join(map(_block, events))


def _block(event: Event) -> bytes:
    return format_sse_event(data_str=event.json, event=event.kind, id=event.id or None)
