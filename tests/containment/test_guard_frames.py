"""Whoever has a raw socket inside the guard tries everything a frame can be; what comes out is judged on the wire."""

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

from mcp_server.netguard.filter import confine
from mcp_server.netguard.rules import update
from mcp_server.scope.guard_sets import GuardSets
from tests.containment import frames, guard_stage
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
from tests.containment.guard_stage import LINK, SETS, Stage, ip, judge, send_ring, send_vnet, send_xdp, unguard

# What a sender may say its frame is, whatever stands in it: the kernel takes the word of a packet socket.
CLAIMS = (0, IPV4, IPV6, ARP, 0x0001, 0x0003, 0x0004, 0x8100, 0x88A8, 0x6558, 0x8847, 0x8863)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


def emit(stage: Stage, sends: Iterable[Callable[[], None]]) -> list[bytes]:
    """What came out; a drop is told to some senders as an error."""
    heard = []
    with stage.inside.inside():
        for send in sends:
            with suppress(OSError):
                send()
            heard += stage.heard()
    return heard + stage.settled()


def escapes(heard: list[bytes]) -> list[str]:
    return [f"{judge(frame)}: {frame.hex()}" for frame in heard if judge(frame)]


def in_every_way(stage: Stage, all_frames: Iterable[bytes]) -> list[Callable[[], None]]:
    return [
        partial(stage.sender.send, frame, claimed=claim, bypass=bypass)
        for frame in all_frames
        for claim in CLAIMS
        for bypass in (False, True)
    ]


def test_no_frame_outside_the_scope_leaves_whatever_it_is_said_to_be(stage: Stage) -> None:
    forbidden, allowed = forbidden_frames(), allowed_frames()
    attacks = in_every_way(stage, forbidden.values())
    assert len(attacks) > 2500
    before = stage.nft.read()

    assert emit(stage, attacks) == []

    after = stage.nft.read()
    # A few are what kernels send unasked, or too odd for a packet socket; the counters saw the others.
    assert after.dropped - before.dropped > 0.9 * len(attacks)
    assert after.passed == before.passed
    arrived = Counter(emit(stage, in_every_way(stage, allowed.values())))
    # Past the queue the kernel marks where a frame begins only for one without a claim (0, ETH_P_ALL); what is not
    # marked cannot be read, and is dropped.
    assert {name: arrived[frame] for name, frame in allowed.items()} == dict.fromkeys(allowed, len(CLAIMS) + 2)
    assert escapes(list(arrived)) == []

    unguard(stage.nft)
    loose = emit(stage, in_every_way(stage, forbidden.values()))
    # A receiver takes a VLAN tag out of the frame.
    tails = {name: frame[18:] if "VLAN" in name or name == "QinQ" else frame for name, frame in forbidden.items()}
    blind = {name for name, tail in tails.items() if not any(frame.endswith(tail) for frame in loose)}
    assert blind == set()


def test_frames_whose_head_the_kernel_makes(stage: Stage) -> None:
    near = ipv4(INSIDE4, udp())
    sends = [
        partial(stage.sender.send_cooked, content, claim, to)
        for content in (near, ipv4(OUTSIDE4, udp()), ipv6(OUTSIDE6, udp()), frames.arp(OUTSIDE4))
        for claim in CLAIMS
        for to in (frames.HOST_MAC, frames.EVERYONE, b"", b"\1\2")
    ]
    heard = emit(stage, sends)
    assert escapes(heard) == []
    assert ethernet(IPV4, near) in heard
    unguard(stage.nft)
    assert len(escapes(emit(stage, sends))) > len(sends) // 2


def kernel_senders() -> dict[str, Callable[[], None]]:  # noqa: C901 - one small function for each kind of socket
    """Sockets of the internet families: what they send goes through routing and neighbour lookup."""

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
        "own header, another's source": lambda: own_header(ipv4(INSIDE4, udp(), source="10.77.1.9"), INSIDE4),
        "own header 6": lambda: own_header6(ipv6(OUTSIDE6, udp()), INSIDE6),
        "transparent": lambda: spoofed("10.77.1.9", INSIDE4),
        "source route": lambda: routed(INSIDE4, route),
        "SCTP": lambda: protocol(132, INSIDE4),
        "GRE": lambda: protocol(47, INSIDE4),
        "every protocol": every_protocol,
        "group": lambda: joined("239.77.1.9"),
    }


def test_what_sockets_send_through_the_kernel(stage: Stage) -> None:
    assert escapes(emit(stage, kernel_senders().values())) == []
    unguard(stage.nft)
    with stage.inside.inside():
        ip("neigh flush dev g0")  # a neighbour that is being looked for is not looked for again
    seen = {name for name, send in kernel_senders().items() if escapes(emit(stage, [send]))}
    assert set(kernel_senders()) - seen == set(), "the tap is blind to these"


def test_tools_inside_the_scope_work(stage: Stage) -> None:
    """Real neighbours, real connections, and nothing counted against anybody."""
    with stage.outside.inside():
        listeners = [
            socket.create_server((INSIDE4, 8080)),
            socket.create_server((INSIDE6, 8080), family=socket.AF_INET6),
        ]
    with stage.inside.inside():
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
    assert escapes(stage.settled()) == []
    assert {name: n for name, n in stage.nft.read().drops.items() if n} == proof_drops()


def proof_drops() -> dict[str, int]:
    """What the canary itself had dropped."""
    return {"target4": 2, "excluded4": 1, "arp_target": 1, "target6": 1, "excluded6": 1}


