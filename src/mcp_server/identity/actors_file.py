"""The actors file: read whole, checked strictly, and made into the bounds of each actor.

The schema, with an example, is docs/actors.md. Every error is a `ConfigError` that names the file and the line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from mcp_server.errors import ConfigError
from mcp_server.identity.actors import Actors, Bounds
from mcp_server.identity.base import subject_name
from mcp_server.model.access import Role
from mcp_server.scope.entries import Entries
from mcp_server.scope.nodes import DESCRIBED, items, kind, like, mapping, number, text, wrong
from mcp_server.scope.owned_file import OwnedFile, read_owned
from mcp_server.scope.reading import shown
from mcp_server.scope.strict_yaml import Listing, Node, Text, parse
from mcp_server.scope.terms import Terms

MAX_BYTES: Final = 4 * 1024 * 1024
MAX_ACTORS: Final = 10_000
MAX_NETWORKS: Final = 4096
MAX_TOOLS: Final = 256
MAX_CREDENTIALS: Final = 16
MAX_CALLS: Final = 100_000
NAME_CHARS: Final = 64
SUBJECT_CHARS: Final = 255
"""The longest ``sub`` that OpenID Connect allows (Core 1.0, section 2)."""

_KIND: Final = OwnedFile("actors file", "auth.actors_file", MAX_BYTES, "Bound actors that are alike under 'others'.")
_TOP: Final = ("version", "actors", "others")
_BOUNDS: Final = ("role", "networks", "tools", "calls_per_minute", "packets_per_hour")
_ACTOR: Final = ("name", "key", "subject", *_BOUNDS)
_ROLES: Final = tuple(role.value for role in Role)
_PATTERN: Final = re.compile(r"[a-z0-9_*?\[\]!-]{1,64}")
_HERE: Final = "docs/actors.md describes the file."


def read_actors_file(path: Path) -> Actors:
    """Read an actors file; raises ConfigError where it cannot be read, could be changed by others, or is wrong."""
    content = read_owned(path, _KIND)
    try:
        return _read(parse(content))
    except ConfigError as error:
        # The parts below know the line only.
        hint = _HERE if error.hint == DESCRIBED else error.hint
        raise ConfigError(f"{path}, {error.message}", hint=hint) from None


def _read(root: Node | None) -> Actors:
    if root is None or (isinstance(root, Text) and root.is_null):
        raise ConfigError("line 1: the file is empty", hint="docs/actors.md has an example to begin with.")
    top = mapping(root, "an actors file", _TOP)
    version = top.get("version")
    if not isinstance(version, Text) or version.text != "1":
        wrong(version or root, "an actors file begins with 'version: 1', which says how the rest is read")
    if "actors" not in top:
        wrong(root, "there is no key 'actors'", hint="actors: [] names nobody.")
    nodes = items(top["actors"], "actors")
    if len(nodes) > MAX_ACTORS:
        wrong(nodes[MAX_ACTORS], f"more than {MAX_ACTORS} actors")
    names: dict[str, int] = {}
    known: dict[str, Bounds] = {}
    for node in nodes:
        keys = mapping(node, "an actor", _ACTOR)
        bounds = _bounds(keys, _name(node, keys, names))
        for credential, at in _credentials(node, keys):
            if credential in known:
                wrong(at, f"{shown(credential)} is {shown(known[credential].name)} already")
            known[credential] = bounds
    others = top.get("others")
    if others is None:
        return Actors(known)
    return Actors(known, _bounds(mapping(others, "others", _BOUNDS), "others"))


def _name(node: Node, keys: dict[str, Node], names: dict[str, int]) -> str:
    if "name" not in keys:
        wrong(node, "an actor has a name")
    name = text(keys["name"], "a name", NAME_CHARS)
    if not name.strip():
        wrong(keys["name"], "a name is not empty")
    if name in names:
        wrong(keys["name"], f"the name {shown(name)} stands twice, first in line {names[name]}")
    names[name] = keys["name"].line
    return name


def _credentials(node: Node, keys: dict[str, Node]) -> list[tuple[str, Node]]:
    """The names that its credentials give an actor, each with its place."""
    found = [(f"key:{text(each, 'the name of a key', NAME_CHARS)}", each) for each in _one_or_more(keys, "key")]
    found += [(subject_name(_subject(each)), each) for each in _one_or_more(keys, "subject")]
    if not found:
        wrong(node, "an actor has a key or a subject, by which it is known")
    for credential, at in found:
        if credential in {"key:", "sub:"}:
            wrong(at, "a key or a subject is not empty")
    return found


def _subject(node: Node) -> str:
    return text(node, "a subject", SUBJECT_CHARS)


def _one_or_more(keys: dict[str, Node], key: str) -> list[Node]:
    node = keys.get(key)
    if node is None:
        return []
    nodes: list[Node] = node.nodes if isinstance(node, Listing) else [node]
    if len(nodes) > MAX_CREDENTIALS:
        wrong(node, f"more than {MAX_CREDENTIALS} of {key}")
    return nodes


def _bounds(keys: dict[str, Node], name: str) -> Bounds:
    role = networks = calls = packets = None
    tools: tuple[str, ...] = ("*",)
    if (node := keys.get("role")) is not None:
        word = text(node, "role", 20)
        if word not in _ROLES:
            wrong(node, f"role is one of {', '.join(_ROLES)}, not {shown(word)}", hint=like(word, _ROLES))
        role = Role(word)
    if (node := keys.get("networks")) is not None:
        networks = _networks(node)
    if (node := keys.get("tools")) is not None:
        tools = _tools(node)
    if (node := keys.get("calls_per_minute")) is not None:
        calls = number(node, "calls_per_minute")
        if calls > MAX_CALLS:
            wrong(node, f"calls_per_minute is at most {MAX_CALLS}, not {calls}")
    if (node := keys.get("packets_per_hour")) is not None:
        packets = number(node, "packets_per_hour")
    return Bounds(name, role, networks, tools, calls, packets)


def _networks(node: Node) -> tuple[str, ...]:
    nodes = _listed(node, "networks", MAX_NETWORKS, "networks: [] allows no target; without the key all of the policy.")
    entries, terms = Entries(), Terms()
    for item in nodes:
        if not isinstance(item, Text) or item.is_null:
            wrong(item, f"an entry of networks is an address, a network or a suffix, not {kind(item)}")
        try:
            entries.add(item.text, terms, item.line, exact_names=False)
        except ConfigError as error:
            raise ConfigError(f"line {item.line}: {error.message}", hint=error.hint) from None
    return tuple(entries.spellings)


def _tools(node: Node) -> tuple[str, ...]:
    found = []
    for item in _listed(node, "tools", MAX_TOOLS, "tools: [] allows none; without the key all of them."):
        pattern = text(item, "a tool's name or pattern", 64)
        if not _PATTERN.fullmatch(pattern):
            wrong(item, f"{shown(pattern)} is no tool's name or pattern: small letters, digits, _ and * ? [ ]")
        found.append(pattern)
    return tuple(found)


def _listed(node: Node, what: str, most: int, empty: str) -> list[Node]:
    if isinstance(node, Text) and node.is_null:
        # A list of which every line is commented out would lift the bound that the owner meant to draw.
        wrong(node, f"nothing stands under {what}", hint=empty)
    nodes = items(node, what)
    if len(nodes) > most:
        wrong(nodes[most], f"more than {most} of {what}")
    return nodes
