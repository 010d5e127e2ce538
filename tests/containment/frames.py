"""Crafted frames for the guard: forbidden frames, and frames that tools in scope need."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
MAC, HOST_MAC = bytes.fromhex("024d00000002"), bytes.fromhex("024d0000000a")
EVERYONE, GROUP4 = b"\xff" * 6, bytes.fromhex("01005e4d0109")
OWN4, OWN6, LOCAL6 = "10.77.1.2", "fd77:1::2", "fe80::4d:2"
GATEWAY4, GATEWAY6 = "10.77.1.254", "fd77:1::ffff:1"
INSIDE4, INSIDE6 = "10.77.1.10", "fd77:1::10"
EXCLUDED4, EXCLUDED6 = "10.77.1.5", "fd77:1::5"
OUTSIDE4, OUTSIDE6 = "10.77.2.10", "fd77:2::10"
RESOLVER4, RESOLVER6 = "10.77.1.200", "fd77:1::ffff:53"


def text(mac: bytes) -> str:
    return ":".join(f"{octet:02x}" for octet in mac)


def ethernet(kind: int, content: bytes, *, to: bytes = HOST_MAC, source: bytes = MAC) -> bytes:
    return to + source + kind.to_bytes(2, "big") + content


def ipv4(
    target: str,
    content: bytes = b"",
    *,
    source: str = OWN4,
    protocol: int = 17,
    options: bytes = b"",
    flags: int = 0,
    version: int = 4,
) -> bytes:
    """An IPv4 packet with its checksum; ``flags`` are the 16 bits of flags and fragment offset."""
    length = 5 + len(options) // 4
    head = struct.pack(
        ">BBHHHBBH4s4s",
        version << 4 | length,
        0,
        length * 4 + len(content),
        7,
        flags,
        64,
        protocol,
        0,
        IPv4Address(source).packed,
        IPv4Address(target).packed,
    )
    head += options
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + content


def ipv6(
    target: str, content: bytes = b"", *, source: str = OWN6, following: int = 17, hops: int = 64, version: int = 6
) -> bytes:
    head = struct.pack(">IHBB", version << 28, len(content), following, hops)
    return head + IPv6Address(source).packed + IPv6Address(target).packed + content


def udp(port: int = 9, content: bytes = b"frames") -> bytes:
    return struct.pack(">HHHH", 40000, port, 8 + len(content), 0) + content


def tcp(port: int = 80) -> bytes:
    return struct.pack(">HHIIBBHHH", 40000, port, 1, 0, 0x50, 2, 1024, 0, 0)


def icmp(kind: int = 8) -> bytes:
    body = struct.pack(">BBHHH", kind, 0, 0, 1, 1) + b"frames"
    return body[:2] + checksum(body).to_bytes(2, "big") + body[4:]


def arp(
    wanted: str,
    *,
    sender: str = OWN4,
    mac: bytes = MAC,
    operation: int = 1,
    head: bytes = bytes.fromhex("0001080006 04"),
) -> bytes:
    return head + struct.pack(
        ">H6s4s6s4s", operation, mac, IPv4Address(sender).packed, bytes(6), IPv4Address(wanted).packed
    )


def neighbor(kind: int, wanted: str, *, mac: bytes = MAC, option: int = 1) -> bytes:
    """A neighbor solicitation (135) or advertisement (136) with its link-layer option."""
    return struct.pack(">BBHI", kind, 0, 0, 0) + IPv6Address(wanted).packed + bytes([option, 1]) + mac


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def misdirected(frame: bytes, low: bytes) -> tuple[bytes, int, int]:
    """Change two bytes of ``frame`` so that its checksum is ``low``.

    Return the frame, and the offsets that make the kernel write the checksum over half of the destination.
    """
    start, position = 20, 30
    for guess in range(1 << 16):
        tried = frame[:34] + guess.to_bytes(2, "big") + frame[36:]
        if checksum(tried[start:]).to_bytes(2, "big") == low:
            return tried, start, position - start
    raise AssertionError(f"expected two bytes that give the checksum {low.hex()}, found none")


def forbidden_frames() -> dict[str, bytes]:
    """Frames that no tool in scope may send, by name."""
    near, far = ipv4(INSIDE4, udp()), ipv4(OUTSIDE4, udp())
    near6, far6 = ipv6(INSIDE6, udp()), ipv6(OUTSIDE6, udp())
    loose = bytes([0x83, 7, 4]) + IPv4Address(OUTSIDE4).packed + b"\0"
    record = bytes([7, 7, 4]) + bytes(4) + b"\0"
    solicited = bytes.fromhex("3333ff000010")
    fragment = struct.pack(">BBHI", 17, 0, 0x0001, 9)
    routing = struct.pack(">BBBBI", 17, 2, 0, 1, 0) + IPv6Address(OUTSIDE6).packed
    frames = {
        "plain": ethernet(IPV4, far),
        "tcp": ethernet(IPV4, ipv4(OUTSIDE4, tcp(), protocol=6)),
        "ping": ethernet(IPV4, ipv4(OUTSIDE4, icmp(), protocol=1)),
        "excluded": ethernet(IPV4, ipv4(EXCLUDED4, udp())),
        "packet to the gateway": ethernet(IPV4, ipv4(GATEWAY4, udp())),
        "other port of the resolver": ethernet(IPV4, ipv4(RESOLVER4, udp(5353))),
        "other tcp port of the resolver": ethernet(IPV4, ipv4(RESOLVER4, tcp(853), protocol=6)),
        "ping of the resolver": ethernet(IPV4, ipv4(RESOLVER4, icmp(), protocol=1)),
        "fragment to the resolver": ethernet(IPV4, ipv4(RESOLVER4, udp(53), flags=0x2000)),
        "later fragment to the resolver": ethernet(IPV4, ipv4(RESOLVER4, udp(53), flags=0x0010)),
        "first fragment": ethernet(IPV4, ipv4(OUTSIDE4, udp(), flags=0x2000)),
        "later fragment": ethernet(IPV4, ipv4(OUTSIDE4, udp(), flags=0x0005)),
        "foreign source": ethernet(IPV4, ipv4(INSIDE4, udp(), source="10.77.1.9")),
        "source outside": ethernet(IPV4, ipv4(INSIDE4, udp(), source=OUTSIDE4)),
        "foreign MAC": ethernet(IPV4, near, source=bytes.fromhex("024d000000ff")),
        "loose source route": ethernet(IPV4, ipv4(INSIDE4, udp(), options=loose)),
        "strict source route": ethernet(IPV4, ipv4(INSIDE4, udp(), options=b"\x89" + loose[1:])),
        "record route": ethernet(IPV4, ipv4(INSIDE4, udp(), options=record)),
        "no-operation option": ethernet(IPV4, ipv4(INSIDE4, udp(), options=b"\1\1\1\0")),
        "IP in IP": ethernet(IPV4, ipv4(INSIDE4, far, protocol=4)),
        "IPv6 in IPv4": ethernet(IPV4, ipv4(INSIDE4, far6, protocol=41)),
        "GRE": ethernet(IPV4, ipv4(INSIDE4, b"\0\0\x08\0" + far, protocol=47)),
        "SCTP": ethernet(IPV4, ipv4(INSIDE4, bytes(12), protocol=132)),
        "IGMP": ethernet(IPV4, ipv4("224.0.0.22", bytes(8), protocol=2), to=GROUP4),
        "redirect": ethernet(IPV4, ipv4(INSIDE4, icmp(5) + far, protocol=1)),
        "router advertisement": ethernet(IPV4, ipv4(INSIDE4, icmp(9), protocol=1)),
        "broadcast": ethernet(IPV4, ipv4("255.255.255.255", udp()), to=EVERYONE),
        "subnet broadcast": ethernet(IPV4, ipv4("10.77.1.255", udp()), to=EVERYONE),
        "scoped address with the broadcast MAC": ethernet(IPV4, near, to=EVERYONE),
        "multicast": ethernet(IPV4, ipv4("239.77.1.9", udp()), to=GROUP4),
        "cloud metadata": ethernet(IPV4, ipv4("169.254.169.254", tcp(), protocol=6)),
        "version 5": ethernet(IPV4, ipv4(INSIDE4, udp(), version=5)),
        "header of three words": ethernet(IPV4, b"\x43" + near[1:]),
        "IPv6 with the EtherType of IPv4": ethernet(IPV4, far6),
        "IPv4 with the EtherType of IPv6": ethernet(IPV6, far),
        "ARP with the EtherType of IPv4": ethernet(IPV4, arp(OUTSIDE4)),
        "VLAN": ethernet(0x8100, b"\0\x07\x08\0" + near),
        "VLAN 0": ethernet(0x8100, b"\0\0\x08\0" + far),
        "QinQ": ethernet(0x88A8, b"\0\x07\x81\0\0\x08\x08\0" + near),
        "MPLS": ethernet(0x8847, b"\0\x01\x01\x40" + near),
        "PPPoE": ethernet(0x8864, b"\x11\0\0\x01\0\x2a\0\x21" + near),
        "MACsec": ethernet(0x88E5, near),
        "LLDP": ethernet(0x88CC, bytes(40), to=bytes.fromhex("0180c200000e")),
        "802.3 length, LLC and SNAP": ethernet(len(near) + 8, b"\xaa\xaa\3\0\0\0\x08\0" + near),
        "802.3 length, spanning tree": ethernet(38, b"\x42\x42\3" + bytes(35), to=bytes.fromhex("0180c2000000")),
        "RARP": ethernet(0x8035, arp(OUTSIDE4, operation=3)),
        "loopback test": ethernet(0x9000, bytes(40)),
        "IPv4 after a shim as long as a tag": MAC + MAC + b"\x08\0" + b"\0\0\x08\0" + near,
        "ARP outside": ethernet(ARP, arp(OUTSIDE4), to=EVERYONE),
        "ARP for an excluded host": ethernet(ARP, arp(EXCLUDED4), to=EVERYONE),
        "ARP with a foreign sender": ethernet(ARP, arp(INSIDE4, sender=GATEWAY4), to=EVERYONE),
        "ARP reply with the gateway as sender": ethernet(ARP, arp(INSIDE4, sender=GATEWAY4, operation=2)),
        "ARP probe": ethernet(ARP, arp(INSIDE4, sender="0.0.0.0"), to=EVERYONE),
        "ARP with a foreign MAC": ethernet(ARP, arp(INSIDE4, mac=HOST_MAC), to=EVERYONE),
        "ARP of another kind": ethernet(ARP, arp(INSIDE4, head=bytes.fromhex("000608000604")), to=EVERYONE),
        "ARP that is IPv6": ethernet(ARP, bytes.fromhex("000186dd0610") + bytes(60), to=EVERYONE),
        "ARP operation 9": ethernet(ARP, arp(INSIDE4, operation=9), to=EVERYONE),
        "ARP with data behind it": ethernet(ARP, arp(INSIDE4) + bytes(600), to=EVERYONE),
        "IPv6": ethernet(IPV6, far6),
        "IPv6 excluded": ethernet(IPV6, ipv6(EXCLUDED6, udp())),
        "IPv6 packet to the gateway": ethernet(IPV6, ipv6(GATEWAY6, tcp(), following=6)),
        "IPv6 resolver's other port": ethernet(IPV6, ipv6(RESOLVER6, udp(5353))),
        "IPv6 with a foreign source": ethernet(IPV6, ipv6(INSIDE6, udp(), source="fd77:1::9")),
        "IPv6 unspecified source": ethernet(IPV6, ipv6(INSIDE6, udp(), source="::")),
        "IPv6 routing header": ethernet(IPV6, ipv6(INSIDE6, routing + udp(), following=43)),
        "IPv6 routing header in a fragment": ethernet(
            IPV6, ipv6(INSIDE6, b"\x2b" + fragment[1:] + routing, following=44)
        ),
        "IPv6 hop-by-hop": ethernet(IPV6, ipv6(INSIDE6, b"\x11\0\1\4" + bytes(4) + udp(), following=0)),
        "IPv6 destination options": ethernet(IPV6, ipv6(INSIDE6, b"\x11\0\1\4" + bytes(4) + udp(), following=60)),
        "IPv6 authentication": ethernet(IPV6, ipv6(INSIDE6, b"\x11\4" + bytes(22) + udp(), following=51)),
        "IPv6 fragment outside": ethernet(IPV6, ipv6(OUTSIDE6, fragment + udp(), following=44)),
        "IPv6 in IPv6": ethernet(IPV6, ipv6(INSIDE6, far6, following=41)),
        "IPv4 in IPv6": ethernet(IPV6, ipv6(INSIDE6, far, following=4)),
        "GRE in IPv6": ethernet(IPV6, ipv6(INSIDE6, bytes(8), following=47)),
        "IPv6 multicast": ethernet(IPV6, ipv6("ff02::1", udp()), to=bytes.fromhex("333300000001")),
        "IPv6 scoped address with a multicast MAC": ethernet(IPV6, near6, to=bytes.fromhex("333300000001")),
        "link-local": ethernet(IPV6, ipv6("fe80::4d:a", udp(), source=LOCAL6)),
        "mapped": ethernet(IPV6, ipv6(f"::ffff:{OUTSIDE4}", udp())),
        "solicitation outside": ethernet(
            IPV6, ipv6("ff02::1:ff00:10", neighbor(135, OUTSIDE6), following=58, hops=255), to=solicited
        ),
        "solicitation of an excluded host": ethernet(
            IPV6, ipv6("ff02::1:ff00:5", neighbor(135, EXCLUDED6), following=58, hops=255), to=solicited
        ),
        "solicitation to all nodes": ethernet(
            IPV6, ipv6("ff02::1", neighbor(135, INSIDE6), following=58, hops=255), to=bytes.fromhex("333300000001")
        ),
        "solicitation to a host outside": ethernet(
            IPV6, ipv6(OUTSIDE6, neighbor(135, INSIDE6), following=58, hops=255)
        ),
        "solicitation with a foreign MAC": ethernet(
            IPV6,
            ipv6("ff02::1:ff00:10", neighbor(135, INSIDE6, mac=HOST_MAC), following=58, hops=255),
            to=solicited,
        ),
        "solicitation with a low hop limit": ethernet(
            IPV6, ipv6("ff02::1:ff00:10", neighbor(135, INSIDE6), following=58, hops=64), to=solicited
        ),
        "advertisement of a foreign address": ethernet(
            IPV6, ipv6(INSIDE6, neighbor(136, GATEWAY6, option=2), following=58, hops=255)
        ),
        "advertisement to all": ethernet(
            IPV6,
            ipv6("ff02::1", neighbor(136, OWN6, option=2), following=58, hops=255),
            to=bytes.fromhex("333300000001"),
        ),
        "unsolicited advertisement": ethernet(
            IPV6, ipv6("fe80::4d:bad", neighbor(136, OWN6, option=2), following=58, hops=255, source=LOCAL6)
        ),
        "IPv6 version 5": ethernet(IPV6, ipv6(INSIDE6, udp(), version=5)),
        "solicitation of code 1": ethernet(
            IPV6,
            ipv6("ff02::1:ff00:10", b"\x87\1" + neighbor(135, INSIDE6)[2:], following=58, hops=255),
            to=solicited,
        ),
        "solicitation with two options": ethernet(
            IPV6,
            ipv6("ff02::1:ff00:10", neighbor(135, INSIDE6) + b"\1\1" + HOST_MAC, following=58, hops=255),
            to=solicited,
        ),
        "unicast solicitation with a multicast MAC": ethernet(
            IPV6, ipv6(INSIDE6, neighbor(135, INSIDE6), following=58, hops=255), to=solicited
        ),
        "advertisement with a low hop limit": ethernet(
            IPV6, ipv6(INSIDE6, neighbor(136, OWN6, option=2), following=58)
        ),
        "advertisement of code 1": ethernet(
            IPV6, ipv6(INSIDE6, b"\x88\1" + neighbor(136, OWN6, option=2)[2:], following=58, hops=255)
        ),
        "advertisement with two options": ethernet(
            IPV6, ipv6(INSIDE6, neighbor(136, OWN6, option=2) + b"\2\1" + HOST_MAC, following=58, hops=255)
        ),
        "advertisement with a foreign MAC": ethernet(
            IPV6, ipv6(INSIDE6, neighbor(136, OWN6, mac=HOST_MAC, option=2), following=58, hops=255)
        ),
        "unicast advertisement with a multicast MAC": ethernet(
            IPV6, ipv6(INSIDE6, neighbor(136, OWN6, option=2), following=58, hops=255), to=solicited
        ),
        "router solicitation": ethernet(
            IPV6, ipv6("ff02::2", icmp(133), following=58, hops=255), to=bytes.fromhex("333300000002")
        ),
        "router advertisement to a host": ethernet(IPV6, ipv6(INSIDE6, icmp(134), following=58, hops=255)),
        "redirect to a host": ethernet(IPV6, ipv6(INSIDE6, icmp(137) + bytes(32), following=58, hops=255)),
        "multicast listener report": ethernet(
            IPV6,
            ipv6("ff02::16", b"\x3a\0\5\2\0\0\1\0" + icmp(143) + bytes(20), following=0, hops=1),
            to=bytes.fromhex("333300000016"),
        ),
        "header alone": ethernet(IPV4, b""),
        "truncated header": ethernet(IPV4, near[:12]),
        "all but the last byte of the target": ethernet(IPV4, far[:19]),
        "truncated IPv6 header": ethernet(IPV6, far6[:30]),
    }
    frames |= {f"ARP sweep {last}": ethernet(ARP, arp(f"10.77.1.{last}"), to=EVERYONE) for last in range(16, 40)}
    return frames


def allowed_frames() -> dict[str, bytes]:
    """Frames that a tool in scope needs, by name."""
    solicited = bytes.fromhex("3333ff000010")
    fragment = struct.pack(">BBHI", 17, 0, 0x0001, 9)
    return {
        "udp": ethernet(IPV4, ipv4(INSIDE4, udp())),
        "tcp": ethernet(IPV4, ipv4(INSIDE4, tcp(), protocol=6)),
        "ping": ethernet(IPV4, ipv4(INSIDE4, icmp(), protocol=1)),
        "timestamp": ethernet(IPV4, ipv4(INSIDE4, icmp(13), protocol=1)),
        "first fragment": ethernet(IPV4, ipv4(INSIDE4, udp(), flags=0x2000)),
        "later fragment": ethernet(IPV4, ipv4(INSIDE4, bytes([5] * 16), flags=0x2001, protocol=1)),
        "dns": ethernet(IPV4, ipv4(RESOLVER4, udp(53))),
        "dns over tcp": ethernet(IPV4, ipv4(RESOLVER4, tcp(53), protocol=6)),
        "arp": ethernet(ARP, arp(INSIDE4), to=EVERYONE),
        "unicast arp": ethernet(ARP, arp(INSIDE4)),
        "arp padded": ethernet(ARP, arp(INSIDE4) + bytes(18), to=EVERYONE),
        "arp for the gateway": ethernet(ARP, arp(GATEWAY4), to=EVERYONE),
        "arp for the resolver": ethernet(ARP, arp(RESOLVER4), to=EVERYONE),
        "arp reply": ethernet(ARP, arp(INSIDE4, operation=2)),
        "udp 6": ethernet(IPV6, ipv6(INSIDE6, udp())),
        "tcp 6": ethernet(IPV6, ipv6(INSIDE6, tcp(), following=6)),
        "ping 6": ethernet(IPV6, ipv6(INSIDE6, icmp(128), following=58)),
        "fragment 6": ethernet(IPV6, ipv6(INSIDE6, fragment + udp(), following=44)),
        "dns 6": ethernet(IPV6, ipv6(RESOLVER6, udp(53))),
        "solicitation": ethernet(
            IPV6, ipv6("ff02::1:ff00:10", neighbor(135, INSIDE6), following=58, hops=255), to=solicited
        ),
        "solicitation of the gateway": ethernet(
            IPV6,
            ipv6("ff02::1:ff00:1", neighbor(135, GATEWAY6), following=58, hops=255),
            to=bytes.fromhex("3333ff000001"),
        ),
        "advertisement": ethernet(IPV6, ipv6(INSIDE6, neighbor(136, OWN6, option=2), following=58, hops=255)),
    }
