"""Logs: structured lines on standard error and, if configured, in a rotating file. Never on standard output.

Every logger, those of libraries included, goes through the same structlog processors, so all lines have one format
(docs/logs.md). The processors here hide secrets and escape active characters; the others are structlog's own.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_server.config.redact import REDACTED, follows_secret_flag, is_secret_name, without_secrets
from mcp_server.errors import PlatformError
from mcp_server.logger import get_logger, structlog
from mcp_server.model.untrusted import sanitize
from mcp_server.observability import tracing

if TYPE_CHECKING:
    from mcp_server.config.sections import LoggingConfig

__all__ = ["VALUE_LIMIT", "LineFormatter", "configure_logging"]

VALUE_LIMIT: Final = 8192
"""Characters of one value of a line, and of each line of a traceback."""
TRACEBACK_LIMIT: Final = 256 * 1024
"""Characters of a traceback. Of a longer traceback, the end is kept, because it has the exception."""

logger = get_logger(__name__)

_TRACEBACKS: Final = frozenset({"exception", "stack"})
# In the log lines of this project, the field ``key`` holds the name of a setting. Fields with a real key have a longer
# name, such as api_key.
_NO_SECRET: Final = frozenset({"key"})
_LEVELS: Final = 8


def configure_logging(settings: LoggingConfig) -> None:
    """Send all logging to standard error and to the configured file, in place of the previous handlers.

    The file is opened again, so a reload also continues in a new file after another program moved the old one away.
    Raises PlatformError ``permission_denied`` if the file cannot be opened; the previous handlers stay then.
    """
    handlers = [_with_formatter(logging.StreamHandler(sys.stderr), settings, colors=sys.stderr.isatty())]
    if settings.file_path:
        handlers.append(_with_formatter(_log_file(Path(settings.file_path), settings), settings, colors=False))
    root = logging.getLogger()
    # A single assignment: a line of another thread goes either to the old handlers or to the new ones, once.
    before, root.handlers = root.handlers, handlers
    root.setLevel(settings.level)
    for old in before:
        old.close()
    # Alembic logs every plugin that it loads. The store logs its own changes of the schema.
    logging.getLogger("alembic").setLevel(logging.WARNING)


class LineFormatter(structlog.stdlib.ProcessorFormatter):
    """Formats a record as one line of ``style`` ``json`` or ``console``. Never raises and never shows a secret."""

    def __init__(self, style: str, *, colors: bool) -> None:
        renderer: Any = structlog.processors.JSONRenderer()
        if style == "console":
            # Tracebacks are text when they get here: `_escape` has escaped them.
            plain = structlog.dev.plain_traceback
            renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain, sort_keys=True)
        super().__init__(
            foreign_pre_chain=[structlog.contextvars.merge_contextvars],
            processors=[
                _add_origin,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                _hide_secrets,
                _escape,
                renderer,
            ],
        )

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or a line that says which record could not be formatted."""
        try:
            return super().format(record)
        except Exception as error:  # noqa: BLE001 - showing a value may raise anything
            # The standard library would print the record's arguments instead, with any secrets in them.
            origin = {"event": "log.line_broken", "logger": record.name, "level": record.levelname.lower()}
            return json.dumps(origin | {"line": f"{record.pathname}:{record.lineno}", "error": type(error).__name__})


def _with_formatter(handler: logging.Handler, settings: LoggingConfig, *, colors: bool) -> logging.Handler:
    handler.setFormatter(LineFormatter(settings.format, colors=colors))
    return handler


def _log_file(path: Path, settings: LoggingConfig) -> logging.Handler:
    from logging.handlers import RotatingFileHandler

    class RotatingLog(RotatingFileHandler):
        failed = retired = False

        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            if self.retired:
                # A thread was about to write when the settings changed, and has opened the file again.
                self.close()

        def close(self) -> None:
            self.retired = True
            # The disk may be full, which `handleError` has logged. A reload must still be able to replace this file.
            with suppress(OSError):
                super().close()

        def handleError(self, _record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
            # Logged once. The standard library would print the arguments of every line to standard error.
            if not self.failed:
                self.failed = True
                logger.error("log.file_not_written", path=path, message=str(sys.exc_info()[1]))

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return RotatingLog(path, maxBytes=settings.max_file_size, backupCount=settings.backup_count, encoding="utf-8")
    except OSError as error:
        raise PlatformError(
            f"The log file {path} cannot be written: {error.strerror}.",
            code="permission_denied",
            hint="Set logging.file_path to a file that this user can write, or leave it empty.",
        ) from error


def _add_origin(_logger: Any, _name: str, event: Any) -> Any:
    """Put the event first, and add the logger's name, the level, and the id of the trace that is being recorded."""
    record = event["_record"]
    event = {"event": event.pop("event"), **event, "logger": record.name, "level": record.levelname.lower()}
    if (trace_id := tracing.trace_id()) is not None:
        event.setdefault("trace_id", trace_id)
    return event


def _hide_secrets(_logger: Any, _name: str, event: Any) -> Any:
    """Replace the values of fields that are named like secrets, and text that has the form of a secret."""
    return {key: _hidden("" if key in _NO_SECRET else str(key), value, _LEVELS) for key, value in event.items()}


def _hidden(key: str, value: Any, levels: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(key):
        return REDACTED
    if levels and isinstance(value, Mapping):
        return {str(name): _hidden(str(name), item, levels - 1) for name, item in value.items()}
    if levels and isinstance(value, list | tuple | set | frozenset):
        words = list(value)
        return [
            # The word after a flag such as --password is the flag's value.
            REDACTED if follows_secret_flag(words, index) else _hidden("", word, levels - 1)
            for index, word in enumerate(words)
        ]
    if isinstance(value, int | float):
        return value
    text = str(value)
    return without_secrets(text[-TRACEBACK_LIMIT:] if key in _TRACEBACKS else text[: 2 * VALUE_LIMIT])


def _escape(_logger: Any, _name: str, event: Any) -> Any:
    """Escape characters that a terminal or a log viewer acts on, so that no value can forge a line.

    Line breaks are escaped too, except in a traceback, whose lines are indented.
    """
    return {sanitize(str(key), 64): _escaped(key, value) for key, value in event.items()}


def _escaped(key: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    if key in _TRACEBACKS:
        return "\n".join(f"  {sanitize(line, VALUE_LIMIT)}" for line in text.split("\n"))
    return sanitize(text, VALUE_LIMIT)
