"""The scope policy: which networks and names may be touched, and on what terms, as the owner's hand wrote it.

Membership is tested against the policy's own networks. ``ipaddress.is_private`` and its kin are not used: they
admit 169.254.169.254, 0.0.0.0 and 240.0.0.0/4, and they change between Python versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from mcp_server.errors import ConfigError
from mcp_server.model.target import Network
from mcp_server.scope import entries as entries_
from mcp_server.scope.entries import Entries, network_of
from mcp_server.scope.radix import Prefix, RadixTree, cut
from mcp_server.scope.ranges import WIDTHS, Span, merged, prefixes, span, without
from mcp_server.scope.reading import shown
from mcp_server.scope.refused import ALWAYS_REFUSED, WELL_KNOWN
from mcp_server.scope.terms import Grant, PolicyEntry, PolicyLimits, Terms, Verdict, strictest_rate

if TYPE_CHECKING:
    from datetime import datetime

    from mcp_server.model.run import Risk
    from mcp_server.scope.guard_sets import GuardSets
    from mcp_server.scope.windows import Window

__all__ = ["ALWAYS_REFUSED", "WELL_KNOWN", "Grant", "ScopePolicy", "Verdict", "read_entry"]

LINES_SHOWN: Final = 12
"""Entries that a message or a verdict lists before it counts the rest."""
SETTING: Final = "security.allowed_targets"

_LOOPBACK: Final[dict[int, Span]] = {network.version: span(network) for network in WELL_KNOWN["loopback"]}


class ScopePolicy:
    """An immutable policy: allowed networks and names with their terms, exclusions, limits, windows, resolvers.

    ``entries`` are the allowed entries in canonical spelling, in their order; ``source`` says where they were written.
    Make one with `load`, `from_file` or `from_entries`.
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
        """What is allowed outside of loopback, what inside of it, and what is excluded or always refused."""
        width, networks = WIDTHS[version], self._allow.networks[version]
        low, high = _LOOPBACK[version]
        shortest = width - (high - low).bit_length()
        # This host's own services are not part of "any network": only an entry inside loopback allows loopback.
        inside = [each for each in networks if low <= each[0] <= high and each[1] >= shortest]
        outside = (
            [each for each in networks if not low <= each[0] <= high or each[1] < shortest] if inside else networks
        )
        # Below zero, so that they are told from the positions of exclusions.
        refused = [
            (int(network.network_address), network.prefixlen, -1 - index)
            for index, (network, _) in enumerate(self._refused)
            if network.version == version
        ]
        denied = [*self._exclude.networks[version], *refused]
        return RadixTree(width, outside), RadixTree(width, inside), RadixTree(width, denied)

    @classmethod
    def load(cls, policy_file: Path | None, entries: Iterable[str], *, entries_are_set: bool) -> ScopePolicy:
        """The policy of a configuration: its file, or else its list of entries.

        Raises ConfigError where either is wrong, and where a file is named and the list is set too: two hands drew
        two lines.
        """
        if policy_file is None:
            return cls.from_entries(entries)
        if entries_are_set:
            raise ConfigError(
                f"security.policy_file and {SETTING} are both set; one of them draws the scope",
                hint=f"Move the entries of {SETTING} into the file, below 'allow', and unset it.",
            )
        return cls.from_file(policy_file)

    @classmethod
    def from_entries(cls, entries: Iterable[str], *, called: str = "the scope") -> ScopePolicy:
        """Build a policy from ``security.allowed_targets``; raise ConfigError naming the first bad entry.

        An empty list is a policy that allows nothing. Any risk is allowed, at any time and rate. ``called`` is what a
        refusal calls it.
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
        """Read a policy file (docs/policy.md); raises ConfigError naming file and line."""
        from mcp_server.scope.policy_file import read_policy_file, uncollected

        with uncollected():
            file = read_policy_file(path)
            return cls(
                file.allow,
                file.exclude,
                source=str(file.path),
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
        """How many entries are allowed."""
        return len(self._allow.spellings)

    def lines(self, at_most: int) -> tuple[PolicyEntry, ...]:
        """The first ``at_most`` allowed entries with their terms, in their order."""
        return tuple(map(self._allow.line, range(min(at_most, self.size))))

    def allowed_networks(self) -> tuple[Network, ...]:
        """The networks of the allowed entries, in their order; names have none."""
        found = self._allow.networks
        return tuple(network_of(version, first, length) for version in found for first, length, _ in found[version])

    @property
    def exclusions(self) -> tuple[str, ...]:
        """The excluded networks and names in canonical spelling, in their order."""
        return tuple(self._exclude.spellings)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of what the policy means: order, case, repetition and splitting of entries do not matter.

        The always-refused ranges are part of it, so a version that changes them changes the hash.
        """
        from mcp_server.scope.meaning import digest

        return digest(self._allow, self._exclude, self._trees, self.limits, self.windows, self.resolvers, self._refused)

    def guard_sets(self) -> GuardSets:
        """The policy as a packet filter needs it."""
        from mcp_server.scope.meaning import guard_sets

        return guard_sets(self._allow, self._exclude, self.resolvers, self._refused)

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Entries of which an always-refused range or an exclusion holds every network, so that they allow nothing."""
        alive = set(self._allow.names.values())
        for version, width in WIDTHS.items():
            denied = self._trees[version][2]
            for first, length, position in self._allow.networks[version]:
                if denied.holding(first, first | ((1 << (width - length)) - 1)) is None:
                    alive.add(position)
        return tuple(line for position, line in enumerate(self._allow.spellings) if position not in alive)

    def summary(self) -> str:
        """The allowed entries as a refusal lists them; long lists are cut and the rest counted."""
        return _listed(self._allow.spellings) or "nothing"

    def check_network(self, network: Network) -> Verdict:
        """Judge a network as a whole: every address allowed, none excluded, none always refused.

        For each address the narrowest entry that holds it decides.
        """
        version = network.version
        first, last = span(network)
        if version == 6 and getattr(network.network_address, "scope_id", None):
            return _out(lambda: f"{network.network_address} has a zone id, which is always refused")
        denied = self._trees[version][2]
        holder, inside = denied.touching(first, last)
        if holder is not None or inside:
            return self._denied(network, inside[0][2] if holder is None else holder, whole=holder is not None)
        holder, inside = self._touching(version, first, last)
        if not inside and holder is not None:
            line = self._allow.line(holder)
            return Verdict(
                True, lambda: f"{_text(network)} is allowed by {line.entry}", entry=line.entry, lines=(line,)
            )
        found = dict.fromkeys([position for _, _, position in cut(first, last, holder, inside)])
        positions = [position for position in found if position is not None]
        if None not in found:
            entry = _listed([self._allow.spellings[each] for each in positions[:LINES_SHOWN]], len(positions))
            return Verdict(
                True, lambda: f"{_text(network)} is allowed by {entry}", entry=entry, lines=self._lines(positions)
            )
        where = "only partly in" if positions else "outside"
        return _out(
            lambda: f"{_text(network)} is {where} {self._called}; allowed: {self.summary()}",
            hint=(lambda: self._rest_hint(network)) if positions else None,
        )

    def check_address(self, address: IPv4Address | IPv6Address) -> Verdict:
        """Judge one address, such as a resolver's answer."""
        return self.check_network(ip_network(address))

    def check_name(self, name: str) -> Verdict:
        """Judge a canonical name: by an entry that is this name, else by the longest suffix it lies under.

        It must lie *under* a suffix: ``.lab.internal`` does not allow ``lab.internal``. An allowed name is only worth
        looking up: every address it resolves to is judged as well.
        """
        excluded = self._excluding(name)
        if excluded is not None:
            return _out(lambda: f"{shown(name)[1:-1]} is excluded by {excluded}", lines=(excluded,))
        names = self._allow.names
        position = next((names[form] for form in _forms(name) if form in names), None)
        if position is None:
            return _out(lambda: f"name {shown(name)} is under no suffix of {self._called}; allowed: {self.summary()}")
        line = self._allow.line(position)
        return Verdict(True, lambda: f"{name} is allowed by {line.entry}", entry=line.entry, lines=(line,))

    def check_alias(self, name: str) -> Verdict:
        """Judge a name that a name server led to (a CNAME): any but an excluded one will do, for addresses decide."""
        excluded = self._excluding(name)
        if excluded is None:
            return Verdict(True, lambda: f"{shown(name)[1:-1]} is not excluded")
        return _out(lambda: f"{shown(name)[1:-1]} is excluded by {excluded}", lines=(excluded,))

    def rest_of(self, network: Network, at_most: int | None = None) -> tuple[Network, ...]:
        """The fewest networks that hold all of ``network`` that may be touched, in order; the first ``at_most``."""
        version = network.version
        first, last = span(network)
        allowed, loopback, denied = self._trees[version]
        holder, inside = denied.touching(first, last)
        if holder is not None:
            return ()
        low, high = _LOOPBACK[version]
        left = [(start, end) for start, end, position in allowed.pieces(first, last) if position is not None]
        left = without(left, [(low, high)])
        left += [(s, e) for s, e, position in loopback.pieces(first, last) if position is not None]
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
        """Judge a planned call; pure, so the hour's budget is not touched (`budget.PacketBudget` keeps that).

        ``networks`` are the pinned targets, ``names`` those that were looked up. ``ports`` is per address (0 counts
        as 1), ``probes`` in all. ``now`` must know its offset from UTC. Of several lines that decide, the strictest
        counts.

        Raises:
            TargetError: ``target_out_of_scope``.
            AccessError: ``risk_not_allowed``, or ``outside_time_window`` with ``next_opening`` in its details.
            BusyError: ``budget_exceeded``, with ``limit`` and ``asked`` in its details.
        """
        from mcp_server.scope.granting import grant

        return grant(self, networks, names, risk, addresses=addresses, ports=ports, probes=probes, now=now)

    def rate_for(self, networks: Iterable[Network], names: Iterable[str] = ()) -> float | None:
        """The most packets a second that the policy allows towards all of ``networks``; None: no bound.

        ``names`` are those the networks were looked up for.
        """
        verdicts = chain(map(self.check_network, networks), map(self.check_name, names))
        return strictest_rate((line for verdict in verdicts for line in verdict.lines), self.limits)

    def rated_entries(self, networks: Iterable[Network], names: Iterable[str] = ()) -> tuple[str, ...]:
        """Every entry with a rate of its own that decides over an address of ``networks``, or over one of ``names``."""
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

    def _touching(self, version: int, first: int, last: int) -> tuple[int | None, list[Prefix]]:
        """The allowed entry that holds a span whole, and those inside it; loopback has a tree of its own."""
        allowed, loopback, _ = self._trees[version]
        low, high = _LOOPBACK[version]
        return (loopback if low <= last and first <= high else allowed).touching(first, last)

    def _denied(self, network: Network, position: int, *, whole: bool) -> Verdict:
        hint = None if whole else lambda: self._rest_hint(network)
        if position < 0:
            verb, words = "lies in" if whole else "overlaps", self._refused[-1 - position][1]
            return _out(lambda: f"{_text(network)} {verb} {words}, which is refused whatever the scope says", hint=hint)
        line = self._exclude.line(position)
        if whole:
            return _out(lambda: f"{_text(network)} is excluded by {line}", lines=(line,))
        where = "" if line.number is None else f" in line {line.number}"
        return _out(
            lambda: f"{_text(network)} holds {line.entry}, which the policy excludes{where}", hint=hint, lines=(line,)
        )

    def _rest_hint(self, network: Network) -> str | None:
        if not (rest := self.rest_of(network, LINES_SHOWN + 1)):
            return None
        more = " and more" if len(rest) > LINES_SHOWN else ""
        return f"Allowed of it: {', '.join(map(_text, rest[:LINES_SHOWN]))}{more}."

    def _excluding(self, name: str) -> PolicyEntry | None:
        # To exclude a suffix is to exclude the name itself too: who shuts a interface means the whole house.
        for form in (f".{name}", *_forms(name)):
            if (position := self._exclude.names.get(form)) is not None:
                return self._exclude.line(position)
        return None

    def _lines(self, positions: Sequence[int]) -> tuple[PolicyEntry, ...]:
        shown_ = dict.fromkeys(positions[:LINES_SHOWN])
        if len(positions) > LINES_SHOWN:
            terms = {self._allow.terms[position]: position for position in reversed(positions)}
            shown_ |= dict.fromkeys(terms.values())
        return tuple(self._allow.line(position) for position in shown_)


