"""A process with a raw socket sends every kind of frame through the guard; each frame that leaves is checked."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Network

import pytest

from mcp_server.netguard.ruleset import update
from mcp_server.netguard.syscall_filter import restrict_raw_sockets
from mcp_server.scope.guard_sets import GuardSets
from tests.containment import frames, guarded_link
from tests.containment.frames import (
    ARP,
    EXCLUDED4,
    INSIDE4,
    INSIDE6,
    IPV4,
    IPV6,
    OUTSIDE4,
    OUTSIDE6,
    OWN4,
    OWN6,
    allowed_frames,
    ethernet,
    forbidden_frames,
    ipv4,
    ipv6,
    udp,
)
from tests.containment.guarded_link import (
    LINK,
    SETS,
    GuardedLink,
    fault_of,
    ip,
    remove_guard,
    send_ring,
    send_vnet,
    send_xdp,
)

# Protocols that a packet socket can claim. The kernel believes it, whatever the frame contains.
CLAIMS = (0, IPV4, IPV6, ARP, 0x0001, 0x0003, 0x0004, 0x8100, 0x88A8, 0x6558, 0x8847, 0x8863)


@pytest.fixture
def guarded() -> Iterator[GuardedLink]:
    made = GuardedLink()
    yield made
    made.close()


def emit(guarded: GuardedLink, sends: Iterable[Callable[[], None]]) -> list[bytes]:
    """Send frames and return those that left the guarded device. Some senders get an error for a dropped frame."""
    arrived_frames = []
    with guarded.inside.inside():
        for send in sends:
            with suppress(OSError):
                send()
            arrived_frames += guarded.arrived()
    return arrived_frames + guarded.remaining()


def escapes(arrived_frames: list[bytes]) -> list[str]:
    return [f"{fault_of(frame)}: {frame.hex()}" for frame in arrived_frames if fault_of(frame)]


def in_every_way(guarded: GuardedLink, all_frames: Iterable[bytes]) -> list[Callable[[], None]]:
    return [
        partial(guarded.sender.send, frame, claimed=claim, bypass=bypass)
        for frame in all_frames
        for claim in CLAIMS
        for bypass in (False, True)
    ]


def test_no_frame_outside_the_scope_leaves_whatever_protocol_it_claims(guarded: GuardedLink) -> None:
    forbidden, allowed = forbidden_frames(), allowed_frames()
    attacks = in_every_way(guarded, forbidden.values())
    assert len(attacks) > 2500
    before = guarded.nft.read()

    assert emit(guarded, attacks) == []

    after = guarded.nft.read()
    # Not every frame is counted as dropped: some count as frames of the kernel, and the packet socket refuses a few.
    dropped = after.dropped - before.dropped
    assert dropped > 0.9 * len(attacks), f"expected nearly {len(attacks)} drops, found {dropped}"
    assert after.passed == before.passed
    arrived = Counter(emit(guarded, in_every_way(guarded, allowed.values())))
    # If a frame bypasses the queue, the kernel records its start only for the protocols 0 and ETH_P_ALL. Without that,
    # the ruleset cannot read the frame and drops it.
    assert {name: arrived[frame] for name, frame in allowed.items()} == dict.fromkeys(allowed, len(CLAIMS) + 2)
    assert escapes(list(arrived)) == []

    remove_guard(guarded.nft)
    loose = emit(guarded, in_every_way(guarded, forbidden.values()))
    # The receiving kernel removes VLAN tags from a frame.
    tails = {name: frame[18:] if "VLAN" in name or name == "QinQ" else frame for name, frame in forbidden.items()}
    unseen = {name for name, tail in tails.items() if not any(frame.endswith(tail) for frame in loose)}
    assert unseen == set(), f"expected all frames to arrive without the guard, found none of {unseen}"


def test_packets_with_a_link_header_from_the_kernel_stay_in_scope(guarded: GuardedLink) -> None:
    near = ipv4(INSIDE4, udp())
    sends = [
        partial(guarded.sender.send_cooked, content, claim, to)
        for content in (near, ipv4(OUTSIDE4, udp()), ipv6(OUTSIDE6, udp()), frames.arp(OUTSIDE4))
        for claim in CLAIMS
        for to in (frames.HOST_MAC, frames.EVERYONE, b"", b"\1\2")
    ]
    arrived_frames = emit(guarded, sends)
    assert escapes(arrived_frames) == []
    assert ethernet(IPV4, near) in arrived_frames
    remove_guard(guarded.nft)
    assert len(escapes(emit(guarded, sends))) > len(sends) // 2


def kernel_senders() -> dict[str, Callable[[], None]]:  # noqa: C901 - one small function for each kind of socket
    """Return functions that send through ordinary and raw IP sockets, so that the kernel routes the packets."""

    def datagram(target: str, family: int = socket.AF_INET, **options: int) -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            for size in (8, 4000):
                sender.sendto(bytes(size), (target, 9))

    def own_header(packet: bytes, target: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
            sender.sendto(packet, (target, 0))

    def own_header6(packet: bytes, target: str) -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
            sender.sendto(packet, (target, 0, 0, 0))

    def spoofed(source: str, target: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
            sender.bind((source, 0))
            sender.sendto(b"frames", (target, 9))

    def routed(target: str, options: bytes) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_IP, socket.IP_OPTIONS, options)
            sender.sendto(b"frames", (target, 9))

    def protocol(number: int, target: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, number) as sender:
            sender.sendto(bytes(16), (target, 0))

    def every_protocol() -> None:
        for number in set(range(2, 255)) - {6, 17}:
            protocol(number, INSIDE4)

    def joined(group: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as member:
            member.setsockopt(socket.SOL_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + socket.inet_aton(OWN4))
            time.sleep(0.05)

    route = bytes([0x83, 7, 4]) + socket.inet_aton(OUTSIDE4) + b"\0"
    return {
        "datagram on the link": lambda: datagram("10.77.1.77"),
        "datagram by the gateway": lambda: datagram(OUTSIDE4),
        "datagram to an excluded": lambda: datagram(EXCLUDED4),
        "broadcast": lambda: datagram("255.255.255.255"),
        "subnet broadcast": lambda: datagram("10.77.1.255"),
        "multicast": lambda: datagram("239.77.1.9"),
        "datagram 6": lambda: datagram(OUTSIDE6, socket.AF_INET6),
        "datagram 6 on the link": lambda: datagram("fd77:1::7:7", socket.AF_INET6),
        "multicast 6": lambda: datagram("ff02::1%g0", socket.AF_INET6),
        "own header": lambda: own_header(ipv4(OUTSIDE4, udp()), OUTSIDE4),
        "own header, routed by another address": lambda: own_header(ipv4(OUTSIDE4, udp()), INSIDE4),
        "own header, foreign source": lambda: own_header(ipv4(INSIDE4, udp(), source="10.77.1.9"), INSIDE4),
        "own header 6": lambda: own_header6(ipv6(OUTSIDE6, udp()), INSIDE6),
        "transparent": lambda: spoofed("10.77.1.9", INSIDE4),
        "source route": lambda: routed(INSIDE4, route),
        "SCTP": lambda: protocol(132, INSIDE4),
        "GRE": lambda: protocol(47, INSIDE4),
        "every protocol": every_protocol,
        "group": lambda: joined("239.77.1.9"),
    }


def test_packets_of_ip_sockets_stay_in_scope(guarded: GuardedLink) -> None:
    assert escapes(emit(guarded, kernel_senders().values())) == []
    remove_guard(guarded.nft)
    with guarded.inside.inside():
        ip("neigh flush dev g0")  # the kernel does not repeat a lookup that is in progress
    seen = {name for name, send in kernel_senders().items() if escapes(emit(guarded, [send]))}
    unseen = set(kernel_senders()) - seen
    assert unseen == set(), f"expected all packets to arrive without the guard, found none of {unseen}"


def test_scans_and_connections_in_scope_work(guarded: GuardedLink) -> None:
    """Neighbor discovery, connections and scans work, and nothing is counted as dropped."""
    with guarded.outside.inside():
        listeners = [
            socket.create_server((INSIDE4, 8080)),
            socket.create_server((INSIDE6, 8080), family=socket.AF_INET6),
        ]
    with guarded.inside.inside():
        for address in (INSIDE4, INSIDE6):
            socket.create_connection((address, 8080), timeout=3).close()
        scan = ["nmap", "-n", "-sS", "-p", "8080,8081", INSIDE4]
        done = subprocess.run(scan, capture_output=True, text=True, check=True, timeout=60)
        scan6 = subprocess.run([*scan[:-1], "-6", INSIDE6], capture_output=True, text=True, check=True, timeout=60)
    for listener in listeners:
        listener.close()
    assert "8080/tcp open" in done.stdout
    assert "8081/tcp closed" in done.stdout
    assert "8080/tcp open" in scan6.stdout
    assert f"MAC Address: {frames.text(frames.HOST_MAC).upper()}" in done.stdout
    assert escapes(guarded.remaining()) == []
    assert {name: n for name, n in guarded.nft.read().drops.items() if n} == self_test_drops()


def self_test_drops() -> dict[str, int]:
    """The drops that the self-test caused."""
    return {"target4": 2, "excluded4": 1, "arp_target": 1, "target6": 1, "excluded6": 1}


def test_the_kernel_answers_no_host_outside_the_scope(guarded: GuardedLink) -> None:
    """An answer would leave the scope and would be counted as a tool's frame."""
    before = guarded.nft.read()
    foreign_mac = bytes.fromhex("024d000000ee")

    def receive(frame: bytes) -> list[bytes]:
        with guarded.outside.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.sendto(frame, ("p0", 0))
        return guarded.remaining()

    def to_guarded(kind: int, content: bytes, to: bytes = frames.MAC) -> bytes:
        return ethernet(kind, content, to=to, source=foreign_mac)

    request = to_guarded(ARP, frames.arp(OWN4, sender="10.77.1.77", mac=foreign_mac), frames.EVERYONE)
    received_frames = {
        "SYN": to_guarded(IPV4, ipv4(OWN4, frames.tcp(), source=OUTSIDE4, protocol=6)),
        "datagram": to_guarded(IPV4, ipv4(OWN4, udp(), source=OUTSIDE4)),
        "ping": to_guarded(IPV4, ipv4(OWN4, frames.icmp(), source=OUTSIDE4, protocol=1)),
        "excluded": to_guarded(IPV4, ipv4(OWN4, frames.icmp(), source=EXCLUDED4, protocol=1)),
        "resolver's ping": to_guarded(IPV4, ipv4(OWN4, frames.icmp(), source=frames.RESOLVER4, protocol=1)),
        "ARP": request,
        "SYN 6": to_guarded(IPV6, ipv6(OWN6, frames.tcp(), source=OUTSIDE6, following=6)),
        "MLD query": to_guarded(
            IPV6,
            ipv6(
                "ff02::1", b"\x3a\0\5\2\0\0\1\0" + frames.icmp(130) + bytes(20), source="fe80::bad", following=0, hops=1
            ),
            bytes.fromhex("333300000001"),
        ),
    }
    assert {name: receive(frame) for name, frame in received_frames.items()} == {name: [] for name in received_frames}
    assert guarded.nft.read().drops == before.drops

    # A router uses its link-local address, which no policy contains. Its solicitations are answered.
    local = "fe80::4d:a"
    solicitation = frames.neighbor(135, OWN6, mac=foreign_mac)
    solicitation = ipv6(
        OWN6,
        solicitation[:2] + icmp6_sum(local, OWN6, solicitation) + solicitation[4:],
        source=local,
        following=58,
        hops=255,
    )
    answers = receive(to_guarded(IPV6, solicitation))
    assert [frame[54] for frame in answers if frame[12:14] == b"\x86\xdd"] == [136]
    assert guarded.nft.read().drops == before.drops


