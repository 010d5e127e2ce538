"""Cursors: the key of the last item of a page, in an opaque form.

A cursor holds a key and not a number of rows, so a page neither repeats nor misses an item if others are added
meanwhile.
"""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode

from mcp_server.errors import ArgumentError

LIMIT_MAX = 1000
_CURSOR_MAX_CHARS = 512


def check_limit(limit: int) -> None:
    """Raise ArgumentError if ``limit`` is not from 1 to 1000."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= LIMIT_MAX:
        raise ArgumentError(f"The limit {limit!r} is not a number from 1 to {LIMIT_MAX}.", parameter="limit")


def bad_cursor(cursor: object) -> ArgumentError:
    """Return the error for a cursor that does not belong to the list."""
    return ArgumentError(
        f"The cursor {str(cursor)[:64]!r} does not belong to this list.",
        hint="Pass next_cursor of the previous page unchanged, or no cursor for the first page.",
        parameter="cursor",
    )


def encode_cursor(kind: str, *key: str) -> str:
    """Return the cursor for one kind of list and the key of the last item of a page."""
    return urlsafe_b64encode(json.dumps([kind, *key], separators=(",", ":")).encode()).decode().rstrip("=")


def decode_cursor(kind: str, cursor: str, parts: int) -> tuple[str, ...]:
    """Return the key in a cursor, which has ``parts`` strings; raise ArgumentError for any other cursor."""
    try:
        found, *key = json.loads(
            urlsafe_b64decode(cursor[:_CURSOR_MAX_CHARS].encode("ascii") + b"=" * (-len(cursor) % 4))
        )
        good = found == kind and [type(part) for part in key] == [str] * parts
    except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error):
        good = False
    if not good:
        raise bad_cursor(cursor)
    return tuple(key)
