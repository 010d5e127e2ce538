"""The self-test of the ruleset, before the guarded device is connected: forbidden frames are dropped, others pass.

The frames are sent on the guarded device while the chain ``hold`` drops every frame that passes the other rules. So no
frame leaves, even if the rules fail. No host has the addresses used here: they are reserved, partly for documentation
(RFC 5737, RFC 3849, RFC 5771, RFC 6676).
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from mcp_server.errors import PlatformError
from mcp_server.netguard.ruleset import release

if TYPE_CHECKING:
    from mcp_server.netguard.nft import Nft
    from mcp_server.netguard.ruleset import Link

# If the policy allows the first address, the second is used. It is reserved and in no scope.
_UNUSED4 = (IPv4Address("203.0.113.1"), IPv4Address("240.0.0.1"))
_UNUSED6 = (IPv6Address("2001:db8::1"), IPv6Address("64:ff9b::1"))
_GROUP4, _GROUP6 = "233.252.0.1", "ff0e::db8:0:1"
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
_ARP, _IPV4, _IPV6 = 0x0806, 0x0800, 0x86DD
_BROADCAST: Final = b"\xff" * 6
_ROUTER: Final = bytes.fromhex("020000000001")
_SECONDS: Final = 1.0
_Send = Callable[[], None]


def run_self_test(link: Link, nft: Nft) -> None:
    """Test the ruleset that `Nft.run` has loaded, then remove its chain ``hold``.

    The calling thread must be in the guarded namespace, and the device must be up. It needs no carrier. If the test
    fails, this raises PlatformError ``guard_unavailable`` and the chain ``hold`` stays.
    """
    if "held" not in nft.counters():
        raise _failed("the chain 'hold' is not loaded, so the ruleset must be loaded again")
    try:
        for what, send in _forbidden(link, nft):
            _expect_drop(what, send, nft)
        for what, send in _allowed(link):
            _expect_pass(what, send, nft)
    except OSError as error:
        raise _failed(f"frames cannot be sent on {link.device}: {error.strerror or error}") from error
    nft.run(release())


def _forbidden(link: Link, nft: Nft) -> Iterator[tuple[str, _Send]]:
    """Yield a description and a function for each frame that must be dropped."""
    unused4 = _UNUSED4[nft.holds("scope4", f"0x{int(_UNUSED4[0]):08x}")]
    unused6 = _UNUSED6[nft.holds("scope6", f"0x{int(_UNUSED6[0]):032x}")]
    mac = bytes.fromhex(link.hardware_address().replace(":", ""))
    for own in link.own:
        if isinstance(own, IPv4Address):
            datagram = _frame(_ROUTER, mac, _IPV4, _ipv4(own, unused4))
            yield "an IPv4 frame of a packet socket", partial(_send_frame, link, datagram)
            yield "an IPv4 frame that bypasses the queue", partial(_send_frame, link, datagram, bypass=True)
            request = _frame(_BROADCAST, mac, _ARP, _who_has(mac, own, unused4))
            yield "an ARP request", partial(_send_frame, link, request)
            yield "an IPv4 datagram of the kernel", partial(_send_datagram4, link, own)
        elif not own.is_link_local:
            datagram = _frame(_ROUTER, mac, _IPV6, _ipv6(own, unused6))
            yield "an IPv6 frame of a packet socket", partial(_send_frame, link, datagram)
            yield "an IPv6 datagram of the kernel", partial(_send_datagram6, link, own)


def _allowed(link: Link) -> Iterator[tuple[str, _Send]]:
    """Yield a description and a function for each frame that must pass. A guard that drops everything fails too."""
    mac = bytes.fromhex(link.hardware_address().replace(":", ""))
    own = next((address for address in link.own if isinstance(address, IPv4Address)), None)
    gateway = next((address for address in link.gateways if isinstance(address, IPv4Address)), None)
    if own is not None and gateway is not None:
        frame = _frame(_BROADCAST, mac, _ARP, _who_has(mac, own, gateway))
        yield "an ARP request for the gateway", partial(_send_frame, link, frame)


def _expect_drop(what: str, send: _Send, nft: Nft) -> None:
    before = nft.read()
    held = nft.counters()["held"]
    with suppress(OSError):  # some senders get ENOBUFS or EPERM for a dropped frame; only the counters matter
        send()
    after = nft.read()
    deadline = time.monotonic() + _SECONDS
    while after.dropped == before.dropped and time.monotonic() < deadline:
        time.sleep(0.005)
        after = nft.read()
    if after.dropped == before.dropped:
        raise _failed(f"{what} for an address outside the scope was not dropped")
    if after.passed != before.passed or nft.counters()["held"] != held:
        raise _failed(f"{what} for an address outside the scope passed the rules")


def _expect_pass(what: str, send: _Send, nft: Nft) -> None:
    before = nft.counters()
    with suppress(OSError):  # the chain hold drops it
        send()
    after = nft.counters()
    passed = sum(after[name] - before[name] for name in after if name.startswith("pass_"))
    if passed != 1 or after["held"] != before["held"] + 1:
        raise _failed(f"{what} did not pass")


def _send_frame(link: Link, frame: bytes, *, bypass: bool = False) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        if bypass:
            sender.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        sender.bind((link.device, 0))
        sender.send(frame)


def _send_datagram4(link: Link, own: IPv4Address) -> None:
    # To a multicast group, because for a unicast address the kernel would send ARP requests, and repeat them later.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        here = struct.pack("=4s4si", bytes(4), own.packed, socket.if_nametoindex(link.device))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
        sender.bind((str(own), 0))
        sender.sendto(b"self-test", (_GROUP4, 9))


def _send_datagram6(link: Link, own: IPv6Address) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(link.device))
        sender.bind((str(own), 0))
        sender.sendto(b"self-test", (_GROUP6, 9))


def _frame(to: bytes, mac: bytes, kind: int, content: bytes) -> bytes:
    return to + mac + kind.to_bytes(2, "big") + content


def _who_has(mac: bytes, own: IPv4Address, wanted: IPv4Address) -> bytes:
    return struct.pack(">HHBBH6s4s6s4s", 1, _IPV4, 6, 4, 1, mac, own.packed, bytes(6), wanted.packed)


def _ipv4(own: IPv4Address, to: IPv4Address) -> bytes:
    datagram = struct.pack(">HHHH", 9, 9, 8, 0)
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 0, 0, 1, 17, 0, own.packed, to.packed)
    total: int = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return head[:10] + checksum.to_bytes(2, "big") + head[12:] + datagram


def _ipv6(own: IPv6Address, to: IPv6Address) -> bytes:
    return struct.pack(">IHBB16s16s", 6 << 28, 8, 17, 1, own.packed, to.packed) + struct.pack(">HHHH", 9, 9, 8, 0)


def _failed(why: str) -> PlatformError:
    return PlatformError(
        f"The self-test of the guard failed: {why}.",
        code="guard_unavailable",
        hint="Use Linux 5.16 or later with the netdev egress hook of nftables. No packet has left the namespace.",
    )
