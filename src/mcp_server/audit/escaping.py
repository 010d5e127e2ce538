"""Values of a call as they may be shown: the one part of the log that a server imports while it starts."""

from __future__ import annotations

import math
from typing import Any, Final

from mcp_server.model.untrusted import sanitize

ARGUMENT_LIMIT: Final = 4096
"""Characters of one argument kept in a record; a longer one is cut with its length noted."""


def escape_values(value: Any, limit: int = ARGUMENT_LIMIT, *, levels: int = 8) -> Any:
    """Return JSON-ready ``value`` with every string sanitized and bounded, 64 entries a level, ``levels`` deep.

    What JSON has no number for (NaN, infinity, integers beyond 64 bits) is described in words instead; where entries
    are left out, the last one says how many.
    """
    if not isinstance(value, dict | list | tuple):
        return scalar(value, limit)
    if not levels:
        return f"a {type(value).__name__} nested too deeply"
    more = len(value) - 64
    if isinstance(value, dict):
        entries = list(value.items())[:64]
        shown = {sanitize(str(key), 64): escape_values(item, limit, levels=levels - 1) for key, item in entries}
        return shown if more <= 0 else {**shown, "…": f"[+{more}]"}
    items = [escape_values(item, limit, levels=levels - 1) for item in value[:64]]
    return items if more <= 0 else [*items, f"…[+{more}]"]


def scalar(value: Any, limit: int) -> Any:
    """Return a value that is no container as JSON can say it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= 64 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return sanitize(value if isinstance(value, str) else repr(value), limit)
