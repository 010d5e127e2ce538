"""Networks with a special meaning: the words that stand for networks, and the ranges that no policy can allow."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Final

from mcp_server.model.target import Network
from mcp_server.scope.address_ranges import Span, span
from mcp_server.scope.reading import MAPPED

WELL_KNOWN: Final[dict[str, tuple[Network, ...]]] = {
    "RFC1918": (IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"), IPv4Network("192.168.0.0/16")),
    "loopback": (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
}
"""Policy entries that stand for networks, in upper or lower case."""

LOOPBACK: Final[dict[int, Span]] = {network.version: span(network) for network in WELL_KNOWN["loopback"]}
"""The loopback addresses, by IP version."""

# The deprecated IPv4-compatible addresses (RFC 4291 section 2.5.5.1) without ::1, which is a loopback address.
_COMPATIBLE = tuple(IPv6Network("::/96").address_exclude(IPv6Network("::1/128")))

ALWAYS_REFUSED: Final[tuple[tuple[Network, str], ...]] = (
    (IPv4Network("0.0.0.0/8"), "0.0.0.0/8 (this host, RFC 1122)"),
    (IPv4Network("169.254.0.0/16"), "169.254.0.0/16 (link-local and cloud metadata, RFC 3927)"),
    (IPv4Network("224.0.0.0/4"), "224.0.0.0/4 (multicast)"),
    (IPv4Network("240.0.0.0/4"), "240.0.0.0/4 (reserved and limited broadcast, RFC 1112)"),
    *((network, "::/96 (unspecified and IPv4-compatible, RFC 4291)") for network in _COMPATIBLE),
    (MAPPED, "::ffff:0:0/96 (IPv4-mapped, RFC 4291)"),
    (IPv6Network("::ffff:0:0:0/96"), "::ffff:0:0:0/96 (IPv4-translated, RFC 2765)"),
    (IPv6Network("64:ff9b::/96"), "64:ff9b::/96 (NAT64, RFC 6052)"),
    (IPv6Network("64:ff9b:1::/48"), "64:ff9b:1::/48 (NAT64, RFC 8215)"),
    (IPv6Network("2001::/32"), "2001::/32 (Teredo, RFC 4380)"),
    (IPv6Network("2002::/16"), "2002::/16 (6to4, RFC 3056)"),
    (IPv6Network("fe80::/10"), "fe80::/10 (link-local, RFC 4291)"),
    (IPv6Network("ff00::/8"), "ff00::/8 (multicast)"),
)
"""Ranges that no entry can allow, each with the text that a refusal shows.

The IPv6 ranges that embed an IPv4 address are in the list because a gateway would deliver packets to that address.
"""
