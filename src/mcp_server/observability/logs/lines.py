"""structlog's processors: the fields of a line, its secrets taken out, and nothing active left in it."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from typing import Any, Final

from mcp_server.config.redact import REDACTED, follows_secret_flag, is_secret_name, without_secrets
from mcp_server.model.untrusted import sanitize
from mcp_server.observability.logs.fields import OURS, bound_fields, split

VALUE_LIMIT: Final = 8192
"""Characters of one value of a log line; a traceback has as many for each of its lines."""
TRACEBACK_LIMIT: Final = 256 * 1024
"""Characters of a traceback; the end of a longer one is kept, which says what happened."""

_TRACEBACKS: Final = frozenset({"exception", "stack"})
# The name of a setting, in our own messages. A key that opens something has a longer name.
_NO_SECRET: Final = frozenset({"key"})
_LEVELS: Final = 8
# What is not there was given as ``extra``; the last two are left behind by formatters of the standard library.
_OF_EVERY_RECORD: Final = {*vars(logging.makeLogRecord({})), "message", "asctime"}


def make_formatter(style: str, *, colour: bool) -> logging.Formatter:
    """The formatter of ``json`` or ``console`` lines; imports structlog."""
    _import_structlog()
    import structlog

    renderer: Any = (
        # Tracebacks are text by then: `_escape` has escaped them.
        structlog.dev.ConsoleRenderer(colors=colour, exception_formatter=structlog.dev.plain_traceback, sort_keys=True)
        if style == "console"
        else structlog.processors.JSONRenderer()
    )
    shared: list[Any] = [
        _fields,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        pass_foreign_args=True,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _secret,
            _escape,
            renderer,
        ],
    )


def _import_structlog() -> None:
    """Import structlog without rich, which it would take for tracebacks that no line of ours has.

    That is 36 of the 52 ms that a start with a line to say would wait for it. Only while nobody else may import rich.
    """
    alone = "rich" not in sys.modules and threading.active_count() == 1
    if alone:
        sys.modules["rich"] = None  # type: ignore[assignment]  # how Python says that a module cannot be imported
    try:
        import structlog  # noqa: F401
    finally:
        if alone:
            del sys.modules["rich"]


def _fields(_logger: Any, _name: str, event: Any) -> Any:
    """Add what is bound, and take one of our own messages apart."""
    record, args = event["_record"], event.pop("positional_args", ())
    if record.name.split(".", 1)[0] == OURS:
        event |= split(record.msg, args)
        event |= {key: value for key, value in vars(record).items() if key not in _OF_EVERY_RECORD}
    return {**bound_fields(), **event}


def _secret(_logger: Any, _name: str, event: Any) -> Any:
    """Hide what stands under the name of a secret, and what reads like one inside a text."""
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
            # The word after a flag such as --password is its value.
            REDACTED if follows_secret_flag(words, index) else _hidden("", word, levels - 1)
            for index, word in enumerate(words)
        ]
    if isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    return without_secrets(text[-TRACEBACK_LIMIT:] if key in _TRACEBACKS else text[: 2 * VALUE_LIMIT])


def _escape(_logger: Any, _name: str, event: Any) -> Any:
    """Escape what a terminal or a log viewer would act on; nothing that was logged can pass for a line of its own.

    A line break is escaped too, but for those of a traceback, whose lines are indented.
    """
    return {sanitize(str(key), 64): _escape_value(key, value) for key, value in event.items()}


def _escape_value(key: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    if key in _TRACEBACKS:
        return "\n".join(f"  {sanitize(line, VALUE_LIMIT)}" for line in text.split("\n"))
    return sanitize(text, VALUE_LIMIT)
