"""``runs``: shows stored runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mcp_server.cli.call import host_rows
from mcp_server.cli.output import Json, print_json, print_table, reporting, run_async, say

if TYPE_CHECKING:
    from mcp_server.store.base import Store

app = typer.Typer(help="Stored runs: list, show, raw output.", no_args_is_help=True)
T = TypeVar("T")

Limit = Annotated[int, typer.Option(min=1, max=1000, help="The most to show.")]
Cursor = Annotated[str | None, typer.Option(help="The cursor that the previous page printed.")]


async def _with_store(work: Callable[[Store], Awaitable[T]]) -> T:
    from mcp_server.server import EnhancedMCPServer

    server = EnhancedMCPServer()
    try:
        return await work(await server.pipeline.open_store())
    finally:
        await server.cleanup()


@app.command("list")
def list_runs(limit: Limit = 20, cursor: Cursor = None, tool: str | None = None, as_json: Json = False) -> None:
    """List runs, newest first."""
    from mcp_server.api.runs import run_record

    with reporting(as_json=as_json):
        page = run_async(_with_store(lambda store: store.list_runs(limit=limit, cursor=cursor, tool=tool)))
        if as_json:
            runs = [run_record(run) for run in page.items]
            print_json({"runs": runs, "total": page.total, "next_cursor": page.next_cursor})
            return
        print_table(
            ("RUN", "TOOL", "STARTED", "OUTCOME", "UP", "OPEN", "TARGETS"),
            [
                (
                    run.id,
                    run.tool,
                    f"{run.started:%Y-%m-%d %H:%M:%SZ}",
                    run.outcome.value,
                    str(run.counts.get("hosts_up", 0)),
                    str(run.counts.get("open_ports", 0)),
                    " ".join(run.coverage.addresses[:4]) if run.coverage else "",
                )
                for run in page.items
            ],
        )
        if page.next_cursor:
            say(f"{page.total} runs in all. Next page: --cursor {page.next_cursor}")


@app.command("show")
def show(run_id: str, limit: Limit = 100, cursor: Cursor = None, as_json: Json = False) -> None:
    """Show one run: its outcome, its coverage, and the hosts that it saw."""
    from mcp_server.api.runs import run_page

    with reporting(as_json=as_json):
        body = run_async(_with_store(lambda store: run_page(store, run_id, limit=limit, cursor=cursor)))
        if as_json:
            print_json(body)
            return
        for key, value in body["run"].items():
            say(f"{key:15} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
        rows = [row for host in body["hosts"] for row in host_rows(host)]
        print_table(("HOST", "PORT", "STATE", "SERVICE", "VERSION"), rows)
        if body["next_cursor"]:
            say(f"{body['hosts_total']} hosts in all. Next page: --cursor {body['next_cursor']}")


@app.command("raw")
def raw(run_id: str, as_json: Json = False) -> None:
    """Print the tool's own output: byte for byte into a pipe or file, with control characters escaped on a terminal.

    With --json, print only its hash and sizes.
    """
    from mcp_server.api.runs import raw_of
    from mcp_server.model.encoding import encode
    from mcp_server.pipeline.respond import sanitize_lines, whole_characters

    async def copy(store: Store) -> None:
        kept = raw_of(await store.get_run(run_id))
        if as_json:
            print_json(encode(kept))
            return
        if not sys.stdout.isatty():
            async for piece in store.iter_raw(kept):
                sys.stdout.buffer.write(piece)
            return
        rest = b""  # the first bytes of a character that continues in the next piece
        async for piece in store.iter_raw(kept):
            whole = whole_characters(rest + piece)
            rest = (rest + piece)[len(whole) :]
            sys.stdout.buffer.write(sanitize_lines(whole).encode())
        sys.stdout.buffer.write(sanitize_lines(rest).encode())

    with reporting(as_json=as_json):
        run_async(_with_store(copy))
