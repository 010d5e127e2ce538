"""What a record is made of: JSON in one canonical form, secrets taken out, every value bounded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from mcp_server.audit.escaping import ARGUMENT_LIMIT, scalar
from mcp_server.config.redact import REDACTED, follows_secret_flag, is_secret_name, without_secrets
from mcp_server.model.untrusted import sanitize

TEXT_LIMIT: Final = 64 * 1024
"""Characters of any string kept in a record."""
RECORD_LIMIT: Final = 256 * 1024
"""Bytes of one line; the largest fields of a longer one are replaced by their size and hash."""
FIRST_PREV: Final = "0" * 64
"""What stands as ``prev`` in record 0."""
RESERVED: Final = frozenset({"seq", "prev", "time", "event"})

_LEVELS: Final = 32


class Receipt(NamedTuple):
    """Where a record stands in the log: its number and the SHA-256 (hex) of its line."""

    seq: int
    hash: str


class ChainHead(NamedTuple):
    """The end of the chain: the number the next record gets, and the SHA-256 (hex) of the last line."""

    seq: int = 0
    prev: str = FIRST_PREV


def cleaned(value: Any, levels: int = _LEVELS) -> Any:
    """Return ``value`` as it may stand on a record: JSON-ready, without secrets, each string of bounded length.

    Strings are not sanitized: an argv must read as it was. Their escapes are JSON's, and whoever shows a record
    makes them visible.
    """
    if isinstance(value, str):
        shown = without_secrets(value[:TEXT_LIMIT])
        return shown if len(value) <= TEXT_LIMIT else f"{shown}…[+{len(value) - TEXT_LIMIT}]"
    if isinstance(value, Mapping | list | tuple):
        if not levels:
            return f"a {type(value).__name__} nested too deeply"
        if isinstance(value, Mapping):
            named = {_name(key): item for key, item in value.items()}
            return {
                key: REDACTED if item and is_secret_name(key) else cleaned(item, levels - 1)
                for key, item in named.items()
            }
        # The word after a flag such as --password is its value.
        return [
            REDACTED if follows_secret_flag(value, index) else cleaned(item, levels - 1)
            for index, item in enumerate(value)
        ]
    shown = scalar(value, TEXT_LIMIT)
    return without_secrets(shown) if isinstance(shown, str) else shown


def _name(key: Any) -> str:
    # Two lone surrogates become one character when they are read again, which may sort elsewhere.
    name = without_secrets(str(key))
    return name if name.isascii() else sanitize(name, ARGUMENT_LIMIT)


def canonical(record: Mapping[str, Any]) -> bytes:
    """The one form of a record: ASCII JSON, keys sorted, no spaces; raises ValueError for what JSON cannot say."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def line_of(head: ChainHead, time: str, event: str, fields: Mapping[str, Any]) -> tuple[bytes, ChainHead]:
    """The line of the next record, with its newline, and the end of the chain after it; ``fields`` are cleaned."""
    record = {**fields, "event": event, "prev": head.prev, "seq": head.seq, "time": time}
    line = canonical(record)
    if len(line) > RECORD_LIMIT:
        line = canonical(_shortened(record))
    return line + b"\n", ChainHead(head.seq + 1, hashlib.sha256(line).hexdigest())


def _shortened(record: dict[str, Any]) -> dict[str, Any]:
    sizes = {name: len(canonical({name: value})) for name, value in record.items() if name not in RESERVED}
    total = sum(sizes.values())
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if total <= RECORD_LIMIT - 1024:
            break
        whole = canonical({"value": record[name]})[len(b'{"value":') : -1]
        record[name] = {"omitted_bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
        total += 128 - sizes[name]
    return record


def read_record(line: bytes) -> dict[str, Any] | None:
    """The record on a line without its newline, or None where that is no record of a chain."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    seq, prev = record.get("seq"), record.get("prev")
    chained = type(seq) is int and seq >= 0 and isinstance(prev, str) and len(prev) == len(FIRST_PREV)
    return record if chained else None


def is_canonical(line: bytes, record: Mapping[str, Any]) -> bool:
    """Whether a line is the canonical form of the record read from it: no doubled key, no other spelling."""
    try:
        return canonical(record) == line
    except (ValueError, RecursionError):
        return False
