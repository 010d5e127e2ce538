"""The wire outside the server's namespace. Its frames are counted twice: by nft on the router, and by a tap.

nft loses no frame but shows no details. The tap shows the faulty frames. Both must count the same number of frames,
which shows that both work.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from tests.containment import lab_scope
from tests.lab.network.handle import Lab
from tests.lab.network.programs import uncovered

PORTS = ("scan", "scan2")
"""Devices of the router that are connected to the namespace ``scan``: its uplink, and a second one it may not use."""
_SETTLE_SEC = 0.3
_TAP = Path(__file__).with_name("tap.py")


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was on the wire: allowed frames by kind, faulty ones by fault, and nft's counts of the same frames."""

    allowed: dict[str, int]
    faults: dict[str, int]
    faulty: int
    total: int
    samples: list[str] = field(repr=False)
    lost: int = 0
    counted: dict[str, int] = field(default_factory=dict)

    @property
    def scans(self) -> int:
        """Frames of scans to addresses in scope."""
        return sum(self.allowed.get(kind, 0) for kind in ("tcp", "udp", "icmp", "icmp6"))

    def check_instruments(self) -> None:
        """Check that the tap lost no frame and that nft counted the same number of frames."""
        assert not self.lost, f"expected the tap to lose no frames, found {self.lost}"
        assert self.counted["total"] == self.total, (
            f"expected equal counts, found nft {self.counted['total']} and tap {self.total}"
        )

    def assert_in_scope(self, *, at_least: int) -> None:
        """Check that no frame was out of scope, and that there were ``at_least`` frames of scans in scope."""
        self.check_instruments()
        assert not self.faulty, f"expected no frames out of scope, found {self.faulty}: {self.faults}\n" + "\n".join(
            self.samples
        )
        outside = {name: count for name, count in self.counted.items() if name != "total" and count}
        assert not outside, f"expected nft to count no frames out of scope, found {outside}"
        assert self.scans >= at_least, f"expected {at_least} frames in scope, found {self.allowed}"


class Wire:
    """The running tap and counters."""

    def __init__(self, lab: Lab, process: subprocess.Popen[str], stdin: IO[str], stdout: IO[str]) -> None:
        self._lab = lab
        self._process = process
        self._stdin = stdin
        self._stdout = stdout

    def _ask(self, command: str) -> dict[str, Any]:
        self._stdin.write(command + "\n")
        self._stdin.flush()
        answer: dict[str, Any] = json.loads(self._stdout.readline())
        return answer

    def reset(self) -> None:
        """Reset all counts, after waiting for frames that are still on the wire."""
        time.sleep(_SETTLE_SEC)
        self._lab.run("r1", ["nft", "reset", "counters", "table", "netdev", "wire"])
        self._ask("reset")

    def read(self) -> Traffic:
        """Return what was seen since the reset, after waiting for the last frames."""
        time.sleep(_SETTLE_SEC)
        for _ in range(20):  # a frame can arrive between the two readings
            counted = self._counters()
            seen = self._ask("read")
            if counted == self._counters():
                break
        return Traffic(counted=counted, **seen)

    def _counters(self) -> dict[str, int]:
        listed = self._lab.run("r1", ["nft", "-j", "list", "counters", "table", "netdev", "wire"]).stdout
        items = [item["counter"] for item in json.loads(listed)["nftables"] if "counter" in item]
        return {item["name"]: item["packets"] for item in items}

    @classmethod
    @contextmanager
    def tap(cls, lab: Lab) -> Iterator[Self]:
        """Watch both ports of the namespace ``scan`` for the length of a block."""
        lab.run("r1", ["nft", "-f", "-"], text_in=_counting_rules())
        argv = lab.exec_argv("r1", [sys.executable, "-I", "-S", str(_TAP), json.dumps(lab_scope.settings()), *PORTS])
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=uncovered(), text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line == "ready\n", f"expected the tap to start, found {line!r}"
            yield cls(lab, process, process.stdin, process.stdout)
        finally:
            process.stdin.close()
            process.wait(10)
            process.stdout.close()


_SECOND_MACS = ("02:77:09:00:00:01", "02:77:09:00:00:02")


def second_uplink(lab: Lab) -> None:
    """Give the host a second uplink with its own route, because using the wrong device is an escape too."""
    commands = [
        ("r1", f"link add scan2 address {_SECOND_MACS[0]} type veth peer name eth9 address {_SECOND_MACS[1]}"),
        ("r1", "link set scan2 up"),
        ("r1", "addr add 192.168.77.1/24 dev scan2"),
        # With static entries, the kernels send no neighbor discovery, so every frame there was sent by a tool.
        ("r1", f"neigh replace 192.168.77.2 lladdr {_SECOND_MACS[1]} nud permanent dev scan2"),
    ]
    for namespace, command in commands:
        lab.run(namespace, ["ip", *command.split()])
    # The device is moved by PID, because the names of the lab's namespaces exist only in the lab's mount namespace.
    mover = subprocess.Popen(lab.exec_argv("scan", ["sleep", "30"]))
    try:
        time.sleep(0.2)
        lab.run("r1", ["ip", "link", "set", "eth9", "netns", str(mover.pid)])
    finally:
        mover.kill()
        mover.wait()
    for command in (
        "link set eth9 addrgenmode none",
        "link set eth9 up",
        "addr add 192.168.77.2/24 dev eth9",
        f"neigh replace 192.168.77.1 lladdr {_SECOND_MACS[0]} nud permanent dev eth9",
        "route add 172.20.0.0/16 via 192.168.77.1",
    ):
        lab.run("scan", ["ip", *command.split()])


def _counting_rules() -> str:
    four, six = (
        ", ".join(net for net in lab_scope.without_exclusions() if (":" in net) == is_six) for is_six in (False, True)
    )
    link = ", ".join(
        address for address in (*lab_scope.GATEWAYS, lab_scope.RESOLVER, *lab_scope.HOST) if ":" not in address
    )
    near = f"{{ fe80::/10, {lab_scope.GATEWAYS[1]} }}"
    chains = "\n".join(
        f"""
  chain {port} {{
    type filter hook ingress device "{port}" priority -400; policy accept;
    counter name total
    ether type arp arp daddr ip != @four arp daddr ip != {{ {link} }} counter name arp_out
    ether type ip ip daddr {lab_scope.RESOLVER} meta l4proto {{ tcp, udp }} th dport 53 accept
    ether type ip ip daddr != @four counter name ip4_out
    ether type ip6 ip6 daddr != @six ip6 daddr != ff02::/16 ip6 daddr != {near} counter name ip6_out
    ether type != {{ arp, ip, ip6 }} counter name other_out
  }}"""
        for port in PORTS
    )
    names = ("total", "arp_out", "ip4_out", "ip6_out", "other_out")
    counters = "\n".join(f"  counter {name} {{ }}" for name in names)
    return f"""
table netdev wire {{
{counters}
  set four {{ type ipv4_addr; flags interval; elements = {{ {four} }} }}
  set six {{ type ipv6_addr; flags interval; elements = {{ {six} }} }}
{chains}
}}
"""
