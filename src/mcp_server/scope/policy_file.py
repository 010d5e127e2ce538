"""The policy file: read whole, checked strictly, and made into entries, limits, windows and resolvers.

The schema, with an example, is docs/policy.md. Every error is a `ConfigError` that names the file and the line.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from mcp_server.errors import ConfigError, RefusedError
from mcp_server.model.run import Risk
from mcp_server.scope.entries import FILE_HINT, Entries
from mcp_server.scope.nodes import items, kind, like, mapping, number, pairs, rate, text, wrong
from mcp_server.scope.owned_file import OwnedFile, read_owned
from mcp_server.scope.policy_windows import read_window
from mcp_server.scope.ranges import span
from mcp_server.scope.reading import read_target, shown
from mcp_server.scope.refused import ALWAYS_REFUSED
from mcp_server.scope.strict_yaml import Node, Text, parse
from mcp_server.scope.terms import PolicyLimits, Terms
from mcp_server.scope.windows import Window

MAX_BYTES: Final = 16 * 1024 * 1024
"""The largest file that is read: 100,000 entries with terms of their own take 8 MB."""
_KIND: Final = OwnedFile("policy file", "security.policy_file", MAX_BYTES, "Join adjoining networks.")
MAX_RESOLVERS: Final = 8
NAME_CHARS: Final = 80

_TOP: Final = ("version", "name", "defaults", "allow", "exclude", "limits", "windows", "resolvers")
_TERMS: Final = ("max_risk", "packets_per_second", "windows")
_WHERE: Final = ("network", "name", "entries")
_LIMITS: Final = ("addresses_x_ports", "packets_per_run", "packets_per_hour", "packets_per_second")
_NO_TERMS: Final = Terms()
_RISKS: Final = tuple(str(risk) for risk in Risk)
_COLON_HINT: Final = 'Put an address that ends in a colon in quotes: "fd77::".'


@dataclass(slots=True)
class PolicyFile:
    """What a policy file says. Names in ``allow`` have only the terms that their own line states."""

    path: Path
    name: str = ""
    allow: Entries = field(default_factory=Entries)
    exclude: Entries = field(default_factory=Entries)
    limits: PolicyLimits = field(default_factory=PolicyLimits)
    windows: dict[str, Window] = field(default_factory=dict)
    resolvers: tuple[IPv4Address | IPv6Address, ...] = ()


def read_policy_file(path: Path) -> PolicyFile:
    """Read a policy file; raises ConfigError where it cannot be read, could be changed by others, or is wrong."""
    content = read_owned(path, _KIND)
    try:
        return _Reader(path).read(parse(content))
    except ConfigError as error:
        # The parts below know the line only.
        raise ConfigError(f"{path}, {error.message}", hint=error.hint) from None


@contextmanager
def uncollected() -> Iterator[None]:
    """Make very many objects without the garbage collector, which would look through them again and again.

    None of them is garbage, and it takes half of the time of a large policy.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Reader:
    """Turns the nodes of a file into a `PolicyFile`; messages begin with the line."""

    def __init__(self, path: Path) -> None:
        self._policy = PolicyFile(path)
        self._defaults = Terms(max_risk=Risk.SCAN)
        self._known: dict[Terms, Terms] = {}

    def read(self, root: Node | None) -> PolicyFile:
        policy, top = self._policy, _top(root)
        if (title := top.get("name")) is not None:
            policy.name = text(title, "name", NAME_CHARS)
        policy.windows = {name: read_window(name, node) for name, node in pairs(top.get("windows"), "windows")}
        self._defaults = self._terms(mapping(top.get("defaults"), "defaults", _TERMS), self._defaults)
        policy.limits = _limits(mapping(top.get("limits"), "limits", _LIMITS))
        for node in items(top["allow"], "allow"):
            if isinstance(node, Text):
                self._add(policy.allow, node, self._defaults)
            else:
                self._allow(node)
        for node in items(top.get("exclude"), "exclude"):
            self._add(policy.exclude, node, _NO_TERMS)
        policy.resolvers = _resolvers(top.get("resolvers"))
        return policy

    def _add(self, entries: Entries, node: Node, terms: Terms, names: Terms | None = None) -> None:
        if not isinstance(node, Text) or node.is_null:
            wrong(node, f"an entry is an address, a network or a name, not {kind(node)}", hint=_COLON_HINT)
        try:
            entries.add(node.text, terms, node.line)
        except ConfigError as error:
            raise ConfigError(f"line {node.line}: {error.message}", hint=error.hint) from None
        # A name only says that it may be looked up: of terms it has those of its own line, and no defaults.
        if entries.spellings[-1] in entries.names:
            entries.terms[-1] = names or _NO_TERMS

    def _allow(self, node: Node) -> None:
        keys = mapping(node, "an entry of allow", (*_WHERE, *_TERMS), hint=_COLON_HINT)
        where = [key for key in _WHERE if key in keys]
        if len(where) != 1:
            wrong(node, f"an entry of allow has exactly one of the keys {', '.join(_WHERE)}")
        (key,), entries = where, self._policy.allow
        terms = self._terms(keys, self._defaults)
        names = _NO_TERMS if key == "network" else self._terms(keys, _NO_TERMS)
        if key == "entries":
            for item in items(keys[key], key):
                self._add(entries, item, terms, names)
            return
        self._add(entries, keys[key], terms, names)
        if (key == "name") != (entries.spellings[-1] in entries.names):
            wrong(keys[key], f"{entries.spellings[-1]} is not a {key}", hint=FILE_HINT)

    def _terms(self, keys: dict[str, Node], above: Terms) -> Terms:
        risk, per_second, windows = above.max_risk, above.packets_per_second, above.windows
        if (node := keys.get("max_risk")) is not None:
            word = text(node, "max_risk", 20)
            if word not in _RISKS:
                wrong(node, f"max_risk is one of {', '.join(_RISKS)}, not {shown(word)}", hint=like(word, _RISKS))
            risk = Risk[word.upper()]
        if (node := keys.get("packets_per_second")) is not None:
            per_second = rate(node)
        if (node := keys.get("windows")) is not None:
            if isinstance(node, Text):
                wrong(node, f"windows is a list of names, not {kind(node)}", hint="windows: [] is at any time.")
            windows = tuple(dict.fromkeys(self._window_name(each) for each in items(node, "windows")))
        found = Terms(risk, per_second, windows)
        return self._known.setdefault(found, found)  # equal terms are one, however many lines say them

    def _window_name(self, node: Node) -> str:
        name = text(node, "a window's name", 64)
        known = tuple(self._policy.windows)
        if name not in known:
            wrong(
                node, f"there is no window {shown(name)}", hint=like(name, known) if known else "Add it to 'windows'."
            )
        return name


