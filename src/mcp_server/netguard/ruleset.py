"""The nftables ruleset that keeps a namespace inside the policy. It decides by the bytes of each frame that leaves it.

Every match reads bytes of the frame at fixed offsets from its first byte (`@ll`). What the kernel knows about a packet
cannot be trusted here: a packet socket tells the kernel the protocol of its frame and where its headers begin, and the
named matches (`ip daddr`, `arp htype`) rely on that. A match fails for a frame that is too short for it, and the frame
is dropped at the end.

One lookup in one set decides whether a frame passes. The set has the allowed addresses without the excluded ones. With
two sets, a frame could be compared with the old version of one and the new version of the other while both are
replaced.

In the template, the names that begin with a dollar sign are filled in by `ruleset`. Offsets are in bits from the first
bit of the frame: destination MAC 0 (its group bit is bit 7), source MAC 48, EtherType 96, and then:

=====================  ======================  ==========================
ARP (RFC 826)          IPv4 (RFC 791)          IPv6 (RFC 8200)
=====================  ======================  ==========================
112 types and lengths  112 version, length     112 version
160 operation          162 flags, 163 offset   144 payload length
176 sender MAC         184 protocol            160 next header, 168 hops
224 sender IP          208 source              176 source
304 target IP          240 destination         304 destination
                       272 first of payload    432 first of payload
=====================  ======================  ==========================
"""

from __future__ import annotations

import fcntl
import re
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from string import Template
from typing import Final

from mcp_server.errors import PlatformError
from mcp_server.model.target import Network
from mcp_server.scope.address_ranges import Span, merged, span, without
from mcp_server.scope.guard_sets import GuardSets

TABLE: Final = "mcp_scope"
"""The guard's table, of the netdev family."""