def icmp6_sum(source: str, target: str, body: bytes) -> bytes:
    pseudo = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    return frames.checksum(pseudo + struct.pack(">II", len(body), 58) + body[:2] + b"\0\0" + body[4:]).to_bytes(
        2, "big"
    )


def senders_that_bypass_the_hook() -> dict[str, Callable[[], None]]:
    far, near = ethernet(IPV4, ipv4(OUTSIDE4, udp())), ethernet(IPV4, ipv4(INSIDE4, bytes(10)))
    moved, start, offset = frames.misdirected(near, bytes([10, 99]))
    return {
        "AF_XDP": lambda: send_xdp(far),
        "checksum over the target": lambda: send_vnet(moved, start, offset),
        "shared ring": lambda: send_ring(far),
    }


@pytest.mark.parametrize("name", list(senders_that_bypass_the_hook()))
def test_the_system_call_filter_refuses_sockets_that_bypass_the_hook(guarded: GuardedLink, name: str) -> None:
    """Each sender works without guard and filter. With the filter, its socket cannot be opened."""
    with guarded.inside.inside():
        guarded_link.resolve_checksums("g0")
    send = senders_that_bypass_the_hook()[name]

    def attempt(*, filtered: bool) -> int:
        child = os.fork()
        if child == 0:
            status = 70
            try:
                assert guarded_link._libc.setns(guarded.inside.descriptor, guarded_link.CLONE_NEWNET) == 0
                if filtered:
                    restrict_raw_sockets()
                send()
                status = 0
            except PermissionError:
                status = 13
            except OSError as error:
                status = 100 + (error.errno or 0) % 100
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert attempt(filtered=True) == 13
    assert guarded.remaining() == []
    remove_guard(guarded.nft)
    assert attempt(filtered=False) == 0
    assert escapes(guarded.remaining()), "expected the frame to arrive without the guard, found none"