def read_entry(text: str) -> tuple[str, tuple[Network, ...]]:
    """Read an entry of ``security.allowed_targets``: its canonical spelling and its networks (none for a suffix).

    Raises ConfigError whose message begins with the key.
    """
    try:
        return entries_.read_entry(text)
    except ConfigError as error:
        raise ConfigError(f"{SETTING}: {error.message}", hint=error.hint) from None


def _out(
    reason: Callable[[], str], *, hint: Callable[[], str | None] | None = None, lines: tuple[PolicyEntry, ...] = ()
) -> Verdict:
    return Verdict(False, reason, code="target_out_of_scope", hint=hint, lines=lines)


def _text(network: Network) -> str:
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _forms(name: str) -> list[str]:
    """A name and the suffixes it lies under, the longest first."""
    labels = name.split(".")
    return [name, *("." + ".".join(labels[index:]) for index in range(1, len(labels)))]


def _listed(items: Sequence[str], count: int | None = None) -> str:
    rest = (len(items) if count is None else count) - LINES_SHOWN
    return ", ".join(items[:LINES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _outermost(inside: Sequence[tuple[int, int, int]]) -> list[Span]:
    found: list[Span] = []
    for first, last, _ in inside:  # wider before narrower
        if not found or first > found[-1][1]:
            found.append((first, last))
    return found
