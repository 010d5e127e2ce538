"""How commands speak: JSON or tables on standard output, errors on standard error, exit codes from the table."""

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
"""128 + the signal's number, as shells report a command ended by Ctrl-C, a reader that has gone, or a signal."""


def fill_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed, before another file takes its number (POSIX ``exec``)."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - open to the end


def print_json(value: Any, stream: TextIO | None = None) -> None:
    """Print one JSON document; a character that shows nothing or acts on a terminal is written as JSON escapes it."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    if not text.isascii() or "\x7f" in text:
        text = "".join(char if char == "\n" or not hidden(char) else json.dumps(char)[1:-1] for char in text)
        text = text.replace("\x7f", "\\u007f")
    print(text, file=stream or sys.stdout)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print text for a person; whatever in it could act on a terminal is escaped."""
    print(escape(text), file=stream or sys.stdout)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; cells are literal text on one line each, so nothing a target wrote is read as markup or a row."""
    rows = [[escape(cell).replace("\n", "\\x0a") for cell in row] for row in rows]
    if not sys.stdout.isatty():
        # A pipe has no width: nothing is folded, cut or coloured there.
        widths = [max(len(cell) for cell in cells) for cells in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        # What a person copies (an id, a key, an address) stands first and is never folded.
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
    """Report an error and leave with its exit code; ``stream`` takes the JSON document, standard output by default."""
    if as_json:
        print_json({"error": error.as_dict(), **(extra or {})}, stream)
    else:
        say(f"{error.code}: {error.message}\n{error.hint}", sys.stderr)
    sys.stdout.flush()
    raise typer.Exit(error.spec.exit if exit_code is None else exit_code)


@contextmanager
def reporting(*, as_json: bool, stream: TextIO | None = None) -> Iterator[None]:
    """Turn what goes wrong in a command into one report and an exit code.

    A defect is reported as ``internal_error``, with its traceback only where ``logging.level`` is DEBUG. A reader
    that has gone (``| head -1``) ends the command without a word.
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
            cancelled = NetworkToolsError("the command was cancelled", code="cancelled")
            fail(cancelled, as_json=as_json, exit_code=SIGINT_EXIT, stream=stream)
        except asyncio.CancelledError:
            stopped = NetworkToolsError("the command was stopped by a signal", code="cancelled")
            fail(stopped, as_json=as_json, exit_code=SIGTERM_EXIT, stream=stream)
        except Exception as error:  # noqa: BLE001 - the last place before a traceback in the user's face
            fail(_defect(error), as_json=as_json, stream=stream)
    except BrokenPipeError:
        # The interpreter flushes once more at its end, and would complain.
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
        return PlatformError("the output cannot be written: no space left", code="disk_full", hint="Free space there.")
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return NetworkToolsError(
        f"{type(error).__name__}: {sanitize(str(error), 200)}",
        hint="This is a defect. LOG_LEVEL=DEBUG shows where it happened; please report it.",
    )


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; Ctrl-C and SIGTERM cancel it and wait until it has cleaned up."""

    async def until_signalled() -> T:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    return asyncio.run(until_signalled())
