"""Sends crafted frames through a packet socket, with and without the queueing discipline.

This is a program for the system's Python: ``sender.py KIND DEVICE`` sends the frames of one kind a few times and exits
with 0. It ignores errors of the kernel, because a frame that cannot be sent does not leave the host.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
from contextlib import suppress
from ipaddress import ip_address

ROUTER_MAC = bytes.fromhex("027701000001")
EXCLUDED_MAC = bytes.fromhex("02770100000c")
BROADCAST = b"\xff" * 6
IN, EXCLUDED, ROUTED, SPOOFED = (
    ip_address(text).packed for text in ("10.77.1.10", "10.77.1.12", "10.77.2.10", "10.77.2.20")
)
IN6, EXCLUDED6, ROUTED6 = (ip_address(text).packed for text in ("fd77:1::a", "fd77:1::c", "fd77:2::a"))
OWN6 = {b"scope0": ip_address("fd77:1::f9").packed}
HOST6 = ip_address("fd77:1::fa").packed

_SOL_PACKET, _QDISC_BYPASS, _VNET_HDR = 263, 20, 15
_TIMES = 3


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source: bytes, target: bytes, protocol: int, payload: bytes, options: bytes = b"", offset: int = 0) -> bytes:
    """An IPv4 packet (RFC 791)."""
    length = 20 + len(options)
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | length // 4, 0, length + len(payload), 7, offset, 64, protocol, 0, source, target
    )
    head += options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ipv6(source: bytes, target: bytes, following: int, payload: bytes) -> bytes:
    """An IPv6 packet (RFC 8200)."""
    return struct.pack("!IHBB", 6 << 28, len(payload), following, 255) + source + target + payload


def udp(port: int = 9) -> bytes:
    """A datagram without a checksum."""
    return struct.pack("!HHHH", 4444, port, 12, 0) + b"leak"


def arp(mac: bytes, own: bytes, wanted: bytes, operation: int = 1) -> bytes:
    """An ARP message (RFC 826)."""
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + own + bytes(6) + wanted


def solicit(own: bytes, mac: bytes, wanted: bytes) -> bytes:
    """A neighbor solicitation (RFC 4861)."""
    group = bytes.fromhex("ff0200000000000000000001ff") + wanted[13:]
    body = struct.pack("!BBHI", 135, 0, 0, 0) + wanted + b"\x01\x01" + mac
    total = checksum(own + group + struct.pack("!II", len(body), 58) + body)
    return ipv6(own, group, 58, body[:2] + struct.pack("!H", total) + body[4:])


def frames(mac: bytes, own: bytes, own6: bytes) -> dict[str, list[tuple[bytes, int, bytes]]]:
    """Return the frames by kind, each with destination MAC, EtherType and content."""
    lsrr = b"\x83\x07\x04" + ROUTED + b"\0"
    routing = struct.pack("!BBBBI", 17, 2, 0, 1, 0) + ROUTED6
    hidden = ipv4(own, ROUTED, 17, udp())
    return {
        "arp": [(BROADCAST, 0x0806, arp(mac, own, wanted)) for wanted in (EXCLUDED, ROUTED, bytes((10, 77, 1, 200)))],
        "arp-spoof": [(BROADCAST, 0x0806, arp(mac, SPOOFED, IN)), (BROADCAST, 0x0806, arp(mac, EXCLUDED, IN, 2))],
        "nd": [(b"\x33\x33\xff" + wanted[13:], 0x86DD, solicit(own6, mac, wanted)) for wanted in (EXCLUDED6, ROUTED6)],
        "routed": [
            (ROUTER_MAC, 0x0800, ipv4(own, ROUTED, 17, udp())),
            (ROUTER_MAC, 0x86DD, ipv6(own6, ROUTED6, 17, udp())),
        ],
        "excluded": [
            (EXCLUDED_MAC, 0x0800, ipv4(own, EXCLUDED, 17, udp())),
            (BROADCAST, 0x0800, ipv4(own, EXCLUDED, 17, udp())),
        ],
        "spoofed": [(ROUTER_MAC, 0x0800, ipv4(SPOOFED, IN, 17, udp()))],
        "source-route": [(ROUTER_MAC, 0x0800, ipv4(own, IN, 17, udp(), lsrr))],
        "routing-header": [(ROUTER_MAC, 0x86DD, ipv6(own6, IN6, 43, routing + udp()))],
        "tunnel": [(ROUTER_MAC, 0x0800, ipv4(own, IN, 4, hidden)), (ROUTER_MAC, 0x86DD, ipv6(own6, IN6, 4, hidden))],
        "fragment": [(ROUTER_MAC, 0x0800, ipv4(own, ROUTED, 17, udp(), offset=100))],
        "vlan": [(ROUTER_MAC, 0x8100, struct.pack("!HH", 7, 0x0800) + hidden)],
        "ethertype": [(ROUTER_MAC, 0x88CC, bytes(50)), (BROADCAST, 0x0842, b"\xff" * 60)],
        "multicast": [(b"\x01\x00\x5e\x00\x00\xfb", 0x0800, ipv4(own, bytes((224, 0, 0, 251)), 17, udp(5353)))],
        "resolver-port": [(ROUTER_MAC, 0x0800, ipv4(own, bytes((10, 77, 1, 2)), 17, udp(80)))],
    }


KINDS = tuple(frames(bytes(6), bytes(4), bytes(16)))


def main() -> None:
    """Send the frames of one kind in every way of a packet socket, and through a raw socket."""
    kind, device = sys.argv[1], sys.argv[2].encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        request = struct.pack("16s24x", device)
        mac = fcntl.ioctl(query, 0x8927, request)[18:24]
        own = fcntl.ioctl(query, 0x8915, request)[20:24]
    made = frames(mac, own, OWN6.get(device, HOST6))[kind]
    for bypass in (0, 1):
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as packet:
            packet.setsockopt(_SOL_PACKET, _QDISC_BYPASS, bypass)
            packet.bind((device.decode(), 0))
            for to, ethertype, content in made * _TIMES:
                with suppress(OSError):
                    packet.send(to + mac + struct.pack("!H", ethertype) + content)
    # Send the same bytes with other protocols in the address. The guard must look at the frame itself.
    for protocol in (0x0800, 0x86DD, 0x0806, 0x0003):
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as packet:
            for to, ethertype, content in made:
                with suppress(OSError):
                    packet.sendto(to + mac + struct.pack("!H", ethertype) + content, (device.decode(), protocol))
    for _, ethertype, content in made:
        if ethertype == 0x0800:
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw, suppress(OSError):
                raw.sendto(content, (str(ip_address(content[16:20])), 0))


if __name__ == "__main__":
    main()
