"""Stored runs as MCP resources: ``run://{id}`` is a run with its hosts, ``run://{id}/raw`` its raw output.

Both are read in pages of limited size. A page names the next page, in its field ``next`` and in ``_meta``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

import mcp_types as types
from mcp.shared.exceptions import MCPError

from mcp_server.api.runs import raw_of, reader, run_page
from mcp_server.errors import ArgumentError, NetworkToolsError, NotFoundError, PlatformError
from mcp_server.model.untrusted import sanitize
from mcp_server.pipeline.respond import sanitize_lines, whole_characters

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext

    from mcp_server.model.run import Actor, Run
    from mcp_server.store.base import Store

HOSTS_PER_PAGE = 50
RAW_PAGE_BYTES = 64 * 1024
RUNS_PER_PAGE = 50

_RUN_URI = re.compile(r"run://(?P<id>[A-Za-z0-9_-]{1,100})(?P<raw>/raw)?/?(?:\?(?P<query>[^#]*))?")


class RunResources:
    """The resource handlers of the MCP interface.

    ``caller`` returns the actor behind a message. ``invalidate`` is called if the store fails.
    """

    def __init__(
        self,
        open_store: Callable[[], Awaitable[Store]],
        caller: Callable[[ServerRequestContext[Any]], Actor],
        invalidate: Callable[[], None],
    ) -> None:
        self._open_store = open_store
        self._caller = caller
        self._invalidate = invalidate

    async def list_templates(
        self, _ctx: ServerRequestContext[Any], _params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        """List the two kinds of URI."""
        return types.ListResourceTemplatesResult(
            resource_templates=[
                types.ResourceTemplate(
                    name="run",
                    uri_template="run://{run_id}{?cursor}",
                    description="A run: outcome, coverage and every host it saw, in pages.",
                    mime_type="application/json",
                ),
                types.ResourceTemplate(
                    name="run_raw",
                    uri_template="run://{run_id}/raw{?offset}",
                    description="The tool's own output, in pages of 64 KiB, with active characters escaped.",
                    mime_type="text/plain",
                ),
            ]
        )

    async def list_resources(
        self, ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        """List runs, newest first."""
        try:
            caller = reader(self._caller(ctx))
            store = await self._open_store()
            page = await store.list_runs(limit=RUNS_PER_PAGE, cursor=params.cursor if params else None, caller=caller)
        except NetworkToolsError as error:
            raise self._protocol_error(error) from None
        return types.ListResourcesResult(
            resources=[
                types.Resource(
                    uri=f"run://{run.id}",
                    name=run.id,
                    title=f"{run.tool} {run.outcome.value} {run.started:%Y-%m-%d %H:%M:%SZ}",
                    mime_type="application/json",
                )
                for run in page.items
            ],
            next_cursor=page.next_cursor,
        )

    async def read(
        self, ctx: ServerRequestContext[Any], params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        """Read one page of a run or of its raw output."""
        try:
            return await self._read(str(params.uri), reader(self._caller(ctx)))
        except NetworkToolsError as error:
            raise self._protocol_error(error) from None

    def _protocol_error(self, error: NetworkToolsError) -> MCPError:
        if isinstance(error, PlatformError):
            self._invalidate()
        code = types.INTERNAL_ERROR if error.spec.http >= 500 else types.INVALID_PARAMS
        return MCPError(code=code, message=error.message, data=error.as_dict())

    async def _read(self, uri: str, caller: str | None) -> types.ReadResourceResult:
        run_id, raw, query = parse_run_uri(uri)
        store = await self._open_store()
        if raw:
            text, next_uri = await self._raw_page(store, await store.get_run(run_id, caller=caller), query)
            mime = "text/plain"
        else:
            text, next_uri = await self._run_page(store, run_id, query, caller)
            mime = "application/json"
        meta = {"next": next_uri} if next_uri else None
        return types.ReadResourceResult(
            contents=[types.TextResourceContents(uri=uri, mime_type=mime, text=text, _meta=meta)]
        )

    @staticmethod
    async def _run_page(store: Store, run_id: str, query: dict[str, str], caller: str | None) -> tuple[str, str | None]:
        body = await run_page(store, run_id, limit=HOSTS_PER_PAGE, cursor=query.get("cursor"), caller=caller)
        cursor = body.pop("next_cursor")
        next_uri = f"run://{run_id}?cursor={quote(cursor, safe='')}" if cursor else None
        if next_uri:
            body["next"] = next_uri
        return json.dumps(body, separators=(",", ":"), ensure_ascii=False), next_uri

    @staticmethod
    async def _raw_page(store: Store, run: Run, query: dict[str, str]) -> tuple[str, str | None]:
        kept = raw_of(run)
        offset = _offset(query.get("offset", "0"))
        data = whole_characters(await store.read_raw(kept, offset, RAW_PAGE_BYTES))
        end = offset + len(data)
        next_uri = f"run://{run.id}/raw?offset={end}" if end < kept.size else None
        return sanitize_lines(data), next_uri


def parse_run_uri(uri: str) -> tuple[str, bool, dict[str, str]]:
    """Split ``run://{id}[/raw][?query]`` into the id, whether ``/raw`` is present, and the query.

    Raises NotFoundError for any other URI, ArgumentError for an unknown query parameter.
    """
    match = _RUN_URI.fullmatch(uri)
    if match is None:
        raise NotFoundError(
            f"There is no resource {sanitize(uri, 80)!r}.",
            code="unknown_run",
            hint="Use run://RUN_ID or run://RUN_ID/raw. The list of resources names the runs.",
        )
    query = parse_qsl(match["query"] or "", keep_blank_values=True)
    known = "offset" if match["raw"] else "cursor"
    for name, _ in query:
        if name != known:
            raise ArgumentError(f"The query parameter {sanitize(name, 32)!r} is unknown.", hint=f"Use {known}.")
    return match["id"], match["raw"] is not None, dict(query)


def _offset(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise ArgumentError(f"The offset {sanitize(text, 32)!r} is not a number of bytes.")
    return int(text)
