"""What the packet guard is generated from: the policy as sets of networks, without names, tiers or lines."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network


@dataclass(frozen=True, slots=True)
class GuardSets:
    """The networks of a policy as a packet filter needs them, each tuple sorted, disjoint and as short as can be.

    ``allow4`` and ``allow6`` are the allowed networks without loopback, whose packets never leave the host; whether
    the policy allows any of it is ``loopback``. ``exclude4`` and ``exclude6`` are the policy's exclusions with the
    always-refused ranges, and win over what is allowed. ``resolvers`` are the name servers the policy names.
    """

    allow4: tuple[IPv4Network, ...] = ()
    allow6: tuple[IPv6Network, ...] = ()
    exclude4: tuple[IPv4Network, ...] = ()
    exclude6: tuple[IPv6Network, ...] = ()
    resolvers: tuple[IPv4Address | IPv6Address, ...] = ()
    loopback: bool = False
