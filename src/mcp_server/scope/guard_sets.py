"""A policy as sets of networks, from which the packet guard makes its rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from mcp_server.scope.address_ranges import WIDTHS, Span, ipv4_networks, ipv6_networks, merged, without
from mcp_server.scope.entries import Entries
from mcp_server.scope.special_networks import LOOPBACK


@dataclass(frozen=True, slots=True)
class GuardSets:
    """The networks of a policy for a packet filter. Each tuple is sorted, without overlaps, and as short as possible.

    ``allow4`` and ``allow6`` are the allowed networks without loopback, whose packets never leave the host.
    ``loopback`` says whether the policy allows any loopback address. ``exclude4`` and ``exclude6`` are the exclusions
    of the policy and the ranges that are always refused; they take precedence over the allowed networks. ``resolvers``
    are the name servers of the policy.
    """

    allow4: tuple[IPv4Network, ...] = ()
    allow6: tuple[IPv6Network, ...] = ()
    exclude4: tuple[IPv4Network, ...] = ()
    exclude6: tuple[IPv6Network, ...] = ()
    resolvers: tuple[IPv4Address | IPv6Address, ...] = ()
    loopback: bool = False


def make_guard_sets(
    allow: Entries,
    exclude: Entries,
    resolvers: tuple[IPv4Address | IPv6Address, ...],
    refused: Mapping[int, list[Span]],
) -> GuardSets:
    """Return the sets of a policy; ``refused`` are the ranges that are always refused, by IP version."""
    allowed = {v: merged(allow.spans(v)) for v in WIDTHS}
    denied = {v: merged([*exclude.spans(v), *refused[v]]) for v in WIDTHS}
    own_host = {v: merged(each for each in allow.spans(v) if _in_loopback(v, each)) for v in WIDTHS}
    return GuardSets(
        allow4=ipv4_networks(without(allowed[4], [LOOPBACK[4]])),
        allow6=ipv6_networks(without(allowed[6], [LOOPBACK[6]])),
        exclude4=ipv4_networks(denied[4]),
        exclude6=ipv6_networks(denied[6]),
        resolvers=resolvers,
        loopback=any(without(own_host[v], denied[v]) for v in WIDTHS),
    )


def _in_loopback(version: int, span: Span) -> bool:
    low, high = LOOPBACK[version]
    return low <= span[0] and span[1] <= high