def _top(root: Node | None) -> dict[str, Node]:
    if root is None or (isinstance(root, Text) and root.is_null):
        raise ConfigError("line 1: the file is empty", hint="docs/policy.md has an example to begin with.")
    found = mapping(root, "a policy", _TOP)
    version = found.get("version")
    if not isinstance(version, Text) or version.text != "1":
        wrong(version or root, "a policy begins with 'version: 1', which says how the rest is read")
    if "allow" not in found:
        wrong(root, "there is no key 'allow'", hint="allow: [] is a policy that allows nothing.")
    # A section of which every line is commented out says nothing; that is different from an empty value inside one.
    return {key: node for key, node in found.items() if key == "allow" or not (isinstance(node, Text) and node.is_null)}


def _limits(keys: dict[str, Node]) -> PolicyLimits:
    whole = {key: number(node, key) for key, node in keys.items() if key != "packets_per_second"}
    per_second = keys.get("packets_per_second")
    return PolicyLimits(**whole, packets_per_second=None if per_second is None else rate(per_second))


def _resolvers(node: Node | None) -> tuple[IPv4Address | IPv6Address, ...]:
    found: list[IPv4Address | IPv6Address] = []
    for item in items(node, "resolvers"):
        given = text(item, "a resolver", 255)
        try:
            network = read_target(given).network
        except RefusedError as error:
            wrong(item, error.message, hint=error.hint)
        if network is None or "/" in given:
            wrong(item, f"a resolver is an address, not {shown(given)}")
        address = network.network_address
        for refused, words in ALWAYS_REFUSED:
            if refused.version == network.version and span(refused)[0] <= int(address) <= span(refused)[1]:
                wrong(item, f"{address} lies in {words}, which no policy can allow")
        if address in found:
            wrong(item, f"resolver {address} stands twice")
        found.append(address)
        if len(found) > MAX_RESOLVERS:
            wrong(item, f"more than {MAX_RESOLVERS} resolvers")
    return tuple(found)
