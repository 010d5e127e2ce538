"""The nftables ruleset that holds a namespace inside the policy: which bytes may be in a frame that leaves it.

Every match reads the frame's own bytes at fixed offsets from its first (`@ll`). The kernel's idea of a packet cannot
be trusted here: a packet socket says itself of what protocol its frame is and where the headers begin, and the named
matches (`ip daddr`, `arp htype`) believe it. A frame too short for a match does not match, and is dropped at the end.

What lets a frame through is one lookup in one set, which holds what is allowed less what is excluded. With two sets, a
frame on its way while both are swapped could meet the old one and the new one.
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
from mcp_server.netguard.template import TEMPLATE
from mcp_server.scope.address_ranges import Span, merged, span, without
from mcp_server.scope.guard_sets import GuardSets

TABLE: Final = "mcp_scope"
"""The table of the netdev family that holds everything of the guard."""

COUNTERS: Final = tuple(dict.fromkeys(re.findall(r"counter name (\w+)", TEMPLATE)))
"""The table's counters: ``pass_*`` let through, ``drop_*`` what only a tool sends, ``quiet_*`` what a kernel sends
unasked or receives, ``gate_held`` what the closed gate held back."""

Address = IPv4Address | IPv6Address
_SIOCGIFHWADDR: Final = 0x8927
_ARPHRD_ETHER: Final = 1


@dataclass(frozen=True, slots=True)
class Link:
    """The one device by which a namespace is reached.

    ``own`` are its addresses, those of link-local scope too; ``gateways`` the routers on its segment. ``mac`` is its
    hardware address as ``02:00:00:00:00:01``; empty, it is looked up in the network namespace of the calling thread.
    """

    device: str
    own: tuple[Address, ...]
    gateways: tuple[Address, ...] = ()
    mac: str = ""

    def hardware_address(self) -> str:
        """The source address of every frame; PlatformError ``guard_unavailable`` if there is none."""
        return self.mac or _read_mac(self.device)


def ruleset(sets: GuardSets, link: Link) -> str:
    """The whole table, replacing one that is there; nothing at all leaves until `open_gate` is run.

    PlatformError ``guard_unavailable`` where the device is missing or has no Ethernet address.
    """
    elements = _elements(sets)
    for version in (4, 6):
        elements[f"own{version}"] = _single(_of(version, link.own))
        elements[f"gateways{version}"] = _single(_of(version, link.gateways))
    return Template(TEMPLATE).substitute(
        {name: _braced(members, "elements = ") for name, members in elements.items()},
        table=TABLE,
        device=link.device,
        mac=link.hardware_address().replace(":", ""),
        counters="\n".join(f"  counter {name} {{ }}" for name in COUNTERS),
    )


def update(sets: GuardSets, link: Link) -> str:  # noqa: ARG001 - the device's own rules may come to depend on the policy
    """One transaction that gives the sets the elements of another policy; the rules and their counters stay."""
    lines = []
    for name, members in _elements(sets).items():
        lines.append(f"flush set netdev {TABLE} {name}")
        if members:
            lines.append(f"add element netdev {TABLE} {name} {_braced(members)}")
    return "\n".join(lines) + "\n"


def open_gate() -> str:
    """The script that removes the gate, the chain that holds back what the guard has let through until it is proved."""
    return f"delete chain netdev {TABLE} gate\ndelete counter netdev {TABLE} gate_held\n"


def _elements(sets: GuardSets) -> dict[str, list[str]]:
    """The elements of the sets that come from the policy, by set."""
    excluded4, excluded6 = _ranges(sets.exclude4), _ranges(sets.exclude6)
    return {
        "scope4": _spelled(without(_ranges(sets.allow4), excluded4), 8),
        "scope6": _spelled(without(_ranges(sets.allow6), excluded6), 32),
        "excluded4": _spelled(excluded4, 8),
        "excluded6": _spelled(excluded6, 32),
        "resolvers4": _spelled(without(_points(_of(4, sets.resolvers)), excluded4), 8),
        "resolvers6": _spelled(without(_points(_of(6, sets.resolvers)), excluded6), 32),
    }


def _of(version: int, addresses: Iterable[Address]) -> list[Address]:
    return [address for address in addresses if address.version == version]


def _ranges(networks: Iterable[Network]) -> list[Span]:
    return merged(map(span, networks))


def _points(addresses: Iterable[Address]) -> list[Span]:
    return merged((int(address), int(address)) for address in addresses)


def _spelled(ranges: Iterable[Span], digits: int) -> list[str]:
    return [
        f"0x{first:0{digits}x}" if first == last else f"0x{first:0{digits}x}-0x{last:0{digits}x}"
        for first, last in ranges
    ]


def _single(addresses: Iterable[Address]) -> list[str]:
    return sorted({f"0x{int(address):0{address.max_prefixlen // 4}x}" for address in addresses})


def _braced(members: list[str], lead: str = "") -> str:
    return f"{lead}{{ {', '.join(members)} }}" if members else ""


def _read_mac(device: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, _SIOCGIFHWADDR, struct.pack("16s24x", device.encode()[:15]))
        except OSError as error:
            raise PlatformError(
                f"the guard's device {device} has no hardware address here: {error.strerror}", code="guard_unavailable"
            ) from error
    kind, mac = struct.unpack_from("=16xH6s", answer)
    if kind != _ARPHRD_ETHER:
        raise PlatformError(f"the guard's device {device} is no Ethernet device", code="guard_unavailable")
    return ":".join(f"{octet:02x}" for octet in mac)
