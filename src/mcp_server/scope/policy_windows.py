"""Read the time windows of a policy file."""

from __future__ import annotations

import re
from datetime import UTC, tzinfo
from typing import Final

from mcp_server.model.untrusted import quoted
from mcp_server.operator_files.schema import describe, did_you_mean, read_list, read_mapping, read_text, refuse
from mcp_server.operator_files.strict_yaml import Node, Text
from mcp_server.scope.windows import DAYS, MINUTES_A_DAY, Window

_KEYS: Final = ("days", "from", "to", "timezone")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_CLOCK: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


def read_window(name: str, node: Node) -> Window:
    """Read one window; raises LineError."""
    if not _NAME.fullmatch(name):
        refuse(node, f"a window's name must be letters, digits, '-', '_' and '.', not {quoted(name)}.")
    keys = read_mapping(node, f"the window {name}", _KEYS)
    for key in ("from", "to"):
        if key not in keys:
            refuse(node, f"the window {name} has no key '{key}'.", 'Write clock times, such as from: "22:00".')
    start, end = _clock(keys["from"], "from"), _clock(keys["to"], "to")
    if start in {end, MINUTES_A_DAY}:
        refuse(keys["from"], f"the window {name} is never open.", 'A whole day is from: "00:00", to: "24:00".')
    days = _days(keys.get("days"))
    zone = keys.get("timezone")
    zone_name = "UTC" if zone is None else read_text(zone, "timezone", 64)
    # 24:00 is the end of its day, so a window that ends at 24:00 does not pass midnight.
    return Window(name, days, start, end, UTC if zone is None else _zone(zone, zone_name), zone_name)


def _clock(node: Node, key: str) -> int:
    clock = node.text if isinstance(node, Text) else ""
    if clock == "24:00":
        return MINUTES_A_DAY
    if (match := _CLOCK.fullmatch(clock)) is not None:
        return int(match[1]) * 60 + int(match[2])
    return refuse(node, f"{key} must be a clock time from 00:00 to 24:00, not {describe(node)}.")


def _days(node: Node | None) -> frozenset[int]:
    if node is None:
        return frozenset(range(7))
    found: set[int] = set()
    for item in [node] if isinstance(node, Text) else read_list(node, "days"):
        word = read_text(item, "a day", 20).lower()
        first, dash, last = word.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            refuse(item, f"days must be {', '.join(DAYS)} or ranges such as mon-fri, not {quoted(word)}.")
        start, end = DAYS.index(first), DAYS.index(last or first)
        found |= {day % 7 for day in range(start, end + 1 if end >= start else end + 8)}
    if not found:
        refuse(node, "days names no day.", "Leave the key out for every day.")
    return frozenset(found)


def _zone(node: Node, name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo, available_timezones

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        known = sorted(available_timezones())
        if not known:
            refuse(node, "this host has no time zones.", "Install the package tzdata, or leave timezone out for UTC.")
        refuse(node, f"there is no time zone {quoted(name)}.", did_you_mean(name, known))
