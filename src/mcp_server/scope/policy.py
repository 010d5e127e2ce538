"""The scope policy: which networks and names may be scanned, and on which terms.

Membership is tested against the networks of the policy only. ``ipaddress.is_private`` and similar properties are not
used: they include 169.254.169.254, 0.0.0.0 and 240.0.0.0/4, and they change between Python versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Final

from mcp_server.errors import ConfigError
from mcp_server.model.run import Risk
from mcp_server.model.target import Network
from mcp_server.model.untrusted import quoted
from mcp_server.scope.address_ranges import WIDTHS, Span, merged, network_of, network_text, prefixes, span, without
from mcp_server.scope.entries import Entries, PolicyEntry, Terms
from mcp_server.scope.grant import Grant, PolicyLimits, decide, strictest_rate
from mcp_server.scope.guard_sets import GuardSets, make_guard_sets
from mcp_server.scope.radix import Prefix, RadixTree, cut
from mcp_server.scope.special_networks import ALWAYS_REFUSED, LOOPBACK
from mcp_server.scope.verdict import Verdict
from mcp_server.scope.windows import Window

ENTRIES_SHOWN: Final = 12
"""Entries that a message or a verdict lists before it counts the rest."""
SETTING: Final = "security.allowed_targets"


class ScopePolicy:
    """An immutable policy: allowed networks and names with their terms, exclusions, limits, windows and resolvers.

    ``source`` is the file or the setting that holds the policy. Make a policy with `load`, `from_file` or
    `from_entries`.
    """

    def __init__(
        self,
        allow: Entries,
        exclude: Entries,
        *,
        source: str = SETTING,
        name: str = "",
        limits: PolicyLimits | None = None,
        windows: Mapping[str, Window] | None = None,
        resolvers: tuple[IPv4Address | IPv6Address, ...] = (),
        called: str = "the scope",
    ) -> None:
        self._called = called
        self.source = source
        self.name = name
        self.limits: Final = limits or PolicyLimits()
        self.windows: Final = MappingProxyType(dict(windows or {}))
        self.resolvers: Final = resolvers
        self._allow: Final = allow
        self._exclude: Final = exclude
        self._refused: Final = ALWAYS_REFUSED
        self._trees: Final = {version: self._three_trees(version) for version in WIDTHS}

    def _three_trees(self, version: int) -> tuple[RadixTree, RadixTree, RadixTree]:
        """Return three trees: allowed outside loopback, allowed inside loopback, and excluded or always refused."""
        width, networks = WIDTHS[version], self._allow.networks[version]
        low, high = LOOPBACK[version]
        shortest = width - (high - low).bit_length()
        # "Any network" must not include the services of this host: only an entry inside loopback allows loopback.
        inside = [each for each in networks if low <= each[0] <= high and each[1] >= shortest]
        outside = (
            [each for each in networks if not low <= each[0] <= high or each[1] < shortest] if inside else networks
        )
        # Negative numbers, to distinguish refused ranges from the positions of exclusions.
        refused = [
            (int(network.network_address), network.prefixlen, -1 - index)
            for index, (network, _) in enumerate(self._refused)
            if network.version == version
        ]
        denied = [*self._exclude.networks[version], *refused]
        return RadixTree(width, outside), RadixTree(width, inside), RadixTree(width, denied)

    @classmethod
    def load(cls, policy_file: Path | None, entries: Iterable[str], *, entries_are_set: bool) -> ScopePolicy:
        """Return the policy of a configuration: its policy file, or its list of entries if there is no file.

        Raises ConfigError if the file or the list is wrong, or if both are set.
        """
        if policy_file is None:
            return cls.from_entries(entries)
        if entries_are_set:
            raise ConfigError(
                f"security.policy_file and {SETTING} are both set, and only one of them can define the scope.",
                hint=f"Move the entries of {SETTING} into the file, below 'allow', and unset {SETTING}.",
            )
        return cls.from_file(policy_file)

    @classmethod
    def from_entries(cls, entries: Iterable[str], *, called: str = "the scope") -> ScopePolicy:
        """Build a policy from ``security.allowed_targets``; raises ConfigError for the first wrong entry.

        The policy allows any risk at any time and rate. An empty list allows nothing. ``called`` is the
        name of the policy in the message of a refusal.
        """
        allow, terms = Entries(repeats=True), Terms()
        for text in entries:
            try:
                allow.add(text, terms, exact_names=False)
            except ConfigError as error:
                raise ConfigError(f"{SETTING}: {error.message}", hint=error.hint) from None
        return cls(allow, Entries(), called=called)

    @classmethod
    def from_file(cls, path: Path) -> ScopePolicy:
        """Read a policy file (docs/policy.md); raises ConfigError that names the file and the line."""
        from mcp_server.scope.policy_file import read_policy_file, without_garbage_collection

        with without_garbage_collection():
            file = read_policy_file(path)
            return cls(
                file.allow,
                file.exclude,
                source=str(path),
                name=file.name,
                limits=file.limits,
                windows=file.windows,
                resolvers=file.resolvers,
            )

    @property
    def entries(self) -> tuple[str, ...]:
        """The allowed entries in canonical spelling, in their order."""
        return tuple(self._allow.spellings)

    @property
    def size(self) -> int:
        """The number of allowed entries."""
        return len(self._allow.spellings)

    def policy_entries(self, at_most: int) -> tuple[PolicyEntry, ...]:
        """Return the first ``at_most`` allowed entries with their terms, in their order."""
        return tuple(map(self._allow.at, range(min(at_most, self.size))))

    def allowed_networks(self) -> tuple[Network, ...]:
        """Return the networks of the allowed entries, in their order. Names have no networks."""
        found = self._allow.networks
        return tuple(network_of(version, first, length) for version in found for first, length, _ in found[version])

    @property
    def exclusions(self) -> tuple[str, ...]:
        """The excluded networks and names in canonical spelling, in their order."""
        return tuple(self._exclude.spellings)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of everything that affects a decision, including the ranges that are always refused.

        Order, case, repetition and splitting of entries do not change it.
        """
        from mcp_server.scope.policy_hash import policy_hash

        return policy_hash(
            self._allow,
            self._exclude,
            self._trees,
            self.limits,
            self.windows,
            self.resolvers,
            self._refused_spans(),
        )

    def guard_sets(self) -> GuardSets:
        """Return the policy as sets of networks for the packet guard."""
        return make_guard_sets(self._allow, self._exclude, self.resolvers, self._refused_spans())

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Entries that allow nothing, because an exclusion or an always-refused range covers all their networks."""
        alive = set(self._allow.names.values())
        for version, width in WIDTHS.items():
            denied = self._trees[version][2]
            for first, length, position in self._allow.networks[version]:
                if denied.holding(first, first | ((1 << (width - length)) - 1)) is None:
                    alive.add(position)
        return tuple(text for position, text in enumerate(self._allow.spellings) if position not in alive)

    def summary(self) -> str:
        """Return the allowed entries for the message of a refusal. A long list is cut, and the rest is counted."""
        return _listed(self._allow.spellings) or "nothing"

    def check_network(self, network: Network) -> Verdict:
        """Judge a network: every address must be allowed, and none may be excluded or always refused.

        For each address, the narrowest entry that contains it decides.
        """
        version = network.version
        first, last = span(network)
        if version == 6 and getattr(network.network_address, "scope_id", None):
            return _refusal(lambda: f"{network.network_address} has a zone id, and zone ids are always refused.")
        denied = self._trees[version][2]
        holder, inside = denied.touching(first, last)
        if holder is not None or inside:
            return self._denied(network, inside[0][2] if holder is None else holder, whole=holder is not None)
        holder, inside = self._touching(version, first, last)
        if not inside and holder is not None:
            entry = self._allow.at(holder)
            return _allowance(lambda: network_text(network), entry.text, (entry,))
        found = dict.fromkeys([position for _, _, position in cut(first, last, holder, inside)])
        positions = [position for position in found if position is not None]
        if None not in found:
            texts = _listed([self._allow.spellings[each] for each in positions[:ENTRIES_SHOWN]], len(positions))
            return _allowance(lambda: network_text(network), texts, self._deciding(positions))
        where = "only partly in" if positions else "outside"
        return _refusal(
            lambda: f"{network_text(network)} is {where} {self._called}. Allowed: {self.summary()}.",
            hint=(lambda: self._allowed_part(network)) if positions else None,
        )

    def check_address(self, address: IPv4Address | IPv6Address) -> Verdict:
        """Judge one address, such as the answer of a resolver."""
        return self.check_network(ip_network(address))

    def check_name(self, name: str) -> Verdict:
        """Judge a canonical name: by an entry for this name, or by the longest suffix that it is under.

        ``.lab.internal`` does not allow ``lab.internal`` itself. An allowed name may be looked up, and then every
        address that it resolves to is judged as well.
        """
        excluded = self._excluding(name)
        if excluded is not None:
            return _refusal(lambda: f"{quoted(name)[1:-1]} is excluded by {excluded}.", entries=(excluded,))
        names = self._allow.names
        position = next((names[form] for form in _forms(name) if form in names), None)
        if position is None:
            return _refusal(
                lambda: f"The name {quoted(name)} is under no suffix of {self._called}. Allowed: {self.summary()}."
            )
        entry = self._allow.at(position)
        return _allowance(lambda: name, entry.text, (entry,))

    def check_alias(self, name: str) -> Verdict:
        """Judge a name from a CNAME record. It is refused only if it is excluded, because its addresses are judged."""
        excluded = self._excluding(name)
        if excluded is None:
            return Verdict(True, lambda: f"{quoted(name)[1:-1]} is not excluded.")
        return _refusal(lambda: f"{quoted(name)[1:-1]} is excluded by {excluded}.", entries=(excluded,))

    def rest_of(self, network: Network, at_most: int | None = None) -> tuple[Network, ...]:
        """Return the fewest networks that cover the part of ``network`` in scope, in order, at most ``at_most``."""
        version = network.version
        first, last = span(network)
        allowed, loopback, denied = self._trees[version]
        holder, inside = denied.touching(first, last)
        if holder is not None:
            return ()
        left = [(start, end) for start, end, position in allowed.pieces(first, last) if position is not None]
        left = without(left, [LOOPBACK[version]])
        left += [(start, end) for start, end, position in loopback.pieces(first, last) if position is not None]
        holes = _outermost(inside)
        rest = islice(prefixes(without(merged(left), holes), version), at_most)
        return tuple(network_of(version, *each) for each in rest)

    def require(
        self,
        networks: Sequence[Network],
        names: Sequence[str],
        risk: Risk,
        *,
        addresses: int,
        ports: int,
        probes: int,
        now: datetime,
    ) -> Grant:
        """Judge a planned call. Pure: the hourly budget is not part of it (see `budget.PacketBudget`).

        ``networks`` are the pinned targets and ``names`` the names that were looked up. ``ports`` is the number per
        address (0 counts as 1) and ``probes`` the total. ``now`` must have an offset from UTC. If several entries
        decide, the strictest terms apply.

        Raises:
            TargetError: ``target_out_of_scope``.
            AccessError: ``risk_not_allowed``, or ``outside_time_window`` with ``next_opening`` in its details.
            BusyError: ``budget_exceeded``, with ``limit`` and ``asked`` in its details.
        """
        verdicts = [*map(self.check_name, names), *map(self.check_network, networks)]
        return decide(
            verdicts, self.limits, self.windows, risk, addresses=addresses, ports=ports, probes=probes, now=now
        )

    def rate_for(self, networks: Iterable[Network], names: Iterable[str] = ()) -> float | None:
        """Return the most packets per second that the policy allows towards all of ``networks``; None means no limit.

        ``names`` are the names that were looked up for the networks.
        """
        verdicts = chain(map(self.check_network, networks), map(self.check_name, names))
        return strictest_rate((entry for verdict in verdicts for entry in verdict.entries), self.limits)

    def rated_entries(self, networks: Iterable[Network], names: Iterable[str] = ()) -> tuple[str, ...]:
        """Return the entries with their own rate that decide about an address of ``networks`` or one of ``names``."""
        found: dict[int | None, None] = {}
        for network in networks:
            first, last = span(network)
            pieces = cut(first, last, *self._touching(network.version, first, last))
            found |= dict.fromkeys(position for _, _, position in pieces)
        known = self._allow.names
        found |= dict.fromkeys(next((known[form] for form in _forms(name) if form in known), None) for name in names)
        return tuple(
            self._allow.spellings[position]
            for position in found
            if position is not None and self._allow.terms[position].packets_per_second is not None
        )

    def _refused_spans(self) -> dict[int, list[Span]]:
        return {v: merged(span(network) for network, _ in self._refused if network.version == v) for v in WIDTHS}

    def _touching(self, version: int, first: int, last: int) -> tuple[int | None, list[Prefix]]:
        """Return the allowed entry that contains a whole span, and the allowed entries inside it."""
        allowed, loopback, _ = self._trees[version]
        low, high = LOOPBACK[version]
        return (loopback if low <= last and first <= high else allowed).touching(first, last)

    def _denied(self, network: Network, position: int, *, whole: bool) -> Verdict:
        hint = None if whole else lambda: self._allowed_part(network)
        if position < 0:
            verb, words = "is in" if whole else "overlaps", self._refused[-1 - position][1]
            return _refusal(lambda: f"{network_text(network)} {verb} {words}, which is always refused.", hint=hint)
        entry = self._exclude.at(position)
        if whole:
            return _refusal(lambda: f"{network_text(network)} is excluded by {entry}.", entries=(entry,))
        where = "" if entry.line is None else f" in line {entry.line}"
        return _refusal(
            lambda: f"{network_text(network)} contains {entry.text}, which the policy excludes{where}.",
            hint=hint,
            entries=(entry,),
        )

    def _allowed_part(self, network: Network) -> str | None:
        if not (rest := self.rest_of(network, ENTRIES_SHOWN + 1)):
            return None
        more = " and more" if len(rest) > ENTRIES_SHOWN else ""
        return f"Allowed part: {', '.join(map(network_text, rest[:ENTRIES_SHOWN]))}{more}."

    def _excluding(self, name: str) -> PolicyEntry | None:
        # Excluding a suffix also excludes the bare domain.
        for form in (f".{name}", *_forms(name)):
            if (position := self._exclude.names.get(form)) is not None:
                return self._exclude.at(position)
        return None

    def _deciding(self, positions: Sequence[int]) -> tuple[PolicyEntry, ...]:
        chosen = dict.fromkeys(positions[:ENTRIES_SHOWN])
        if len(positions) > ENTRIES_SHOWN:
            terms = {self._allow.terms[position]: position for position in reversed(positions)}
            chosen |= dict.fromkeys(terms.values())
        return tuple(self._allow.at(position) for position in chosen)


def _allowance(target: Callable[[], str], allowed_by: str, entries: tuple[PolicyEntry, ...]) -> Verdict:
    return Verdict(True, lambda: f"{target()} is allowed by {allowed_by}.", allowed_by=allowed_by, entries=entries)


def _refusal(
    reason: Callable[[], str],
    *,
    hint: Callable[[], str | None] | None = None,
    entries: tuple[PolicyEntry, ...] = (),
) -> Verdict:
    return Verdict(False, reason, code="target_out_of_scope", hint=hint, entries=entries)


def _forms(name: str) -> list[str]:
    """Return a name and the suffixes that it is under, the longest first."""
    labels = name.split(".")
    return [name, *("." + ".".join(labels[index:]) for index in range(1, len(labels)))]


def _listed(items: Sequence[str], count: int | None = None) -> str:
    rest = (len(items) if count is None else count) - ENTRIES_SHOWN
    return ", ".join(items[:ENTRIES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _outermost(inside: Sequence[tuple[int, int, int]]) -> list[Span]:
    found: list[Span] = []
    for first, last, _ in inside:  # wider before narrower
        if not found or first > found[-1][1]:
            found.append((first, last))
    return found
