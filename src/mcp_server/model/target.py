"""Targets as a caller gave them and as they were pinned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Evidence:
    """How a name came to its addresses: what was asked, what was answered, and by whom.

    ``aliases`` are the names it led to (CNAME), in order, as the server spelled them: they are not to be trusted as
    text. ``ttl`` is the shortest lifetime in the answer, in seconds, None for the hosts file. ``source`` is the
    address of the name server that answered (two where they differ), or the path of the hosts file.
    """

    name: str
    addresses: tuple[IPv4Address | IPv6Address, ...]
    aliases: tuple[str, ...] = ()
    ttl: int | None = None
    source: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The evidence as JSON-ready values, for a record; aliases as they came."""
        return {
            "name": self.name,
            "addresses": [str(address) for address in self.addresses],
            "aliases": list(self.aliases),
            "ttl": self.ttl,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True)
class Target:
    """One target, resolved once: what was typed and the canonical networks a tool is given instead.

    ``given`` is the caller's text, for messages only. ``networks`` is what is touched (one address is a /32
    or /128). ``name`` is the A-label that was resolved, and ``evidence`` how; both are None where an address or
    network was given.
    """

    given: str
    networks: tuple[Network, ...]
    name: str | None = None
    evidence: Evidence | None = None

    @property
    def count(self) -> int:
        """How many addresses this target covers."""
        return sum(network.num_addresses for network in self.networks)

    @property
    def versions(self) -> frozenset[int]:
        """Which IP versions it covers: a subset of {4, 6}."""
        return frozenset(network.version for network in self.networks)

    def canonical(self) -> tuple[str, ...]:
        """The numeric strings a tool receives: plain addresses for single hosts, CIDR otherwise."""
        return tuple(
            str(network.network_address) if network.num_addresses == 1 else str(network) for network in self.networks
        )


@dataclass(frozen=True, slots=True)
class Targets:
    """All targets of one call, pinned; the only form in which a target reaches an argv."""

    items: tuple[Target, ...]

    @property
    def count(self) -> int:
        """How many addresses all targets cover together (overlaps are collapsed when they are pinned)."""
        return sum(item.count for item in self.items)

    @property
    def versions(self) -> frozenset[int]:
        """Which IP versions occur: a subset of {4, 6}."""
        return frozenset(version for item in self.items for version in item.versions)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The pinned networks of all targets, in the order given."""
        return tuple(network for item in self.items for network in item.networks)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that were resolved, in the order given."""
        return tuple(item.name for item in self.items if item.name is not None)

    def of_version(self, version: int) -> Targets:
        """The same targets where a name that has both IP versions keeps only this one."""
        return Targets(
            tuple(
                replace(item, networks=tuple(net for net in item.networks if net.version == version))
                if len(item.versions) > 1
                else item
                for item in self.items
            )
        )

    def canonical(self) -> tuple[str, ...]:
        """Every numeric target string, in the order given."""
        return tuple(text for item in self.items for text in item.canonical())
