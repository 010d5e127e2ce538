"""The form of a record: canonical JSON, with secrets removed and every value bounded."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from mcp_server.config.redact import REDACTED, follows_secret_flag, is_secret_name, without_secrets
from mcp_server.model.untrusted import sanitize

ARGUMENT_LIMIT: Final = 4096
"""Characters of one argument that a record keeps. A longer argument is cut, with the number of characters left out."""
ENTRIES_LIMIT: Final = 64
"""Entries that `escape_values` keeps of one list or mapping."""
TEXT_LIMIT: Final = 64 * 1024
"""Characters of any string that a record keeps."""
RECORD_LIMIT: Final = 256 * 1024
"""Bytes of one line. The largest fields of a longer record are replaced by their size and hash."""
FIRST_PREV: Final = "0" * 64
"""The value of ``prev`` in record 0."""
RESERVED: Final = frozenset({"seq", "prev", "time", "event"})

_LEVELS: Final = 32


class Receipt(NamedTuple):
    """Identifies a record: its sequence number and the SHA-256 (hex) of its line."""

    seq: int
    hash: str


class ChainHead(NamedTuple):
    """The end of the chain: the sequence number of the next record, and the SHA-256 (hex) of the last line."""

    seq: int = 0
    prev: str = FIRST_PREV


def escape_values(value: Any, limit: int = ARGUMENT_LIMIT, *, levels: int = 8) -> Any:
    """Return a copy of ``value`` for JSON, with every string sanitized and cut to ``limit`` characters.

    A list or mapping keeps `ENTRIES_LIMIT` entries, and its last entry says how many were left out. Containers nested
    deeper than ``levels``, and numbers that JSON cannot represent, are replaced by a description.
    """
    if not isinstance(value, dict | list | tuple):
        return _scalar(value, limit)
    if not levels:
        return f"a {type(value).__name__} nested too deeply"
    more = len(value) - ENTRIES_LIMIT
    if isinstance(value, dict):
        entries = list(value.items())[:ENTRIES_LIMIT]
        shown = {sanitize(str(key), 64): escape_values(item, limit, levels=levels - 1) for key, item in entries}
        return shown if more <= 0 else {**shown, "…": f"[+{more}]"}
    items = [escape_values(item, limit, levels=levels - 1) for item in value[:ENTRIES_LIMIT]]
    return items if more <= 0 else [*items, f"…[+{more}]"]


def cleaned(value: Any, levels: int = _LEVELS) -> Any:
    """Return a copy of ``value`` for a record: valid JSON, without secrets, each string of bounded length.

    Strings are not sanitized, because an argv must be recorded exactly. JSON escapes them, and a program that shows a
    record must sanitize them.
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
        # The word after a flag such as --password is the flag's value.
        return [
            REDACTED if follows_secret_flag(value, index) else cleaned(item, levels - 1)
            for index, item in enumerate(value)
        ]
    shown = _scalar(value, TEXT_LIMIT)
    return without_secrets(shown) if isinstance(shown, str) else shown


def canonical(record: Mapping[str, Any]) -> bytes:
    """Return the canonical form of a record: ASCII JSON, keys sorted, no spaces.

    Raises ValueError if JSON cannot hold a value.
    """
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def line_of(head: ChainHead, time: str, event: str, fields: Mapping[str, Any]) -> tuple[bytes, ChainHead]:
    """Return the line of the next record with its newline, and the end of the chain after it.

    ``fields`` must have passed `cleaned`.
    """
    record = {**fields, "event": event, "prev": head.prev, "seq": head.seq, "time": time}
    line = canonical(record)
    if len(line) > RECORD_LIMIT:
        line = canonical(_shortened(record))
    return line + b"\n", ChainHead(head.seq + 1, hashlib.sha256(line).hexdigest())


def read_record(line: bytes) -> dict[str, Any] | None:
    """Parse a line without its newline. Returns None if it is not a record of a chain."""
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
    """Return whether ``line`` is the canonical form of the record that was parsed from it."""
    try:
        return canonical(record) == line
    except (ValueError, RecursionError):
        return False


def _scalar(value: Any, limit: int) -> Any:
    """Return a value that is no container in a form that JSON can hold."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= 64 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return sanitize(value if isinstance(value, str) else repr(value), limit)


def _name(key: Any) -> str:
    # Two lone surrogates are read back as one character, which may be sorted differently.
    name = without_secrets(str(key))
    return name if name.isascii() else sanitize(name, ARGUMENT_LIMIT)


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
