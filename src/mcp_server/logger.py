"""The logger of every module: ``logger = get_logger(__name__)``, then ``logger.info("area.event", field=value)``.

Events go through the loggers of the standard library of the same name, whose handlers `observability.logs` sets up.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

__all__ = ["bound", "get_logger", "structlog"]

# structlog imports rich to format tracebacks, which these logs do not use. Without rich, a start is 40 ms shorter.
# Hiding it is safe only while no other thread can import it.
_hide_rich = "rich" not in sys.modules and threading.active_count() == 1
if _hide_rich:
    sys.modules["rich"] = None  # type: ignore[assignment]  # Python's mark for a module that cannot be imported
try:
    import structlog
finally:
    if _hide_rich:
        del sys.modules["rich"]

bound = structlog.contextvars.bound_contextvars
"""``with bound(run_id=...)`` puts fields on every line logged in the block, in tasks and threads started there too."""

structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.contextvars.merge_contextvars,
        structlog.processors.format_exc_info,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=True,
)


def _as_text(_logger: Any, _name: str, event: Any) -> str:
    """Return an event as ``name field=value …``."""
    return " ".join([str(event.pop("event")), *(f"{name}={value}" for name, value in event.items())])


if logging.lastResort is not None:  # the handler of a process that has not set up logging, such as a command
    logging.lastResort.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _as_text,
            ]
        )
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module."""
    return structlog.stdlib.get_logger(name)
