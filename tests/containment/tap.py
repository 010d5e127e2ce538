"""A tap on the lab's wire, which checks the bytes of every frame that a device receives.

This is a program for the router's namespace: ``tap.py SETTINGS DEVICE...``, with SETTINGS as JSON
(`lab_scope.settings`). It prints "ready", and then one line of JSON for each line of standard input: ``read`` returns
what was seen since the last ``reset``. It imports nothing from the project, so that the guard is checked by independent
code.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

_ETH_ALL = 3
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_AUXDATA, _PACKET_IGNORE_OUTGOING = 263, 6, 8, 23
_SO_RCVBUFFORCE = 33
_TP_STATUS_VLAN_VALID = 1 << 4
_SAMPLES = 12
_ICMPV6, _NS, _NA, _RS, _MLD2 = 58, 135, 136, 133, 143
_UPPER = {1: "icmp", 6: "tcp", 17: "udp", _ICMPV6: "icmp6"}
_SOURCE_ROUTES = {131: "lsrr", 137: "ssrr"}


@dataclass
class FrameChecker:
    """Decides whether a frame is allowed, and returns its kind or its fault."""

    settings: dict[str, Any]
    _cache: dict[bytes, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.allowed = [ip_network(text) for text in self.settings["allowed"]]
        self.excluded = [ip_network(text) for text in self.settings["excluded"]]
        self.macs = {bytes.fromhex(text.replace(":", "")) for text in self.settings["host_macs"]}
        self.own, self.gateways, self.resolvers = (
            {ip_address(text).packed for text in self.settings[key]} for key in ("own", "gateways", "resolvers")
        )

    def inside(self, packed: bytes) -> bool:
        """Whether an address is in scope."""
        if packed not in self._cache:
            address = ip_address(packed)
            self._cache[packed] = any(address in net for net in self.allowed) and not any(
                address in net for net in self.excluded
            )
        return self._cache[packed]

    def neighbor(self, packed: bytes) -> bool:
        """Whether ARP or neighbor discovery may ask for an address."""
        return self.inside(packed) or packed in self.gateways or packed in self.resolvers

    def __call__(self, frame: bytes, *, tagged: bool = False) -> tuple[bool, str]:
        """Return whether the frame is allowed, and its kind or its fault."""
        kind = int.from_bytes(frame[12:14])
        if tagged or kind in {0x8100, 0x88A8}:
            return False, "vlan tag"
        try:
            if kind == 0x0806:
                return self._arp(frame[14:])
            if kind == 0x0800:
                return self._ipv4(frame[14:])
            if kind == 0x86DD:
                return self._ipv6(frame[14:], by_host=frame[6:12] in self.macs)
        except (IndexError, struct.error, ValueError):
            return False, f"broken frame of type 0x{kind:04x}"
        return False, f"ethertype 0x{kind:04x}"

    def _arp(self, body: bytes) -> tuple[bool, str]:
        operation, sender, target = int.from_bytes(body[6:8]), body[14:18], body[24:28]
        if body[:6] != bytes((0, 1, 8, 0, 6, 4)) or operation not in {1, 2} or len(target) != 4:
            return False, "invalid arp"
        if sender not in self.own:
            return False, f"arp from {_text(sender)} (not our address)"
        if not self.neighbor(target) and target not in self.own:
            return False, f"arp for {_text(target)}"
        return True, "arp" if self.inside(target) else "arp-link"

    def _ipv4(self, body: bytes) -> tuple[bool, str]:
        length, protocol, source, target = (body[0] & 15) * 4, body[9], body[12:16], body[16:20]
        if body[0] >> 4 != 4 or length < 20 or len(target) != 4:
            return False, "invalid ipv4"
        for option in _options(body[20:length]):
            if option in _SOURCE_ROUTES:
                return False, f"{_SOURCE_ROUTES[option]} to {_text(target)}"
        fragment = int.from_bytes(body[6:8]) & 0x1FFF
        return self._packet(source, target, protocol, b"" if fragment else body[length:])

    def _ipv6(self, body: bytes, *, by_host: bool) -> tuple[bool, str]:
        following, source, target, rest = body[6], body[8:24], body[24:40], body[40:]
        if body[0] >> 4 != 6 or len(target) != 16:
            return False, "invalid ipv6"
        while following in {0, 43, 44, 60}:
            if following == 43:
                return False, f"routing header to {_text(target)}"
            size = 8 if following == 44 else (rest[1] + 1) * 8
            first = following != 44 or not int.from_bytes(rest[2:4]) >> 3
            following, rest = rest[0], rest[size:]
            if not first:
                rest = b""
                break
        verdict = self._neighbors(source, target, rest, by_host=by_host) if following == _ICMPV6 and rest else None
        return verdict or self._packet(source, target, following, rest)

    def _neighbors(self, source: bytes, target: bytes, message: bytes, *, by_host: bool) -> tuple[bool, str] | None:
        """Check a message of neighbor discovery (RFC 4861). Return None for every other message."""
        if source not in self.own and not _link_local(source) and any(source):
            return None
        kind, subject = message[0], message[8:24]
        if kind == _NS:
            if by_host and _link_local(subject):
                return True, "kernel"  # the host's kernel updates its neighbor table
            return self.neighbor(subject) or subject in self.own, f"nd for {_text(subject)}"
        if kind == _NA and (subject in self.own or _link_local(subject)):
            # An answer goes to the sender of the solicitation, which can be a link-local address.
            return self.neighbor(target) or _link_local(target), f"nd answer to {_text(target)}"
        if by_host and kind in {_RS, _MLD2} and target[:2] == b"\xff\x02":
            return True, "kernel"
        return None

    def _packet(self, source: bytes, target: bytes, protocol: int, payload: bytes) -> tuple[bool, str]:
        if source not in self.own:
            return False, f"from {_text(source)} (not our address) to {_text(target)}"
        port = int.from_bytes(payload[2:4]) if protocol in {6, 17} and len(payload) >= 4 else 0
        if target in self.resolvers and port == 53:
            return True, "dns"
        if not self.inside(target):
            return False, f"{_UPPER.get(protocol, f'protocol {protocol}')} to {_text(target)} port {port}"
        if protocol not in _UPPER:
            return False, f"protocol {protocol} to {_text(target)}"
        return True, _UPPER[protocol]


def _text(packed: bytes) -> str:
    return str(ip_address(packed)) if len(packed) in {4, 16} else packed.hex()


def _link_local(packed: bytes) -> bool:
    return packed[:2] == b"\xfe\x80"


def _options(data: bytes) -> list[int]:
    found, at = [], 0
    while at < len(data) and data[at] != 0:
        found.append(data[at])
        at += 1 if data[at] == 1 else max(2, data[at + 1] if at + 1 < len(data) else 2)
    return found


@dataclass
class Seen:
    """The frames since the last reset."""

    allowed: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)
    lost: int = 0

    def note(self, device: str, frame: bytes, verdict: tuple[bool, str]) -> None:
        """Count a frame. The first bytes of a few faulty frames are kept as samples."""
        allowed, kind = verdict
        if allowed:
            self.allowed[kind if kind[:2] != "nd" else "nd"] += 1
            return
        self.faults[kind] += 1
        if len(self.samples) < _SAMPLES:
            self.samples.append(f"{device}: {kind}: {frame[:70].hex()}")

    def report(self) -> dict[str, Any]:
        """Return the counts for JSON."""
        return {
            "allowed": dict(self.allowed),
            "faults": dict(self.faults.most_common(4000)),
            "faulty": self.faults.total(),
            "total": self.allowed.total() + self.faults.total(),
            "samples": self.samples,
            "lost": self.lost,
        }


def _open(device: str) -> socket.socket:
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 28)
    tap.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
    tap.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    tap.bind((device, _ETH_ALL))
    tap.setblocking(False)
    return tap


def _drain(device: str, tap: socket.socket, checker: FrameChecker, seen: Seen) -> None:
    while True:
        try:
            frame, extra, _, _ = tap.recvmsg(2048, 64)
        except BlockingIOError:
            break
        tagged = any(
            level == _SOL_PACKET and kind == _PACKET_AUXDATA and struct.unpack("I", data[:4])[0] & _TP_STATUS_VLAN_VALID
            for level, kind, data in extra
        )
        seen.note(device, frame, checker(frame, tagged=tagged))
    seen.lost += struct.unpack("II", tap.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]


def main() -> None:
    """Check frames until standard input ends."""
    checker = FrameChecker(json.loads(sys.argv[1]))
    taps = {device: _open(device) for device in sys.argv[2:]}
    seen = Seen()
    print("ready", flush=True)  # noqa: T201 - read by the test
    while True:
        ready, _, _ = select.select([sys.stdin, *taps.values()], [], [])
        for device, tap in taps.items():
            _drain(device, tap, checker, seen)
        if sys.stdin in ready:
            command = sys.stdin.readline().strip()
            if not command:
                return
            if command == "reset":
                seen = Seen()
            print(json.dumps(seen.report()), flush=True)  # noqa: T201 - as above


if __name__ == "__main__":
    main()
