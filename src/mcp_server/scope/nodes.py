"""Reading the nodes of an owner's file as what the schema wants there; every refusal names the line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NoReturn

from mcp_server.errors import ConfigError
from mcp_server.scope.reading import shown
from mcp_server.scope.strict_yaml import Listing, Mapping, Node, Text

MAX_NUMBER: Final = 10**15
DESCRIBED: Final = "docs/policy.md describes the file."
"""The hint of what has none of its own; the reader of another file names its page instead."""

_WHOLE: Final = re.compile(r"[0-9]{1,16}")
_DECIMAL: Final = re.compile(r"[0-9]{1,16}(?:\.[0-9]{1,6})?")


def wrong(node: Node, message: str, *, hint: str | None = None) -> NoReturn:
    """Refuse a node."""
    raise ConfigError(f"line {node.line}: {message}", hint=hint or DESCRIBED)


def like(word: str, known: Sequence[str]) -> str:
    """Ask for the known word nearest to ``word``."""
    from difflib import get_close_matches  # only needed for an error

    return f"Did you mean {get_close_matches(word[:80], known, n=1, cutoff=0.0)[0]!r}?"


def kind(node: Node) -> str:
    """What stands there, as a message names it."""
    if isinstance(node, Text):
        return "nothing" if node.is_null else shown(node.text)
    return "a list" if isinstance(node, Listing) else "a mapping"


def mapping(node: Node | None, what: str, known: tuple[str, ...], *, hint: str | None = None) -> dict[str, Node]:
    """The nodes of a mapping by key; unknown keys are refused."""
    if node is None:
        return {}
    if not isinstance(node, Mapping):
        wrong(node, f"{what} is a mapping with the keys {', '.join(known)}, not {kind(node)}")
    for key, line in zip(node.nodes, node.lines, strict=True):
        if key not in known:
            raise ConfigError(
                f"line {line}: unknown key {shown(key)} in {what}",
                hint=f"{like(key, known)} Known: {', '.join(known)}.{f' {hint}' if hint else ''}",
            )
    return node.nodes


def pairs(node: Node | None, what: str) -> list[tuple[str, Node]]:
    """The names and nodes of a mapping whose keys are the owner's own."""
    if node is None:
        return []
    if not isinstance(node, Mapping):
        wrong(node, f"{what} is a mapping from names to windows, not {kind(node)}")
    return list(node.nodes.items())


def items(node: Node | None, what: str) -> list[Node]:
    """The nodes of a list; none where nothing stands there."""
    if node is None or (isinstance(node, Text) and node.is_null):
        return []
    if not isinstance(node, Listing):
        wrong(
            node,
            f"{what} is a list, not {kind(node)}",
            hint=f"{what}: [first, second], or lines that begin with '- '.",
        )
    return node.nodes


def text(node: Node, what: str, limit: int) -> str:
    """A text of at most ``limit`` printable characters."""
    if not isinstance(node, Text) or node.is_null:
        wrong(node, f"{what} is a text, not {kind(node)}")
    if len(node.text) > limit or not node.text.isprintable():
        wrong(node, f"{what} is at most {limit} printable characters, not {shown(node.text)}")
    return node.text


def number(node: Node, key: str) -> int:
    """A whole number from 1."""
    if not isinstance(node, Text) or not _WHOLE.fullmatch(node.text) or not 1 <= int(node.text) <= MAX_NUMBER:
        wrong(node, f"{key} is a whole number from 1 to {MAX_NUMBER}, not {kind(node)}")
    return int(node.text)


def rate(node: Node) -> float:
    """A rate in packets a second, from 0.1."""
    if not isinstance(node, Text) or not _DECIMAL.fullmatch(node.text) or not 0.1 <= float(node.text) <= MAX_NUMBER:
        wrong(node, f"packets_per_second is a number from 0.1 to {MAX_NUMBER}, not {kind(node)}")
    return float(node.text)
