"""Logs: structured lines on stderr and, where the owner names one, in a rotating file. Never on stdout.

Every line of the standard library's loggers (the SDK's, uvicorn's, ours) goes through the same structlog
processors, so one format holds for all of them (docs/logs.md).
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mcp_server.errors import PlatformError
from mcp_server.observability.logs.fields import bound
from mcp_server.observability.logs.lines import VALUE_LIMIT, make_formatter

if TYPE_CHECKING:
    from mcp_server.config.sections import LoggingConfig

__all__ = ["VALUE_LIMIT", "bound", "configure_logging"]

logger = logging.getLogger(__name__)


class _LazyFormatter(logging.Formatter):
    """Makes structlog's formatter at the first line: a quiet start does not pay for its import."""

    def __init__(self, style: str, *, colour: bool) -> None:
        super().__init__()
        self._wanted = style
        self._colour = colour
        self._inner: logging.Formatter | None = None

    def format(self, record: logging.LogRecord) -> str:
        try:
            if self._inner is None:
                self._inner = make_formatter(self._wanted, colour=self._colour)
            return self._inner.format(record)
        except Exception as error:  # noqa: BLE001 - whatever a value does when it is shown
            # The standard library would print the arguments as they are, secrets and all.
            where = {"event": "log.line_broken", "logger": record.name, "level": record.levelname.lower()}
            where |= {"line": f"{record.pathname}:{record.lineno}", "error": type(error).__name__}
            return json.dumps(where)


def configure_logging(settings: LoggingConfig) -> None:
    """Send all logging to stderr and the configured file; replaces what was configured before, without a gap.

    The file is opened again, so a reload is also what another program calls for after it has moved it away. Raises
    PlatformError ``permission_denied`` for a file that cannot be opened; what was configured stays then.
    """
    handlers: list[logging.Handler] = [
        _handler(logging.StreamHandler(sys.stderr), settings, colour=sys.stderr.isatty())
    ]
    if settings.file_path:
        handlers.append(_handler(_rotating(Path(settings.file_path), settings), settings, colour=False))
    root = logging.getLogger()
    # One assignment: a line that another thread logs meanwhile goes to the old handlers or to the new ones, once.
    before, root.handlers = root.handlers, handlers
    root.setLevel(settings.level)
    for old in before:
        old.close()
    # Alembic tells of every plugin it loads; what it does to the schema is ours to say.
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _rotating(path: Path, settings: LoggingConfig) -> logging.Handler:
    from logging.handlers import RotatingFileHandler

    class LogFile(RotatingFileHandler):
        failed = retired = False

        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            if self.retired:
                # A thread that was about to write when the settings changed: that opened the file once more.
                self.close()

        def close(self) -> None:
            self.retired = True
            with suppress(OSError):  # a full disk, told by `handleError`: a reload must be able to leave it
                super().close()

        def handleError(self, _record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
            # Said once, on standard error: the standard library would print every line's arguments as they are.
            if not self.failed:
                self.failed = True
                logger.error("log.file_not_written path=%s: %s", path, sys.exc_info()[1])

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return LogFile(path, maxBytes=settings.max_file_size, backupCount=settings.backup_count, encoding="utf-8")
    except OSError as error:
        raise PlatformError(
            f"the log file {path} cannot be written: {error.strerror}",
            hint="Set logging.file_path to a file that this user can write, or leave it empty.",
        ) from error


def _handler(handler: logging.Handler, settings: LoggingConfig, *, colour: bool) -> logging.Handler:
    handler.setFormatter(_LazyFormatter(settings.format, colour=colour))
    return handler
