"""Counts which planned addresses a tool finished with, gave up, or never reached.

A parser reports what it read, and the counter derives the coverage. The cost depends on the hosts that were seen and
not on the size of the networks, so a /64 costs no more than the hosts found in it.
"""

from __future__ import annotations

from bisect import bisect_right
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from itertools import chain, islice

from mcp_server.model.addresses import Address, AddressSet
from mcp_server.model.run import Coverage, PortsTested
from mcp_server.model.target import Network, Targets

LISTED = 256
"""The most addresses that `Coverage.not_looked_at` lists."""


class CoverageCounter:
    """Counts the addresses of one run by what the tool did with them."""

    def __init__(self, targets: Targets) -> None:
        self.targets = targets
        self.planned = targets.count
        self.networks = tuple(network for item in targets.items for network in item.networks)
        self._looked_at, self._up, self._given_up = AddressSet(), AddressSet(), AddressSet()
        self._skipped: dict[Network, None] = {}
        before = 0
        plan: list[tuple[int, int, int, int]] = []
        for network in self.networks:
            first, last = int(network.network_address), int(network.broadcast_address)
            plan.append((network.version, first, last, before))
            before += network.num_addresses
        self._plan = sorted(plan)

    def position(self, address: Address) -> int | None:
        """Return how many planned addresses come before this one, or None if the address is not planned."""
        number = int(address)
        index = bisect_right(self._plan, (address.version, number, 1 << 128, 0)) - 1
        if index < 0:
            return None
        version, first, last, before = self._plan[index]
        return before + number - first if version == address.version and number <= last else None

    def finished(self, address: Address, *, up: bool) -> None:
        """Count an address that the tool finished with and found up or down."""
        self._looked_at.add(address)
        if up:
            self._up.add(address)

    def gave_up(self, address: Address) -> None:
        """Count an address that the tool named but did not look at, or did not finish."""
        self._given_up.add(address)

    def skipped(self, network: Network) -> bool:
        """Count a network that the tool refused as a whole; return whether it is planned."""
        if network.num_addresses == 1 and self.position(network.network_address) is not None:
            self.gave_up(network.network_address)
            return True
        if any(_within(network, planned) for planned in self.networks):
            self._skipped[network] = None
            return True
        return False

    def result(self, ports: tuple[PortsTested, ...], *, whole: bool, down: int | None = None) -> Coverage:
        """Return the coverage. ``whole`` says whether the tool's output was read to its proper end.

        If it was, the tool looked at addresses that it does not name and found them down, but at no more of them than
        its own count ``down``. If it was not, the tool looked at none of the addresses that it does not name.
        """
        given_up = len(self._given_up) + sum(network.num_addresses for network in self._skipped_networks())
        named_down = len(self._looked_at) - len(self._up)
        looked_at = len(self._looked_at)
        if whole:
            unnamed = max(0, self.planned - looked_at - given_up)
            if down is not None:
                unnamed = min(unnamed, max(0, down - named_down))
            looked_at += unnamed
        looked_at = min(looked_at, self.planned)
        missed = self.planned - looked_at
        return Coverage(
            addresses=self.targets.canonical(),
            planned=self.planned,
            ports=ports,
            looked_at=looked_at,
            up=len(self._up),
            down=looked_at - len(self._up),
            not_looked_at=self._listed(whole=whole) if missed else (),
            not_looked_at_count=missed,
            complete=whole and not missed,
        )

    def _listed(self, *, whole: bool) -> tuple[str, ...]:
        if whole:
            refused = AddressSet().missing(self._skipped_networks())
            found = list(islice(chain(self._given_up, refused), LISTED))
        else:
            found = list(islice(self._looked_at.missing(self.networks), LISTED))
        return tuple(map(str, found))

    def _skipped_networks(self) -> list[Network]:
        v4 = [network for network in self._skipped if isinstance(network, IPv4Network)]
        v6 = [network for network in self._skipped if isinstance(network, IPv6Network)]
        return [*collapse_addresses(v4), *collapse_addresses(v6)]


def _within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, IPv4Network) and isinstance(outer, IPv4Network):
        return inner.subnet_of(outer)
    return isinstance(inner, IPv6Network) and isinstance(outer, IPv6Network) and inner.subnet_of(outer)
