"""Check the nodes of a YAML file against its schema, and return their values. Each refusal is a `LineError`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NoReturn

from mcp_server.model.untrusted import quoted
from mcp_server.operator_files.strict_yaml import LineError, Listing, Mapping, Node, Text

MAX_NUMBER: Final = 10**15

_WHOLE: Final = re.compile(r"[0-9]{1,16}")
_DECIMAL: Final = re.compile(r"[0-9]{1,16}(?:\.[0-9]{1,6})?")


def refuse(node: Node, message: str, hint: str | None = None) -> NoReturn:
    """Raise LineError for ``node``."""
    raise LineError(node.line, message, hint)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return a question that names the known word nearest to ``word``."""
    from difflib import get_close_matches  # only needed for an error

    return f"Did you mean {get_close_matches(word[:80], known, n=1, cutoff=0.0)[0]!r}?"


def describe(node: Node) -> str:
    """Return a description of ``node`` for a message."""
    if isinstance(node, Text):
        return "nothing" if node.is_null else quoted(node.text)
    return "a list" if isinstance(node, Listing) else "a mapping"


def read_mapping(node: Node | None, what: str, known: tuple[str, ...], *, hint: str | None = None) -> dict[str, Node]:
    """Return the nodes of a mapping by key, or {} if there is no node. Refuses unknown keys with ``hint`` added."""
    if node is None:
        return {}
    if not isinstance(node, Mapping):
        refuse(node, f"{what} must be a mapping with the keys {', '.join(known)}, not {describe(node)}.")
    for key, line in zip(node.nodes, node.lines, strict=True):
        if key not in known:
            also = f" {hint}" if hint else ""
            raise LineError(
                line,
                f"{what} has no key {quoted(key)}.",
                f"{did_you_mean(key, known)} The known keys are {', '.join(known)}.{also}",
            )
    return node.nodes


def read_named(node: Node | None, what: str) -> list[tuple[str, Node]]:
    """Return the names and nodes of a mapping whose keys are names that the operator chose; [] if there is no node."""
    if node is None:
        return []
    if not isinstance(node, Mapping):
        refuse(node, f"{what} must be a mapping from names to values, not {describe(node)}.")
    return list(node.nodes.items())


def read_list(node: Node | None, what: str) -> list[Node]:
    """Return the nodes of a list; [] if there is no node or no value."""
    if node is None or (isinstance(node, Text) and node.is_null):
        return []
    if not isinstance(node, Listing):
        refuse(
            node,
            f"{what} must be a list, not {describe(node)}.",
            f"Write {what}: [first, second], or one line with '- ' for each item.",
        )
    return node.nodes


def read_top(root: Node | None, what: str, known: tuple[str, ...], required: str) -> dict[str, Node]:
    """Return the keys of a whole file, which must have ``version: 1`` and the list ``required``."""
    if root is None or (isinstance(root, Text) and root.is_null):
        raise LineError(1, "the file is empty.")
    top = read_mapping(root, what, known)
    version = top.get("version")
    if not isinstance(version, Text) or version.text != "1":
        refuse(version or root, f"{what} must begin with 'version: 1'.", "The version says how the file is read.")
    if required not in top:
        refuse(root, f"there is no key '{required}'.", f"Write {required}: [] for an empty list.")
    return top


def read_choice(node: Node, key: str, known: Sequence[str]) -> str:
    """Return one of the words ``known``."""
    word = read_text(node, key, 64)
    if word not in known:
        refuse(node, f"{key} must be one of {', '.join(known)}, not {quoted(word)}.", did_you_mean(word, known))
    return word


def read_text(node: Node, what: str, limit: int) -> str:
    """Return a text of at most ``limit`` printable characters."""
    if not isinstance(node, Text) or node.is_null:
        refuse(node, f"{what} must be a text, not {describe(node)}.")
    if len(node.text) > limit or not node.text.isprintable():
        refuse(node, f"{what} must be at most {limit} printable characters, not {quoted(node.text)}.")
    return node.text


def read_whole_number(node: Node, key: str, most: int = MAX_NUMBER) -> int:
    """Return a whole number from 1 to ``most``."""
    if not isinstance(node, Text) or not _WHOLE.fullmatch(node.text) or not 1 <= int(node.text) <= most:
        refuse(node, f"{key} must be a whole number from 1 to {most}, not {describe(node)}.")
    return int(node.text)


def read_rate(node: Node) -> float:
    """Return a rate in packets per second, at least 0.1."""
    if not isinstance(node, Text) or not _DECIMAL.fullmatch(node.text) or not 0.1 <= float(node.text) <= MAX_NUMBER:
        refuse(node, f"packets_per_second must be a number from 0.1 to {MAX_NUMBER}, not {describe(node)}.")
    return float(node.text)
