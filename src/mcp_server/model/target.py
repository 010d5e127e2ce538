"""Targets: the text that a caller gave, and the addresses that it was pinned to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Evidence:
    """The record of a look-up: the question, the answer, and the server or file that gave it.

    ``aliases`` are the names that the answer led to (CNAME), in order and as the server spelled them; do not show
    them without sanitizing. ``ttl`` is the shortest lifetime in the answer in seconds, or None for the hosts file.
    ``source`` is the address of the name server (two addresses if two servers answered), or the path of the hosts
    file.
    """

    name: str
    addresses: tuple[IPv4Address | IPv6Address, ...]
    aliases: tuple[str, ...] = ()
    ttl: int | None = None
    source: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the evidence as JSON-ready values. The aliases are not sanitized."""
        return {
            "name": self.name,
            "addresses": [str(address) for address in self.addresses],
            "aliases": list(self.aliases),
            "ttl": self.ttl,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True)
class Target:
    """One target, resolved once: the caller's text, and the canonical networks that a tool receives instead of it.

    ``given`` is the caller's text, for messages only. ``networks`` are what the tool may touch; one address is a /32 or
    /128. ``name`` is the A-label that was resolved, and ``evidence`` says how. Both are None if the target
    is an address or a network.
    """

    given: str
    networks: tuple[Network, ...]
    name: str | None = None
    evidence: Evidence | None = None

    @property
    def count(self) -> int:
        """The number of addresses that the target covers."""
        return sum(network.num_addresses for network in self.networks)

    @property
    def versions(self) -> frozenset[int]:
        """The IP versions of the target, a subset of {4, 6}."""
        return frozenset(network.version for network in self.networks)

    def canonical(self) -> tuple[str, ...]:
        """Return the numeric strings that a tool receives: an address for a single host, CIDR otherwise."""
        return tuple(
            str(network.network_address) if network.num_addresses == 1 else str(network) for network in self.networks
        )


@dataclass(frozen=True, slots=True)
class Targets:
    """All pinned targets of one call. Targets reach a command line only in this form."""

    items: tuple[Target, ...]

    @property
    def count(self) -> int:
        """The number of addresses that the targets cover together. They do not overlap."""
        return sum(item.count for item in self.items)

    @property
    def versions(self) -> frozenset[int]:
        """The IP versions of the targets, a subset of {4, 6}."""
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
        """Return the targets of one IP version. A name with both versions keeps only the addresses of ``version``."""
        return Targets(
            tuple(
                replace(item, networks=tuple(net for net in item.networks if net.version == version))
                if len(item.versions) > 1
                else item
                for item in self.items
            )
        )

    def canonical(self) -> tuple[str, ...]:
        """Return the numeric strings of all targets, in the order given."""
        return tuple(text for item in self.items for text in item.canonical())