_TEMPLATE: Final = """\
table netdev $table { }
delete table netdev $table
table netdev $table {
$counters
  set scope4 { typeof @ll,240,32; flags interval; $scope4 }
  set scope6 { typeof @ll,304,128; flags interval; $scope6 }
  set excluded4 { typeof @ll,240,32; flags interval; $excluded4 }
  set excluded6 { typeof @ll,304,128; flags interval; $excluded6 }
  set resolvers4 { typeof @ll,240,32; flags interval; $resolvers4 }
  set resolvers6 { typeof @ll,304,128; flags interval; $resolvers6 }
  set own4 { typeof @ll,208,32; $own4 }
  set own6 { typeof @ll,176,128; $own6 }
  set gateways4 { typeof @ll,304,32; $gateways4 }
  set gateways6 { typeof @ll,304,128; $gateways6 }
  set asked6 { typeof @ll,176,128; size 256; flags dynamic,timeout; timeout 10s; }

  chain egress {
    type filter hook egress device "$device" priority 0; policy drop;
    @ll,48,48 != 0x$mac counter name drop_source_mac drop
    @ll,96,16 0x0800 goto to4
    @ll,96,16 0x86dd goto to6
    @ll,96,16 0x0806 goto to_arp
    counter name drop_ethertype drop
  }

  chain to4 {
    @ll,112,8 != 0x45 counter name drop_header4 drop
    @ll,208,32 != @own4 counter name drop_source4 drop
    @ll,240,32 @excluded4 counter name drop_excluded4 drop
    @ll,7,1 != 0 counter name drop_group4 drop
    @ll,240,32 @scope4 goto scoped4
    @ll,240,32 @resolvers4 goto resolver4
    counter name drop_target4 drop
  }
  chain scoped4 {
    @ll,184,8 1 @ll,163,13 0 @ll,272,8 != { 0, 3, 8, 11, 12, 13, 14, 15, 16, 17, 18 } counter name drop_icmp4 drop
    @ll,184,8 { 1, 6, 17 } counter name pass_ip4 accept
    counter name drop_protocol4 drop
  }
  chain resolver4 {
    @ll,184,8 { 6, 17 } @ll,162,14 0 @ll,288,16 53 counter name pass_dns accept
    @ll,184,8 1 @ll,272,8 3 counter name quiet_unreachable drop
    counter name drop_resolver_port drop
  }

  chain to6 {
    @ll,112,4 != 6 counter name drop_header6 drop
    @ll,160,8 0 @ll,432,8 58 @ll,496,8 { 131, 132, 143 } counter name quiet_mld drop
    @ll,160,8 58 @ll,432,8 133 counter name quiet_router_solicit drop
    @ll,160,8 58 @ll,432,8 135 @ll,176,128 0 counter name quiet_dad drop
    @ll,176,128 != @own6 counter name drop_source6 drop
    @ll,160,8 58 @ll,432,8 135 goto solicit6
    @ll,160,8 58 @ll,432,8 136 goto advert6
    @ll,304,128 @excluded6 counter name drop_excluded6 drop
    @ll,7,1 != 0 counter name drop_group6 drop
    @ll,304,128 @scope6 goto scoped6
    @ll,304,128 @resolvers6 goto resolver6
    counter name drop_target6 drop
  }
  chain scoped6 {
    @ll,160,8 { 6, 17 } counter name pass_ip6 accept
    @ll,160,8 58 @ll,432,8 { 1, 2, 3, 4, 128, 129, 139, 140 } counter name pass_ip6 accept
    @ll,160,8 58 counter name drop_icmp6 drop
    @ll,160,8 44 @ll,432,8 { 6, 17 } counter name pass_ip6 accept
    @ll,160,8 44 @ll,432,8 58 @ll,448,13 0 @ll,496,8 { 1, 2, 3, 4, 128, 129, 139, 140 } counter name pass_ip6 accept
    @ll,160,8 44 @ll,432,8 58 @ll,448,13 != 0 counter name pass_ip6 accept
    counter name drop_extension6 drop
  }
  chain resolver6 {
    @ll,160,8 { 6, 17 } @ll,448,16 53 counter name pass_dns accept
    @ll,160,8 58 @ll,432,8 1 counter name quiet_unreachable drop
    counter name drop_resolver_port drop
  }
  chain solicit6 {
    @ll,168,8 != 255 counter name drop_nd_form drop
    @ll,440,8 != 0 counter name drop_nd_form drop
    @ll,144,16 != { 24, 32 } counter name drop_nd_form drop
    @ll,144,16 32 @ll,624,64 != 0x0101$mac counter name drop_nd_form drop
    @ll,496,128 @scope6 goto solicit_path6
    @ll,496,128 @gateways6 goto solicit_path6
    @ll,496,128 @resolvers6 goto solicit_path6
    counter name drop_nd_target drop
  }
  chain solicit_path6 {
    @ll,0,24 0x3333ff @ll,304,104 0xff0200000000000000000001ff counter name pass_nd accept
    @ll,7,1 != 0 counter name drop_nd_path drop
    @ll,304,128 @scope6 counter name pass_nd accept
    @ll,304,128 @gateways6 counter name pass_nd accept
    @ll,304,128 @resolvers6 counter name pass_nd accept
    counter name drop_nd_path drop
  }
  chain advert6 {
    @ll,168,8 != 255 counter name drop_nd_form drop
    @ll,440,8 != 0 counter name drop_nd_form drop
    @ll,144,16 != { 24, 32 } counter name drop_nd_form drop
    @ll,144,16 32 @ll,624,64 != 0x0201$mac counter name drop_nd_form drop
    @ll,496,128 != @own6 counter name drop_nd_form drop
    @ll,7,1 != 0 counter name drop_nd_path drop
    @ll,304,128 @scope6 counter name pass_nd accept
    @ll,304,128 @gateways6 counter name pass_nd accept
    @ll,304,128 @resolvers6 counter name pass_nd accept
    @ll,304,128 @asked6 counter name pass_nd accept
    counter name drop_nd_target drop
  }

  chain to_arp {
    meta length > 60 counter name drop_arp_form drop
    @ll,112,48 != 0x000108000604 counter name drop_arp_form drop
    @ll,176,48 != 0x$mac counter name drop_arp_sender drop
    @ll,224,32 != @own4 counter name drop_arp_sender drop
    @ll,160,16 1 @ll,0,48 0xffffffffffff goto arp_target
    @ll,160,16 { 1, 2 } @ll,7,1 0 goto arp_target
    counter name drop_arp_form drop
  }
  chain arp_target {
    @ll,304,32 @scope4 counter name pass_arp accept
    @ll,304,32 @gateways4 counter name pass_arp accept
    @ll,304,32 @resolvers4 counter name pass_arp accept
    counter name drop_arp_target drop
  }

  chain ingress {
    type filter hook ingress device "$device" priority 0; policy drop;
    @ll,96,16 0x0800 goto from4
    @ll,96,16 0x86dd goto from6
    @ll,96,16 0x0806 @ll,224,32 @scope4 accept
    @ll,96,16 0x0806 @ll,224,32 @gateways4 accept
    @ll,96,16 0x0806 @ll,224,32 @resolvers4 accept
    counter name quiet_received drop
  }
  chain from4 {
    @ll,184,8 1 @ll,272,8 { 5, 9, 10 } counter name quiet_received drop
    @ll,208,32 @scope4 accept
    @ll,208,32 @resolvers4 @ll,184,8 { 6, 17 } @ll,272,16 53 accept
    @ll,184,8 1 @ll,272,8 { 3, 11, 12 } accept
    counter name quiet_received drop
  }
  chain from6 {
    @ll,160,8 58 @ll,432,8 { 130, 131, 132, 133, 134, 137, 143 } counter name quiet_received drop
    @ll,176,128 @scope6 accept
    @ll,176,128 @resolvers6 @ll,160,8 { 6, 17 } @ll,432,16 53 accept
    @ll,160,8 58 @ll,432,8 { 1, 2, 3, 4 } accept
    @ll,160,8 58 @ll,432,8 { 135, 136 } goto neighbor6
    counter name quiet_received drop
  }
  chain neighbor6 {
    @ll,176,128 @gateways6 accept
    @ll,176,128 @resolvers6 accept
    @ll,432,8 136 accept
    @ll,176,10 0x3fa @ll,496,128 @own6 update @asked6 { @ll,176,128 timeout 10s } accept
    counter name quiet_received drop
  }

  chain hold {
    type filter hook egress device "$device" priority 10; policy drop;
    counter name held drop
  }
}
"""
"""docs/guard-rules.md explains each rule."""

