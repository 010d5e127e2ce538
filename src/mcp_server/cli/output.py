"""How commands speak: JSON or tables on standard output, errors on standard error, exit codes from the table."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from mcp_server.errors import NetworkToolsError

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

SIGINT_EXIT = 130
"""128 + SIGINT, as shells report a command ended by Ctrl-C."""


def print_json(value: Any) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; cells are literal text, so nothing a target wrote is read as markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # A pipe has no width: nothing is folded or cut there.
    console = Console() if sys.stdout.isatty() else Console(width=4096, soft_wrap=True)
    console.print(table)


def fail(error: NetworkToolsError, *, as_json: bool, extra: dict[str, Any] | None = None) -> NoReturn:
    """Report an error and leave with its exit code."""
    if as_json:
        print_json({"error": error.as_dict(), **(extra or {})})
    else:
        sys.stderr.write(f"{error.code}: {error.message}\n{error.hint}\n")
    raise typer.Exit(error.spec.exit)


@contextmanager
def reporting(*, as_json: bool) -> Iterator[None]:
    """Turn the project's errors into a report and an exit code."""
    try:
        yield
    except NetworkToolsError as error:
        fail(error, as_json=as_json)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; Ctrl-C cancels it, waits until it has cleaned up, and exits with 130."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        sys.stderr.write("cancelled\n")
        raise typer.Exit(SIGINT_EXIT) from None
