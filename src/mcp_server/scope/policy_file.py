"""Read a policy file into entries, limits, windows and resolvers.

docs/policy.md has the schema and an example. Every error is a ConfigError that names the file and the line.
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
from mcp_server.model.untrusted import quoted
from mcp_server.operator_files.reading import OTHERS_WRITE, FileRules
from mcp_server.operator_files.schema import (
    describe,
    did_you_mean,
    read_choice,
    read_list,
    read_mapping,
    read_named,
    read_rate,
    read_text,
    read_top,
    read_whole_number,
    refuse,
)
from mcp_server.operator_files.strict_yaml import LineError, Node, Text, read_yaml_file
from mcp_server.scope.address_ranges import span
from mcp_server.scope.entries import FILE_HINT, Entries, Terms
from mcp_server.scope.grant import PolicyLimits
from mcp_server.scope.policy_windows import read_window
from mcp_server.scope.reading import read_target
from mcp_server.scope.special_networks import ALWAYS_REFUSED
from mcp_server.scope.windows import Window

MAX_BYTES: Final = 16 * 1024 * 1024
"""The largest file that is read: 100,000 entries with their own terms take 8 MB."""
MAX_RESOLVERS: Final = 8
NAME_CHARS: Final = 80

_RULES: Final = FileRules(
    "policy file",
    MAX_BYTES,
    setting="security.policy_file",
    forbidden_mode=OTHERS_WRITE,
    check_folders=True,
    hint="docs/policy.md describes the file.",
    too_large_hint="Join adjacent networks.",
)
_TOP: Final = ("version", "name", "defaults", "allow", "exclude", "limits", "windows", "resolvers")
_TERMS: Final = ("max_risk", "packets_per_second", "windows")
_WHERE: Final = ("network", "name", "entries")
_LIMITS: Final = ("addresses_x_ports", "packets_per_run", "packets_per_hour", "packets_per_second")
_NO_TERMS: Final = Terms()
_RISKS: Final = tuple(str(risk) for risk in Risk)
_COLON_HINT: Final = 'Put an address that ends in a colon in quotes: "fd77::".'


@dataclass(slots=True)
class PolicyFile:
    """The content of a policy file. Names in ``allow`` have only the terms of their own entry, and no defaults."""

    name: str = ""
    allow: Entries = field(default_factory=Entries)
    exclude: Entries = field(default_factory=Entries)
    limits: PolicyLimits = field(default_factory=PolicyLimits)
    windows: dict[str, Window] = field(default_factory=dict)
    resolvers: tuple[IPv4Address | IPv6Address, ...] = ()


def read_policy_file(path: Path) -> PolicyFile:
    """Read a policy file; raises ConfigError if it cannot be read, could be changed by others, or is wrong."""
    return read_yaml_file(path, _RULES, lambda root: _Reader().read(root))


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause the garbage collector while very many objects are made, none of which is garbage.

    The collector would examine the new objects again and again, which takes half of the time of a large policy.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Reader:
    """Turns the nodes of a file into a `PolicyFile`; raises LineError."""

    def __init__(self) -> None:
        self._policy = PolicyFile()
        self._defaults = Terms(max_risk=Risk.SCAN)
        self._known: dict[Terms, Terms] = {}

    def read(self, root: Node | None) -> PolicyFile:
        policy, top = self._policy, _top(root)
        if (title := top.get("name")) is not None:
            policy.name = read_text(title, "name", NAME_CHARS)
        policy.windows = {name: read_window(name, node) for name, node in read_named(top.get("windows"), "windows")}
        self._defaults = self._terms(read_mapping(top.get("defaults"), "defaults", _TERMS), self._defaults)
        policy.limits = _limits(read_mapping(top.get("limits"), "limits", _LIMITS))
        for node in read_list(top["allow"], "allow"):
            if isinstance(node, Text):
                self._add(policy.allow, node, self._defaults)
            else:
                self._allow(node)
        for node in read_list(top.get("exclude"), "exclude"):
            self._add(policy.exclude, node, _NO_TERMS)
        policy.resolvers = _resolvers(top.get("resolvers"))
        return policy

    def _add(self, entries: Entries, node: Node, terms: Terms, names: Terms | None = None) -> None:
        if not isinstance(node, Text) or node.is_null:
            refuse(node, f"an entry must be an address, a network or a name, not {describe(node)}.", _COLON_HINT)
        try:
            entries.add(node.text, terms, node.line)
        except ConfigError as error:
            raise LineError(node.line, error.message, error.hint) from None
        # A name only says that it may be looked up. It has the terms of its own entry, and no defaults.
        if entries.spellings[-1] in entries.names:
            entries.terms[-1] = names or _NO_TERMS

    def _allow(self, node: Node) -> None:
        keys = read_mapping(node, "an entry of allow", (*_WHERE, *_TERMS), hint=_COLON_HINT)
        where = [key for key in _WHERE if key in keys]
        if len(where) != 1:
            refuse(node, f"an entry of allow must have exactly one of the keys {', '.join(_WHERE)}.")
        (key,), entries = where, self._policy.allow
        terms = self._terms(keys, self._defaults)
        names = _NO_TERMS if key == "network" else self._terms(keys, _NO_TERMS)
        if key == "entries":
            for item in read_list(keys[key], key):
                self._add(entries, item, terms, names)
            return
        self._add(entries, keys[key], terms, names)
        if (key == "name") != (entries.spellings[-1] in entries.names):
            refuse(keys[key], f"{entries.spellings[-1]} is not a {key}.", FILE_HINT)

    def _terms(self, keys: dict[str, Node], above: Terms) -> Terms:
        risk, per_second, windows = above.max_risk, above.packets_per_second, above.windows
        if (node := keys.get("max_risk")) is not None:
            risk = Risk[read_choice(node, "max_risk", _RISKS).upper()]
        if (node := keys.get("packets_per_second")) is not None:
            per_second = read_rate(node)
        if (node := keys.get("windows")) is not None:
            if isinstance(node, Text):
                refuse(
                    node,
                    f"windows must be a list of names, not {describe(node)}.",
                    "Write windows: [] for no restriction.",
                )
            windows = tuple(dict.fromkeys(self._window_name(each) for each in read_list(node, "windows")))
        found = Terms(risk, per_second, windows)
        return self._known.setdefault(found, found)  # share equal terms between entries

    def _window_name(self, node: Node) -> str:
        name = read_text(node, "a window's name", 64)
        known = tuple(self._policy.windows)
        if name not in known:
            hint = did_you_mean(name, known) if known else "Add the window to 'windows'."
            refuse(node, f"there is no window {quoted(name)}.", hint)
        return name


def _top(root: Node | None) -> dict[str, Node]:
    found = read_top(root, "a policy", _TOP, "allow")
    # A section may have all its lines commented out. An empty value inside a section is an error, though.
    return {key: node for key, node in found.items() if key == "allow" or not (isinstance(node, Text) and node.is_null)}


def _limits(keys: dict[str, Node]) -> PolicyLimits:
    whole = {key: read_whole_number(node, key) for key, node in keys.items() if key != "packets_per_second"}
    per_second = keys.get("packets_per_second")
    return PolicyLimits(**whole, packets_per_second=None if per_second is None else read_rate(per_second))


def _resolvers(node: Node | None) -> tuple[IPv4Address | IPv6Address, ...]:
    found: list[IPv4Address | IPv6Address] = []
    for item in read_list(node, "resolvers"):
        given = read_text(item, "a resolver", 255)
        try:
            network = read_target(given).network
        except RefusedError as error:
            refuse(item, error.message, error.hint)
        if network is None or "/" in given:
            refuse(item, f"a resolver must be an address, not {quoted(given)}.")
        address = network.network_address
        for refused, words in ALWAYS_REFUSED:
            if refused.version == network.version and span(refused)[0] <= int(address) <= span(refused)[1]:
                refuse(item, f"{address} is in {words}, which no policy can allow.")
        if address in found:
            refuse(item, f"the resolver {address} occurs twice.", "Remove one of them.")
        found.append(address)
        if len(found) > MAX_RESOLVERS:
            refuse(item, f"there are more than {MAX_RESOLVERS} resolvers.")
    return tuple(found)