COUNTERS: Final = tuple(dict.fromkeys(re.findall(r"counter name (\w+)", _TEMPLATE)))
"""The counters of the table.

``pass_*`` counts frames that passed. ``drop_*`` counts dropped frames that only a tool sends. ``quiet_*`` counts
dropped frames that a kernel sends by itself, and received ones. ``held`` counts frames that the chain ``hold`` dropped.
"""

Address = IPv4Address | IPv6Address
_SIOCGIFHWADDR: Final = 0x8927
_ARPHRD_ETHER: Final = 1


@dataclass(frozen=True, slots=True)
class Link:
    """The device that connects a namespace to the network.

    ``own`` are its addresses, including link-local ones. ``gateways`` are the routers on its network. ``mac`` is its
    hardware address in the form ``02:00:00:00:00:01``. If it is empty, it is looked up in the network namespace of the
    calling thread.
    """

    device: str
    own: tuple[Address, ...]
    gateways: tuple[Address, ...] = ()
    mac: str = ""

    def hardware_address(self) -> str:
        """Return the MAC address. Raises PlatformError ``guard_unavailable`` if the device has none."""
        return self.mac or _read_mac(self.device)


def ruleset(sets: GuardSets, link: Link) -> str:
    """Return the script that loads the table in place of an older one. No frame can leave until `release` is run.

    Raises PlatformError ``guard_unavailable`` if the device is missing or has no Ethernet address.
    """
    elements = _elements(sets)
    for version in (4, 6):
        elements[f"own{version}"] = _single(_of(version, link.own))
        elements[f"gateways{version}"] = _single(_of(version, link.gateways))
    return Template(_TEMPLATE).substitute(
        {name: _braced(members, "elements = ") for name, members in elements.items()},
        table=TABLE,
        device=link.device,
        mac=link.hardware_address().replace(":", ""),
        counters="\n".join(f"  counter {name} {{ }}" for name in COUNTERS),
    )


def update(sets: GuardSets) -> str:
    """Return the script that replaces the elements of the sets in one transaction. Rules and counters stay."""
    lines = []
    for name, members in _elements(sets).items():
        lines.append(f"flush set netdev {TABLE} {name}")
        if members:
            lines.append(f"add element netdev {TABLE} {name} {_braced(members)}")
    return "\n".join(lines) + "\n"


def release() -> str:
    """Return the script that removes the chain ``hold``, which drops every frame that passes the other rules."""
    return f"delete chain netdev {TABLE} hold\ndelete counter netdev {TABLE} held\n"


def _elements(sets: GuardSets) -> dict[str, list[str]]:
    """Return the elements of the sets that depend on the policy, by set."""
    excluded4, excluded6 = _ranges(sets.exclude4), _ranges(sets.exclude6)
    return {
        "scope4": _notation(without(_ranges(sets.allow4), excluded4), 8),
        "scope6": _notation(without(_ranges(sets.allow6), excluded6), 32),
        "excluded4": _notation(excluded4, 8),
        "excluded6": _notation(excluded6, 32),
        "resolvers4": _notation(without(_points(_of(4, sets.resolvers)), excluded4), 8),
        "resolvers6": _notation(without(_points(_of(6, sets.resolvers)), excluded6), 32),
    }


def _of(version: int, addresses: Iterable[Address]) -> list[Address]:
    return [address for address in addresses if address.version == version]


def _ranges(networks: Iterable[Network]) -> list[Span]:
    return merged(map(span, networks))


def _points(addresses: Iterable[Address]) -> list[Span]:
    return merged((int(address), int(address)) for address in addresses)


def _notation(ranges: Iterable[Span], digits: int) -> list[str]:
    return [
        f"0x{first:0{digits}x}" if first == last else f"0x{first:0{digits}x}-0x{last:0{digits}x}"
        for first, last in ranges
    ]


def _single(addresses: Iterable[Address]) -> list[str]:
    return sorted({f"0x{int(address):0{address.max_prefixlen // 4}x}" for address in addresses})


def _braced(members: list[str], lead: str = "") -> str:
    return f"{lead}{{ {', '.join(members)} }}" if members else ""


def _read_mac(device: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        try:
            reply = fcntl.ioctl(query, _SIOCGIFHWADDR, struct.pack("16s24x", device.encode()[:15]))
        except OSError as error:
            raise PlatformError(
                f"The guard's device {device} has no hardware address: {error.strerror}.", code="guard_unavailable"
            ) from error
    kind, mac = struct.unpack_from("=16xH6s", reply)
    if kind != _ARPHRD_ETHER:
        raise PlatformError(f"The guard's device {device} is not an Ethernet device.", code="guard_unavailable")
    return ":".join(f"{octet:02x}" for octet in mac)
