"""Logs: structured lines on stderr and, where the owner names one, in a rotating file. Never on stdout.

Every line of the standard library's loggers (the SDK's, uvicorn's, ours) goes through the same structlog
processors, so one format holds for all of them.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp_server.errors import PlatformError
from mcp_server.model.untrusted import neutralise

if TYPE_CHECKING:
    from mcp_server.config.sections import LoggingConfig


VALUE_LIMIT = 8192
"""Characters of one value of a log line; a traceback has as many for each of its lines."""
_TRACEBACKS = frozenset({"exception", "stack"})


class _LazyFormatter(logging.Formatter):
    """Makes structlog's formatter at the first line: a quiet start does not pay for its import."""

    def __init__(self, style: str, *, colour: bool) -> None:
        super().__init__()
        self._wanted = style
        self._colour = colour
        self._inner: logging.Formatter | None = None

    def format(self, record: logging.LogRecord) -> str:
        if self._inner is None:
            self._inner = self._make()
        return self._inner.format(record)

    def _make(self) -> logging.Formatter:
        import structlog

        renderer: Any = (
            # Tracebacks are text by then: `_visible` has escaped them.
            structlog.dev.ConsoleRenderer(
                colors=self._colour, exception_formatter=structlog.dev.plain_traceback, sort_keys=True
            )
            if self._wanted == "console"
            else structlog.processors.JSONRenderer()
        )
        shared: list[Any] = [
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ]
        return structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _visible,
                renderer,
            ],
        )


def _visible(_logger: Any, _name: str, event: Any) -> Any:
    """Escape what a terminal or a log viewer would act on; nothing that was logged can pass for a line of its own.

    A line break is escaped too, but for those of a traceback, whose lines are indented.
    """
    return {neutralise(str(key), 64): _visible_value(key, value) for key, value in event.items()}


def _visible_value(key: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    if key in _TRACEBACKS:
        return "\n".join(f"  {neutralise(line, VALUE_LIMIT)}" for line in text.split("\n"))
    return neutralise(text, VALUE_LIMIT)


def configure_logging(settings: LoggingConfig) -> None:
    """Send all logging to stderr and the configured file; replaces what was configured before.

    Raises PlatformError ``permission_denied`` for a file that cannot be opened.
    """
    handlers: list[logging.Handler] = [
        _handler(logging.StreamHandler(sys.stderr), settings, colour=sys.stderr.isatty())
    ]
    if settings.file_path:
        handlers.append(_handler(_rotating(Path(settings.file_path), settings), settings, colour=False))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(settings.level)
    # Alembic tells of every plugin it loads; what it does to the schema is ours to say.
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _rotating(path: Path, settings: LoggingConfig) -> logging.Handler:
    from logging.handlers import RotatingFileHandler

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return RotatingFileHandler(
            path, maxBytes=settings.max_file_size, backupCount=settings.backup_count, encoding="utf-8"
        )
    except OSError as error:
        raise PlatformError(
            f"the log file {path} cannot be written: {error.strerror}",
            hint="Set logging.file_path to a file that this user can write, or leave it empty.",
        ) from error


def _handler(handler: logging.Handler, settings: LoggingConfig, *, colour: bool) -> logging.Handler:
    handler.setFormatter(_LazyFormatter(settings.format, colour=colour))
    return handler
