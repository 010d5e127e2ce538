"""Read an actors file into the limits of each actor.

docs/actors.md has the schema and an example. Every error is a ConfigError that names the file and the line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from mcp_server.errors import ConfigError
from mcp_server.identity.actors import Actors, Bounds
from mcp_server.identity.base import subject_name
from mcp_server.model.access import Role
from mcp_server.model.untrusted import quoted
from mcp_server.operator_files.reading import OTHERS_WRITE, FileRules
from mcp_server.operator_files.schema import (
    describe,
    read_choice,
    read_list,
    read_mapping,
    read_text,
    read_top,
    read_whole_number,
    refuse,
)
from mcp_server.operator_files.strict_yaml import LineError, Listing, Node, Text, read_yaml_file
from mcp_server.scope.entries import Entries, Terms

MAX_BYTES: Final = 4 * 1024 * 1024
MAX_ACTORS: Final = 10_000
MAX_NETWORKS: Final = 4096
MAX_TOOLS: Final = 256
MAX_CREDENTIALS: Final = 16
MAX_CALLS: Final = 100_000
NAME_CHARS: Final = 64
SUBJECT_CHARS: Final = 255
"""The longest ``sub`` that OpenID Connect allows (Core 1.0, section 2)."""

_RULES: Final = FileRules(
    "actors file",
    MAX_BYTES,
    setting="auth.actors_file",
    forbidden_mode=OTHERS_WRITE,
    check_folders=True,
    hint="docs/actors.md describes the file.",
    too_large_hint="Put the limits of actors that are alike under 'others'.",
)
_TOP: Final = ("version", "actors", "others")
_BOUNDS: Final = ("role", "networks", "tools", "calls_per_minute", "packets_per_hour")
_ACTOR: Final = ("name", "key", "subject", *_BOUNDS)
_ROLES: Final = tuple(role.value for role in Role)
_PATTERN: Final = re.compile(r"[a-z0-9_*?\[\]!-]{1,64}")


def read_actors_file(path: Path) -> Actors:
    """Read an actors file; raises ConfigError if it cannot be read, could be changed by others, or is wrong."""
    return read_yaml_file(path, _RULES, _read)


def _read(root: Node | None) -> Actors:
    top = read_top(root, "an actors file", _TOP, "actors")
    nodes = read_list(top["actors"], "actors")
    if len(nodes) > MAX_ACTORS:
        refuse(nodes[MAX_ACTORS], f"there are more than {MAX_ACTORS} actors.")
    names: dict[str, int] = {}
    known: dict[str, Bounds] = {}
    for node in nodes:
        keys = read_mapping(node, "an actor", _ACTOR)
        bounds = _bounds(keys, _name(node, keys, names))
        for credential, at in _credentials(node, keys):
            if credential in known:
                refuse(at, f"{quoted(credential)} already belongs to {quoted(known[credential].name)}.")
            known[credential] = bounds
    others = top.get("others")
    if others is None:
        return Actors(known)
    return Actors(known, _bounds(read_mapping(others, "others", _BOUNDS), "others"))


def _name(node: Node, keys: dict[str, Node], names: dict[str, int]) -> str:
    if "name" not in keys:
        refuse(node, "an actor must have a name.")
    name = read_text(keys["name"], "a name", NAME_CHARS)
    if not name.strip():
        refuse(keys["name"], "a name must not be empty.")
    if name in names:
        refuse(keys["name"], f"the name {quoted(name)} occurs twice, first in line {names[name]}.")
    names[name] = keys["name"].line
    return name


def _credentials(node: Node, keys: dict[str, Node]) -> list[tuple[str, Node]]:
    """Return the names that its credentials give an actor, each with its node."""
    found = [(f"key:{read_text(each, 'the name of a key', NAME_CHARS)}", each) for each in _one_or_more(keys, "key")]
    found += [
        (subject_name(read_text(each, "a subject", SUBJECT_CHARS)), each) for each in _one_or_more(keys, "subject")
    ]
    if not found:
        refuse(node, "an actor must have a key or a subject.", "The server recognizes the actor by one of them.")
    for credential, at in found:
        if credential in {"key:", "sub:"}:
            refuse(at, "a key or a subject must not be empty.")
    return found


def _one_or_more(keys: dict[str, Node], key: str) -> list[Node]:
    node = keys.get(key)
    if node is None:
        return []
    nodes: list[Node] = node.nodes if isinstance(node, Listing) else [node]
    if len(nodes) > MAX_CREDENTIALS:
        refuse(node, f"there are more than {MAX_CREDENTIALS} values of {key}.")
    return nodes


def _bounds(keys: dict[str, Node], name: str) -> Bounds:
    role = networks = calls = packets = None
    tools: tuple[str, ...] = ("*",)
    if (node := keys.get("role")) is not None:
        role = Role(read_choice(node, "role", _ROLES))
    if (node := keys.get("networks")) is not None:
        networks = _networks(node)
    if (node := keys.get("tools")) is not None:
        tools = _tools(node)
    if (node := keys.get("calls_per_minute")) is not None:
        calls = read_whole_number(node, "calls_per_minute", MAX_CALLS)
    if (node := keys.get("packets_per_hour")) is not None:
        packets = read_whole_number(node, "packets_per_hour")
    return Bounds(name, role, networks, tools, calls, packets)


def _networks(node: Node) -> tuple[str, ...]:
    hint = "Write networks: [] to allow no target. Without the key, the whole policy is allowed."
    entries, terms = Entries(), Terms()
    for item in _bounded_list(node, "networks", MAX_NETWORKS, hint):
        if not isinstance(item, Text) or item.is_null:
            refuse(item, f"an entry of networks must be an address, a network or a suffix, not {describe(item)}.")
        try:
            entries.add(item.text, terms, item.line, exact_names=False)
        except ConfigError as error:
            raise LineError(item.line, error.message, error.hint) from None
    return tuple(entries.spellings)


def _tools(node: Node) -> tuple[str, ...]:
    hint = "Write tools: [] to allow no tool. Without the key, all tools are allowed."
    found = []
    for item in _bounded_list(node, "tools", MAX_TOOLS, hint):
        pattern = read_text(item, "the name or pattern of a tool", 64)
        if not _PATTERN.fullmatch(pattern):
            refuse(
                item,
                f"{quoted(pattern)} is not the name or pattern of a tool.",
                "Use lower-case letters, digits, _ and the wildcards * ? [ ].",
            )
        found.append(pattern)
    return tuple(found)


def _bounded_list(node: Node, what: str, most: int, empty_hint: str) -> list[Node]:
    if isinstance(node, Text) and node.is_null:
        # All items may be commented out. To read that as "no limit" would allow more than the operator wanted.
        refuse(node, f"{what} has no value.", empty_hint)
    nodes = read_list(node, what)
    if len(nodes) > most:
        refuse(nodes[most], f"there are more than {most} {what}.")
    return nodes