def test_nobody_outside_the_scope_gets_an_answer(stage: Stage) -> None:
    """A kernel that answers a stranger would send out of the scope, and count as a tool's attempt."""
    before = stage.nft.read()
    unknown_caller = bytes.fromhex("024d000000ee")

    def receive(frame: bytes) -> list[bytes]:
        with stage.outside.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.sendto(frame, ("p0", 0))
        return stage.settled()

    def to_us(kind: int, content: bytes, to: bytes = frames.MAC) -> bytes:
        return ethernet(kind, content, to=to, source=unknown_caller)

    asking = to_us(ARP, frames.arp(OWN4, sender="10.77.1.77", mac=unknown_caller), frames.EVERYONE)
    failed_authentications = {
        "SYN": to_us(IPV4, ipv4(OWN4, frames.tcp(), source=OUTSIDE4, protocol=6)),
        "datagram": to_us(IPV4, ipv4(OWN4, udp(), source=OUTSIDE4)),
        "ping": to_us(IPV4, ipv4(OWN4, frames.icmp(), source=OUTSIDE4, protocol=1)),
        "excluded": to_us(IPV4, ipv4(OWN4, frames.icmp(), source=EXCLUDED4, protocol=1)),
        "resolver's ping": to_us(IPV4, ipv4(OWN4, frames.icmp(), source=frames.RESOLVER4, protocol=1)),
        "ARP": asking,
        "SYN 6": to_us(IPV6, ipv6(OWN6, frames.tcp(), source=OUTSIDE6, following=6)),
        "MLD query": to_us(
            IPV6,
            ipv6(
                "ff02::1", b"\x3a\0\5\2\0\0\1\0" + frames.icmp(130) + bytes(20), source="fe80::bad", following=0, hops=1
            ),
            bytes.fromhex("333300000001"),
        ),
    }
    assert {name: receive(frame) for name, frame in failed_authentications.items()} == {
        name: [] for name in failed_authentications
    }
    assert stage.nft.read().drops == before.drops

    # A router speaks by its link-local address, which no policy names: it is answered, for a while.
    local = "fe80::4d:a"
    question = frames.neighbour(135, OWN6, mac=unknown_caller)
    question = ipv6(
        OWN6, question[:2] + icmp6_sum(local, OWN6, question) + question[4:], source=local, following=58, hops=255
    )
    answers = receive(to_us(IPV6, question))
    assert [frame[54] for frame in answers if frame[12:14] == b"\x86\xdd"] == [136]
    assert stage.nft.read().drops == before.drops


def icmp6_sum(source: str, target: str, body: bytes) -> bytes:
    pseudo = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    return frames.checksum(pseudo + struct.pack(">II", len(body), 58) + body[:2] + b"\0\0" + body[4:]).to_bytes(
        2, "big"
    )


def beyond_the_hook() -> dict[str, Callable[[], None]]:
    far, near = ethernet(IPV4, ipv4(OUTSIDE4, udp())), ethernet(IPV4, ipv4(INSIDE4, bytes(10)))
    moved, start, offset = frames.misdirected(near, bytes([10, 99]))
    return {
        "AF_XDP": lambda: send_xdp(far),
        "checksum over the target": lambda: send_vnet(moved, start, offset),
        "shared ring": lambda: send_ring(far),
    }


@pytest.mark.parametrize("name", list(beyond_the_hook()))
def test_the_ways_past_the_hook_are_closed_by_the_filter(stage: Stage, name: str) -> None:
    """Each of them works without the guard, and cannot be begun by a process that is confined."""
    with stage.inside.inside():
        guard_stage.resolve_checksums("g0")
    send = beyond_the_hook()[name]

    def attempt(*, confined: bool) -> int:
        child = os.fork()
        if child == 0:
            status = 70
            try:
                assert guard_stage._libc.setns(stage.inside.descriptor, guard_stage.CLONE_NEWNET) == 0
                if confined:
                    confine()
                send()
                status = 0
            except PermissionError:
                status = 13
            except OSError as error:
                status = 100 + (error.errno or 0) % 100
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert attempt(confined=True) == 13
    assert stage.settled() == []
    unguard(stage.nft)
    assert attempt(confined=False) == 0
    assert escapes(stage.settled()), "the way does not work even without a guard"


def test_a_swap_of_the_sets_leaks_nothing_and_holds_nothing_back(stage: Stage) -> None:
    """Two policies in turn, under a flood: what both allow always passes, what neither allows never does."""
    other = GuardSets(
        allow4=(IPv4Network("10.77.1.0/28"), IPv4Network("10.77.2.0/24")),
        exclude4=(IPv4Network(f"{OUTSIDE4}/32"), IPv4Network("10.77.1.5")),
        resolvers=SETS.resolvers,
    )
    near, far = ethernet(IPV4, ipv4(INSIDE4, udp())), ethernet(IPV4, ipv4(OUTSIDE4, udp()))
    stop = threading.Event()
    sent = {"near": 0, "far": 0}
    refused: list[OSError] = []

    def flood() -> None:
        with stage.inside.inside():
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
    thread = threading.Thread(target=flood)
    thread.start()
    arrived = {near: 0}
    swaps, deadline = 0, time.monotonic() + 4
    try:
        while time.monotonic() < deadline:
            stage.nft.run(update(other if swaps % 2 == 0 else SETS, LINK))
            swaps += 1
            for frame in stage.heard():
                arrived[frame] = arrived.get(frame, 0) + 1
    finally:
        stop.set()
        thread.join()
    for frame in stage.settled():
        arrived[frame] = arrived.get(frame, 0) + 1
    assert swaps > 50
    assert sent["far"] > 5000
    assert refused == []
    assert escapes(list(arrived)) == []
    assert arrived[near] == sent["near"]