def test_updating_the_sets_under_load_leaks_and_delays_no_frame(guarded: GuardedLink) -> None:
    """Two policies are loaded in turn. Frames that both allow always pass, and frames that neither allows never do."""
    other = GuardSets(
        allow4=(IPv4Network("10.77.1.0/28"), IPv4Network("10.77.2.0/24")),
        exclude4=(IPv4Network(f"{OUTSIDE4}/32"), IPv4Network("10.77.1.5")),
        resolvers=SETS.resolvers,
    )
    near, far = ethernet(IPV4, ipv4(INSIDE4, udp())), ethernet(IPV4, ipv4(OUTSIDE4, udp()))
    stop = threading.Event()
    sent = {"near": 0, "far": 0}
    refused: list[OSError] = []

    def send_all_the_time() -> None:
        with guarded.inside.inside():
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        with sender:
            sender.bind((device, IPV4))
            while not stop.is_set():
                for _ in range(50):
                    try:
                        sender.send(near)
                        sent["near"] += 1
                    except OSError as error:
                        refused.append(error)
                    with suppress(OSError):
                        sender.send(far)
                    sent["far"] += 1

    device = LINK.device
    thread = threading.Thread(target=send_all_the_time)
    thread.start()
    arrived = {near: 0}
    updates, deadline = 0, time.monotonic() + 4
    try:
        while time.monotonic() < deadline:
            guarded.nft.run(update(other if updates % 2 == 0 else SETS))
            updates += 1
            for frame in guarded.arrived():
                arrived[frame] = arrived.get(frame, 0) + 1
    finally:
        stop.set()
        thread.join()
    for frame in guarded.remaining():
        arrived[frame] = arrived.get(frame, 0) + 1
    assert updates > 50
    assert sent["far"] > 5000
    assert refused == []
    assert escapes(list(arrived)) == []
    assert arrived[near] == sent["near"]
