"""Two network namespaces with a link between them: one is guarded, and the other has a tap that checks every frame.

The check does not use the guard's rules. It reads a frame as a host on the link does, and decides whether a tool in
scope could have sent it.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Final

from mcp_server.netguard.nft import Nft
from mcp_server.netguard.ruleset import Link, ruleset
from mcp_server.netguard.self_test import run_self_test
from mcp_server.scope.guard_sets import GuardSets
from tests.containment.frames import (
    ARP,
    EXCLUDED4,
    EXCLUDED6,
    GATEWAY4,
    GATEWAY6,
    HOST_MAC,
    INSIDE4,
    INSIDE6,
    IPV4,
    IPV6,
    LOCAL6,
    MAC,
    OWN4,
    OWN6,
    RESOLVER4,
    RESOLVER6,
    text,
)
from tests.lab.network.programs import find

CLONE_NEWNET: Final = 0x40000000
SOL_PACKET, SOL_XDP, AF_XDP = 263, 283, 44
QDISC_BYPASS, VNET_HDR, TX_RING = 20, 15, 13
_ALLOW4, _ALLOW6 = IPv4Network("10.77.1.0/28"), IPv6Network("fd77:1::/112")
SETS: Final = GuardSets(
    allow4=(_ALLOW4,),
    allow6=(_ALLOW6,),
    exclude4=(IPv4Network("10.77.1.5"), IPv4Network("169.254.0.0/16"), IPv4Network("224.0.0.0/3")),
    exclude6=(IPv6Network("fd77:1::5"), IPv6Network("fe80::/10"), IPv6Network("ff00::/8")),
    resolvers=(ip_address(RESOLVER4), ip_address(RESOLVER6)),
)
LINK: Final = Link(
    "g0",
    tuple(map(ip_address, (OWN4, OWN6, LOCAL6))),
    tuple(map(ip_address, (GATEWAY4, GATEWAY6))),
)
_SOLICITED: Final = IPv6Network("ff02::1:ff00:0/104")
_libc = ctypes.CDLL(None, use_errno=True)


class NetNamespace:
    """A network namespace without a name. ``descriptor`` keeps it alive."""

    def __init__(self) -> None:
        with _returning():
            assert _libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            self.descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Run a block in the namespace, including the sockets and processes that it creates."""
        with _returning():
            assert _libc.setns(self.descriptor, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            yield


@contextmanager
def _returning() -> Iterator[None]:
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        assert _libc.setns(before, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(before)


def ip(*lines: str) -> None:
    subprocess.run(
        [find("ip"), "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True, capture_output=True
    )


class Sender:
    """Packet sockets in the namespace where this is created. Sending can raise OSError if the guard drops the frame."""

    def __init__(self) -> None:
        self._queued = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._direct = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._direct.setsockopt(SOL_PACKET, QDISC_BYPASS, 1)
        self._cooked = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)

    def send(self, frame: bytes, *, claimed: int = 0, bypass: bool = False, device: str = "g0") -> None:
        """Send a frame with the protocol ``claimed`` in the address."""
        (self._direct if bypass else self._queued).sendto(frame, (device, claimed))

    def send_cooked(self, content: bytes, claimed: int, to: bytes = HOST_MAC) -> None:
        """Send a packet to which the kernel adds the link header."""
        self._cooked.sendto(content, ("g0", claimed, 0, 1, to))

    def close(self) -> None:
        for each in (self._queued, self._direct, self._cooked):
            each.close()


@dataclass
class GuardedLink:
    """The guarded namespace ``inside``, the namespace ``outside`` with the other hosts, and a tap on their link."""

    inside: NetNamespace = field(default_factory=NetNamespace)
    outside: NetNamespace = field(default_factory=NetNamespace)
    nft: Nft = field(init=False)
    tap: socket.socket = field(init=False)
    sender: Sender = field(init=False)

    def __post_init__(self) -> None:
        with self.outside.inside():
            quiet("default")
            ip(
                "link set lo up",
                f"link add p0 address {text(HOST_MAC)} type veth peer name g0 address {text(MAC)} "
                f"netns {self.inside.path}",
                "link set p0 addrgenmode none",
                *(f"addr add {address}/24 dev p0" for address in (GATEWAY4, INSIDE4, EXCLUDED4, RESOLVER4)),
                *(f"addr add {address}/64 dev p0 nodad" for address in (GATEWAY6, INSIDE6, EXCLUDED6, RESOLVER6)),
                "link set p0 up",
            )
            self.tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self.tap.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE
            self.tap.bind(("p0", 0))
            self.tap.setblocking(False)
        with self.inside.inside():
            quiet("default")
            ip("link set lo up", "link set g0 addrgenmode none")
            self.nft = Nft()
            self.nft.run(ruleset(SETS, LINK))
            ip(
                "link set g0 up",
                f"addr add {OWN4}/24 dev g0",
                f"addr add {OWN6}/64 dev g0 nodad",
                f"addr add {LOCAL6}/64 dev g0 nodad",
                f"route add default via {GATEWAY4}",
                f"route add default via {GATEWAY6}",
            )
            run_self_test(LINK, self.nft)
            self.sender = Sender()
        self.remaining()

    def arrived(self) -> list[bytes]:
        """Return the frames from the guarded device since the last call, without those of the hosts outside."""
        frames: list[bytes] = []
        while True:
            try:
                frame, origin = self.tap.recvfrom(1 << 16)
            except BlockingIOError:
                return frames
            if origin[2] != socket.PACKET_OUTGOING:
                frames.append(frame)

    def remaining(self) -> list[bytes]:
        """Return the frames as `arrived` does, but wait until no more arrive."""
        frames, still = self.arrived(), 0
        while still < 5:
            time.sleep(0.02)
            more = self.arrived()
            still = 0 if more else still + 1
            frames += more
        return frames

    def close(self) -> None:
        self.sender.close()
        self.tap.close()
        self.nft.close()
        os.close(self.inside.descriptor)
        os.close(self.outside.descriptor)


def quiet(name: str) -> None:
    for key, value in (("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0"), ("addr_gen_mode", "1")):
        Path(f"/proc/sys/net/ipv6/conf/{name}/{key}").write_text(value)


def remove_guard(nft: Nft) -> None:
    """Remove the rules. Then the same frames must arrive, which shows that a test can fail."""
    nft.run("delete table netdev mcp_scope")


def fault_of(frame: bytes) -> str:
    """Return why a frame must not be on the link; empty if it may."""
    if len(frame) < 34 or frame[6:12] != MAC:
        return "too short, or a foreign hardware address"
    kind = int.from_bytes(frame[12:14], "big")
    reader = {ARP: _arp_fault, IPV4: _ipv4_fault, IPV6: _ipv6_fault}.get(kind)
    return reader(frame) if reader else f"EtherType {kind:#06x}"


def _arp_fault(frame: bytes) -> str:
    fields = struct.unpack_from(">HHBBH6s4s6s4s", frame, 14)
    if fields[:4] != (1, IPV4, 6, 4) or fields[4] not in {1, 2} or len(frame) > 60:
        return "not an ARP request or reply"
    if fields[5] != MAC or fields[6] != IPv4Address(OWN4).packed:
        return "ARP with a foreign sender"
    wanted = IPv4Address(fields[8])
    return "" if _scoped4(wanted) or str(wanted) in {GATEWAY4, RESOLVER4} else f"ARP for {wanted}"


def _scoped4(address: IPv4Address) -> bool:
    return address in _ALLOW4 and str(address) != EXCLUDED4


def _scoped6(address: IPv6Address) -> bool:
    return address in _ALLOW6 and str(address) != EXCLUDED6


def _ipv4_fault(frame: bytes) -> str:
    source, target = IPv4Address(frame[26:30]), IPv4Address(frame[30:34])
    if frame[14] != 0x45 or str(source) != OWN4 or frame[23] not in {1, 6, 17}:
        return f"IPv4 {frame[14]:#x} from {source} of protocol {frame[23]}"
    if frame[0] & 1:
        return "IPv4 to a multicast MAC"
    flags = int.from_bytes(frame[20:22], "big")
    if frame[23] == 1 and not flags & 0x1FFF and frame[34:35] in {b"\x05", b"\x09", b"\x0a"}:
        return "a message that changes routes"
    if str(target) == RESOLVER4 and frame[23] in {6, 17} and not flags & 0x3FFF and frame[36:38] == b"\0\x35":
        return ""
    return "" if _scoped4(target) else f"IPv4 to {target}"


def _ipv6_fault(frame: bytes) -> str:
    if len(frame) < 54:
        return "a truncated IPv6 header"
    source, target, following = IPv6Address(frame[22:38]), IPv6Address(frame[38:54]), frame[20]
    if frame[14] >> 4 != 6 or str(source) not in {OWN6, LOCAL6}:
        return f"IPv6 from {source}"
    if following == 58 and frame[54] in {133, 134, 135, 136, 137}:
        return _neighbor_fault(frame, target)
    if frame[0] & 1:
        return "IPv6 to a multicast MAC"
    if following not in {6, 17, 58, 44} or (following == 44 and frame[54] not in {6, 17, 58}):
        return f"IPv6 with header {following}"
    dns = str(target) == RESOLVER6 and following in {6, 17} and frame[56:58] == b"\0\x35"
    return "" if dns or _scoped6(target) else f"IPv6 to {target}"


def _neighbor_fault(frame: bytes, target: IPv6Address) -> str:
    if frame[54] not in {135, 136}:
        return "a message that changes routes"
    if bool(frame[0] & 1) != (target in _SOLICITED) or frame[55] or frame[18:20] not in {b"\0\x18", b"\0\x20"}:
        return "invalid neighbor discovery"
    if frame[21] != 255 or frame[80:86] not in {b"", MAC}:
        return "neighbor discovery with a foreign sender"
    wanted = IPv6Address(frame[62:78])
    known = _scoped6(target) or str(target) in {GATEWAY6, RESOLVER6}
    if frame[54] == 136:
        return "" if known and str(wanted) in {OWN6, LOCAL6} else f"advertisement of {wanted} to {target}"
    wanted_known = _scoped6(wanted) or str(wanted) in {GATEWAY6, RESOLVER6}
    return "" if wanted_known and (known or target in _SOLICITED) else f"solicitation of {wanted} to {target}"


def send_vnet(frame: bytes, start: int, offset: int, *, gso: tuple[int, int, int] = (0, 0, 0)) -> None:
    """Send a frame and have the kernel write its checksum; ``gso`` is type, header length and segment size."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.setsockopt(SOL_PACKET, VNET_HDR, 1)
        sender.bind(("g0", IPV4))
        kind, head, size = gso
        sender.send(struct.pack("=BBHHHH", 1, kind, head, size, start, offset) + frame)


def resolve_checksums(device: str) -> None:
    """Have the kernel write checksums before a frame leaves the device (ETHTOOL_STXCSUM)."""
    command = array.array("B", struct.pack("=II", 0x17, 0))
    with socket.socket() as query:
        fcntl.ioctl(query, 0x8946, struct.pack("16sQ", device.encode(), command.buffer_info()[0]) + bytes(16))


def send_ring(frame: bytes) -> None:
    """Send a frame from a ring buffer that the sender shares with the kernel."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.setsockopt(SOL_PACKET, TX_RING, struct.pack("=IIII", 4096, 1, 2048, 2))
        sender.bind(("g0", IPV4))
        with mmap.mmap(sender.fileno(), 4096) as ring:
            ring[32 : 32 + len(frame)] = frame
            struct.pack_into("LII", ring, 0, 1, len(frame), 0)
            sender.send(b"")


def send_xdp(frame: bytes) -> None:
    """Send a frame through an AF_XDP socket in copy mode."""
    umem = mmap.mmap(-1, 1 << 16)
    address = ctypes.addressof(ctypes.c_char.from_buffer(umem))
    umem[: len(frame)] = frame
    _libc.mmap.restype = ctypes.c_void_p
    _libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    with socket.socket(AF_XDP, socket.SOCK_RAW, 0) as sender:
        sender.setsockopt(SOL_XDP, 4, struct.pack("=QQIIII", address, 1 << 16, 4096, 0, 0, 0))
        for ring in (5, 6, 3):  # fill, completion, TX
            sender.setsockopt(SOL_XDP, ring, struct.pack("=I", 16))
        offsets = struct.unpack("=16Q", sender.getsockopt(SOL_XDP, 1, 128))
        producer, descriptors = offsets[4], offsets[6]
        mapped = _libc.mmap(None, descriptors + 256, 3, 0x8001, sender.fileno(), 0x80000000)
        address_of_device = struct.pack("=HHIII", AF_XDP, 2, socket.if_nametoindex("g0"), 0, 0)
        if _libc.bind(sender.fileno(), address_of_device, len(address_of_device)):
            raise OSError(ctypes.get_errno(), "bind")
        ctypes.memmove(mapped + descriptors, struct.pack("=QII", 0, len(frame), 0), 16)
        ctypes.c_uint32.from_address(mapped + producer).value = 1
        _libc.sendto(sender.fileno(), None, 0, socket.MSG_DONTWAIT, None, 0)
