"""Address ranges as pairs of integers: join them, subtract them, and write them as networks.

A span is ``(first, last)``, both inclusive, of one IP version. A list of spans is *merged* if it is sorted and no two
of them overlap or touch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Self

from mcp_server.model.target import Network

Span = tuple[int, int]

WIDTHS: Final = {4: 32, 6: 128}
"""Bits of an address, by IP version."""


def span(network: Network) -> Span:
    """Return the first and the last address of a network, as integers."""
    first = int(network.network_address)
    return first, first | ((1 << (WIDTHS[network.version] - network.prefixlen)) - 1)


def network_of(version: int, first: int, length: int) -> Network:
    """Return the network of a prefix."""
    return IPv4Network((first, length)) if version == 4 else IPv6Network((first, length))


def network_text(network: Network) -> str:
    """Return the canonical spelling of a network; a network of one address is written as an address."""
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def merged(spans: Iterable[Span]) -> list[Span]:
    """Return spans, which may be in any order, as a merged list."""
    found: list[Span] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1] + 1:
            if last > found[-1][1]:
                found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found


def without(spans: Iterable[Span], holes: Iterable[Span]) -> list[Span]:
    """Return merged spans minus merged ``holes``."""
    left: list[Span] = []
    rest = iter(holes)
    hole = next(rest, None)
    for first, last in spans:
        at = first
        while hole is not None and hole[0] <= last:
            if hole[0] > at:
                left.append((at, hole[0] - 1))
            at = max(at, hole[1] + 1)
            if hole[1] > last:  # the hole may reach into the next span
                break
            hole = next(rest, None)
        if at <= last:
            left.append((at, last))
    return left


def prefixes(spans: Iterable[Span], version: int) -> Iterator[tuple[int, int]]:
    """Yield the fewest prefixes that cover exactly these merged spans, each as first address and prefix length."""
    width = WIDTHS[version]
    for first, last in spans:
        at = first
        while at <= last:
            # As wide as the alignment of the first address and the rest of the span allow.
            bits = (last - at + 1).bit_length() - 1
            if at:
                bits = min(bits, (at & -at).bit_length() - 1)
            yield at, width - bits
            at += 1 << bits


def ipv4_networks(spans: Iterable[Span]) -> tuple[IPv4Network, ...]:
    """Return the fewest IPv4 networks that cover exactly these merged spans."""
    return tuple(IPv4Network(prefix) for prefix in prefixes(spans, 4))


def ipv6_networks(spans: Iterable[Span]) -> tuple[IPv6Network, ...]:
    """Return the fewest IPv6 networks that cover exactly these merged spans."""
    return tuple(IPv6Network(prefix) for prefix in prefixes(spans, 6))


@dataclass(frozen=True, slots=True)
class AddressRanges:
    """Merged spans of addresses, IPv4 and IPv6 separately. A /16 costs as much as one address."""

    v4: tuple[Span, ...] = ()
    v6: tuple[Span, ...] = ()

    @classmethod
    def of(cls, networks: Iterable[Network]) -> Self:
        """Return the ranges of networks, which may overlap and have any order."""
        spans: dict[int, list[Span]] = {4: [], 6: []}
        for network in networks:
            spans[network.version].append(span(network))
        return cls(tuple(merged(spans[4])), tuple(merged(spans[6])))

    def overlaps(self, other: AddressRanges) -> bool:
        """Return whether any address is in both."""
        return _overlap(self.v4, other.v4) or _overlap(self.v6, other.v6)

    def crowded(self, others: Sequence[AddressRanges], limit: int) -> bool:
        """Return whether any address of these ranges is in at least ``limit`` of the others."""
        return _reaches(self.v4, [other.v4 for other in others], limit) or _reaches(
            self.v6, [other.v6 for other in others], limit
        )


def _overlap(one: Sequence[Span], other: Sequence[Span]) -> bool:
    if not one or not other or one[0][0] > other[-1][1] or other[0][0] > one[-1][1]:
        return False
    return next(_common(one, other), None) is not None


def _common(one: Sequence[Span], other: Sequence[Span]) -> Iterator[Span]:
    """Yield the overlaps of two lists of merged spans. Each span of the shorter list is searched in the longer one."""
    few, many = sorted((one, other), key=len)
    for first, last in few:
        # Merged spans are sorted by their first address and by their last address.
        at = max(bisect_right(many, first, key=_first) - 1, 0)
        while at < len(many) and many[at][0] <= last:
            if many[at][1] >= first:
                yield max(first, many[at][0]), min(last, many[at][1])
            at += 1


def _first(each: Span) -> int:
    return each[0]


def _reaches(mine: Sequence[Span], others: Sequence[Sequence[Span]], limit: int) -> bool:
    """Return whether any address of ``mine`` is in at least ``limit`` of the others."""
    # The end of a span counts at the address after it, and sorts before a start there: touching spans do not add up.
    steps = sorted(
        step for other in others for first, last in _common(mine, other) for step in ((first, 1), (last + 1, -1))
    )
    depth = 0
    for _, step in steps:
        depth += step
        if depth >= limit:
            return True
    return False
