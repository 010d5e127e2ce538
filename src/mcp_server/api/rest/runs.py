"""REST routes that show stored runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from mcp_server.api.http.callers import rest_actor
from mcp_server.api.http.problems import COMMON_STATUSES, problem_responses
from mcp_server.api.rest.schemas import RunList, RunPage
from mcp_server.api.runs import raw_of, reader, run_page, run_record
from mcp_server.model.run import Outcome

if TYPE_CHECKING:
    from mcp_server.store.base import Store

HOSTS_PER_PAGE: Final = 100

RunId = Annotated[str, Path(description="A run's id", examples=["r_0123456789abcdef01234567"])]
Cursor = Annotated[
    str | None,
    Query(
        description="next_cursor of the previous page, unchanged. Without it: the first page",
        # Only documented here. The store checks it, and its error says what to send instead.
        json_schema_extra={"minLength": 1, "pattern": "^[A-Za-z0-9_-]+$"},
    ),
]
_RAW: Final[dict[str, Any]] = {
    "description": "The bytes as the tool wrote them",
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    "headers": {
        "Content-Disposition": {"required": True, "schema": {"type": "string", "pattern": "^attachment; "}},
        "X-Content-Type-Options": {"required": True, "schema": {"const": "nosniff"}},
        "X-Content-SHA256": {"required": True, "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
    },
}


def add_run_routes(app: FastAPI, open_store: Callable[[], Awaitable[Store]]) -> None:
    """Add ``GET /runs``, ``GET /runs/{run_id}`` and ``GET /runs/{run_id}/raw``."""

    @app.get(
        "/runs",
        summary="Runs, newest first, in pages",
        responses=problem_responses(*COMMON_STATUSES) | {200: {"model": RunList}},
    )
    async def runs(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        cursor: Cursor = None,
        tool: Annotated[str | None, Query(description="Only runs of this tool")] = None,
        outcome: Annotated[Outcome | None, Query(description="Only runs with this outcome")] = None,
    ) -> dict[str, Any]:
        caller = reader(rest_actor(request))
        page = await (await open_store()).list_runs(
            limit=limit, cursor=cursor, tool=tool, outcome=outcome, caller=caller
        )
        return {"runs": [run_record(run) for run in page.items], "total": page.total, "next_cursor": page.next_cursor}

    @app.get(
        "/runs/{run_id}",
        summary="One run, with a page of the hosts that it saw",
        responses=problem_responses(*COMMON_STATUSES, 404) | {200: {"model": RunPage}},
    )
    async def run(
        request: Request,
        run_id: RunId,
        limit: Annotated[int, Query(ge=1, le=1000)] = HOSTS_PER_PAGE,
        cursor: Cursor = None,
    ) -> dict[str, Any]:
        caller = reader(rest_actor(request))
        return await run_page(await open_store(), run_id, limit=limit, cursor=cursor, caller=caller)

    @app.get(
        "/runs/{run_id}/raw",
        summary="The tool's own output, byte for byte",
        response_class=Response,
        responses=problem_responses(*COMMON_STATUSES, 404, 409) | {200: _RAW},
    )
    async def raw(request: Request, run_id: RunId) -> Response:
        caller = reader(rest_actor(request))
        store = await open_store()
        record = await store.get_run(run_id, caller=caller)
        kept = raw_of(record)
        # Read the first piece before the status is sent, so that missing or damaged content is not answered with 200.
        pieces = store.iter_raw(kept)
        first = await anext(pieces, b"")

        async def content() -> AsyncIterator[bytes]:
            yield first
            async for piece in pieces:
                yield piece

        headers = {
            # A browser must never display the text of a scanned host as a page of this server.
            "Content-Disposition": f'attachment; filename="{record.id}.raw"',
            "X-Content-Type-Options": "nosniff",
            "X-Content-SHA256": kept.sha256,
            "Content-Length": str(kept.size),
        }
        return StreamingResponse(content(), media_type="application/octet-stream", headers=headers)
