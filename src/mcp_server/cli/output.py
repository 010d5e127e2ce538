"""How commands print: JSON or tables on standard output, errors on standard error, exit codes from `errors.ERRORS`."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Final, NoReturn, TextIO, TypeVar

import typer

from mcp_server.errors import ConfigError, NetworkToolsError, PlatformError
from mcp_server.model.untrusted import escape, hidden, sanitize

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

SIGINT_EXIT: Final = 130
SIGPIPE_EXIT: Final = 141
SIGTERM_EXIT: Final = 143
"""128 + the number of the signal, as shells report a command that Ctrl-C, a closed pipe, or SIGTERM has ended."""


def fill_standard_streams() -> None:
    """Open /dev/null for each closed standard stream, before a different file gets its number (POSIX ``exec``)."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - stays open until the process ends


def print_json(value: Any, stream: TextIO | None = None) -> None:
    """Print one JSON document. Invisible characters, and those that control a terminal, are escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    if not text.isascii() or "\x7f" in text:
        text = "".join(char if char == "\n" or not hidden(char) else json.dumps(char)[1:-1] for char in text)
        text = text.replace("\x7f", "\\u007f")
    print(text, file=stream or sys.stdout)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print text for a person. Characters that control a terminal are escaped."""
    print(escape(text), file=stream or sys.stdout)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. Each cell is literal text on one line, so text from a target cannot add markup or rows."""
    rows = [[escape(cell).replace("\n", "\\x0a") for cell in row] for row in rows]
    if not sys.stdout.isatty():
        # A pipe has no width, so nothing is wrapped, cut or colored.
        widths = [max(len(cell) for cell in cells) for cells in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        # People copy the first column (an id, a key, an address), so it is never wrapped.
        width = max(len(row[0]) for row in (columns, *rows)) if index == 0 else None
        table.add_column(column, overflow="fold", no_wrap=index == 0, min_width=width)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def fail(
    error: NetworkToolsError,
    *,
    as_json: bool,
    extra: dict[str, Any] | None = None,
    exit_code: int | None = None,
    stream: TextIO | None = None,
) -> NoReturn:
    """Print an error and exit with its exit code. ``stream`` is for the JSON document, by default standard output."""
    if as_json:
        print_json({"error": error.as_dict(), **(extra or {})}, stream)
    else:
        say(f"{error.code}: {error.message}\n{error.hint}", sys.stderr)
    sys.stdout.flush()
    raise typer.Exit(error.spec.exit if exit_code is None else exit_code)


@contextmanager
def reporting(*, as_json: bool, stream: TextIO | None = None) -> Iterator[None]:
    """Turn any failure of a command into one printed error and an exit code.

    An unexpected exception is an ``internal_error``. Its traceback is printed only if ``logging.level`` is DEBUG. If
    the reader of a pipe has gone (``| head -1``), the command ends without a message.
    """
    try:
        try:
            yield
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except NetworkToolsError as error:
            fail(error, as_json=as_json, stream=stream)
        except KeyboardInterrupt:
            cancelled = NetworkToolsError("The command was cancelled.", code="cancelled")
            fail(cancelled, as_json=as_json, exit_code=SIGINT_EXIT, stream=stream)
        except asyncio.CancelledError:
            stopped = NetworkToolsError("A signal stopped the command.", code="cancelled")
            fail(stopped, as_json=as_json, exit_code=SIGTERM_EXIT, stream=stream)
        except Exception as error:  # noqa: BLE001 - a person gets an error, not a traceback
            fail(_defect(error), as_json=as_json, stream=stream)
    except BrokenPipeError:
        # The interpreter flushes again when it ends. Without this, it would print an error.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise typer.Exit(SIGPIPE_EXIT) from None


def _defect(error: Exception) -> NetworkToolsError:
    from mcp_server.config import get_config

    try:
        debugging = get_config().logging.level == "DEBUG"
    except ConfigError:
        debugging = False
    if debugging:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return PlatformError(
            "The output cannot be written: no space is left.", code="disk_full", hint="Free space on that disk."
        )
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return NetworkToolsError(
        f"{type(error).__name__}: {sanitize(str(error), 200)}.",
        hint="This is a bug. Please report it. With LOG_LEVEL=DEBUG, the traceback is printed.",
    )


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine. Ctrl-C and SIGTERM cancel it, and the command waits until it has cleaned up."""

    async def until_signalled() -> T:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    return asyncio.run(until_signalled())
