"""The windows of a policy file, made into `Window`."""

from __future__ import annotations

import re
from datetime import UTC, tzinfo
from typing import Final

from mcp_server.scope.nodes import items, kind, like, mapping, text, wrong
from mcp_server.scope.reading import shown
from mcp_server.scope.strict_yaml import Node, Text
from mcp_server.scope.windows import DAYS, MINUTES_A_DAY, Window

_KEYS: Final = ("days", "from", "to", "timezone")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_CLOCK: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


def read_window(name: str, node: Node) -> Window:
    """Read one window; raises ConfigError whose message begins with the line."""
    if not _NAME.fullmatch(name):
        wrong(node, f"a window's name is letters, digits, '-', '_' and '.', not {shown(name)}")
    keys = mapping(node, f"window {name}", _KEYS)
    for key in ("from", "to"):
        if key not in keys:
            wrong(node, f"window {name} has no key '{key}'", hint='Write clock times, as in from: "22:00".')
    start, end = _clock(keys["from"], "from"), _clock(keys["to"], "to")
    if start in {end, MINUTES_A_DAY}:
        wrong(keys["from"], f"window {name} is never open", hint='A whole day is from: "00:00", to: "24:00".')
    days = _days(keys.get("days"))
    zone = keys.get("timezone")
    zone_name = "UTC" if zone is None else text(zone, "timezone", 64)
    # 24:00 is the end of the day it is written for: not a window that passes midnight.
    return Window(name, days, start, end, UTC if zone is None else _zone(zone, zone_name), zone_name)


def _clock(node: Node, key: str) -> int:
    clock = node.text if isinstance(node, Text) else ""
    if clock == "24:00":
        return MINUTES_A_DAY
    if (match := _CLOCK.fullmatch(clock)) is not None:
        return int(match[1]) * 60 + int(match[2])
    return wrong(node, f"{key} is a clock time from 00:00 to 24:00, not {kind(node)}")


def _days(node: Node | None) -> frozenset[int]:
    if node is None:
        return frozenset(range(7))
    found: set[int] = set()
    for item in [node] if isinstance(node, Text) else items(node, "days"):
        word = text(item, "a day", 20).lower()
        first, dash, last = word.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            wrong(item, f"days are {', '.join(DAYS)} or ranges such as mon-fri, not {shown(word)}")
        start, end = DAYS.index(first), DAYS.index(last or first)
        found |= {day % 7 for day in range(start, end + 1 if end >= start else end + 8)}
    if not found:
        wrong(node, "days names no day", hint="Leave it out for every day.")
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
            wrong(
                node, "this host has no time zones", hint="Install the package tzdata, or leave timezone out for UTC."
            )
        wrong(node, f"there is no time zone {shown(name)}", hint=like(name, known))
