"""Sorted, disjoint address ranges that answer containment and overlap by bisection."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from mcp_server.model.target import Network


class Ranges:
    """Networks of one or both IP versions, each with the label it came from.

    CIDR networks are disjoint or nested, so dropping every nested one leaves ranges that do not overlap. A
    nested network's label is lost: the wider one already decides.
    """

    def __init__(self, networks: Iterable[tuple[Network, str]]) -> None:
        self._by_version: dict[int, tuple[list[int], list[int], list[str]]] = {4: ([], [], []), 6: ([], [], [])}
        for network, label in sorted(networks, key=lambda pair: (int(pair[0].network_address), pair[0].prefixlen)):
            firsts, lasts, labels = self._by_version[network.version]
            first, last = _bounds(network)
            if not lasts or first > lasts[-1]:
                firsts.append(first)
                lasts.append(last)
                labels.append(label)

    def covering(self, network: Network) -> tuple[str, ...] | None:
        """The labels of the ranges that together hold all of ``network``, or None where an address is left over."""
        firsts, lasts, labels = self._by_version[network.version]
        first, last = _bounds(network)
        index = bisect_right(firsts, first) - 1
        found: list[str] = []
        while 0 <= index < len(firsts) and firsts[index] <= first <= lasts[index]:
            if labels[index] not in found:
                found.append(labels[index])
            if last <= lasts[index]:
                return tuple(found)
            first = lasts[index] + 1
            index += 1
        return None

    def overlapping(self, network: Network) -> str | None:
        """The label of the lowest range that shares an address with ``network``, or None."""
        firsts, lasts, labels = self._by_version[network.version]
        first, last = _bounds(network)
        index = bisect_right(firsts, first) - 1
        if index >= 0 and first <= lasts[index]:
            return labels[index]
        index += 1
        return labels[index] if index < len(firsts) and firsts[index] <= last else None


def _bounds(network: Network) -> tuple[int, int]:
    first = int(network.network_address)
    return first, first + network.num_addresses - 1
