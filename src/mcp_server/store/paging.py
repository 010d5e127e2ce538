"""Cursors: the key of the last item of a page, made opaque.

A cursor names a place in a key order and no count of rows, so a page neither repeats nor misses an item when
others are added meanwhile.
"""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

from mcp_server.errors import ArgumentError

LIMIT_MAX = 1000
_CURSOR_MAX_CHARS = 512


def check_limit(limit: int) -> int:
    """Return ``limit``; raise ArgumentError outside 1 to 1000."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= LIMIT_MAX:
        raise ArgumentError(f"limit {limit!r} is not a number from 1 to {LIMIT_MAX}", parameter="limit")
    return limit


def bad_cursor(cursor: object) -> ArgumentError:
    """The error for a cursor that is not one of the list it was given to."""
    return ArgumentError(
        f"cursor {str(cursor)[:64]!r} is not one of this list",
        hint="Pass next_cursor of the page before, unchanged, or none for the first page.",
        parameter="cursor",
    )


def encode_cursor(kind: str, *key: int | str) -> str:
    """Make a cursor of one kind of list from the key of the last item shown."""
    return urlsafe_b64encode(json.dumps([kind, *key], separators=(",", ":")).encode()).decode().rstrip("=")


def decode_cursor(kind: str, cursor: str, *types: type) -> tuple[Any, ...]:
    """Return the key in a cursor of that kind; raise ArgumentError for anything `encode_cursor` did not make."""
    try:
        found, *key = json.loads(
            urlsafe_b64decode(cursor[:_CURSOR_MAX_CHARS].encode("ascii") + b"=" * (-len(cursor) % 4))
        )
        good = found == kind and [type(part) for part in key] == list(types)
        # Numbers are row ids: more than 63 bits would be the database's error instead of the caller's.
        good = good and all(not isinstance(part, int) or 0 <= part < 1 << 63 for part in key)
    except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error):
        good = False
    if not good:
        raise bad_cursor(cursor)
    return tuple(key)
