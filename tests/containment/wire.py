"""The wire outside of the server's namespace, counted twice: by nft on the router's port, and by a tap that reads.

nft loses nothing and shows nothing; the tap shows who did it. Both must have seen the same number of frames, so that
neither can be blind.
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

from tests.containment import ground
from tests.lab.network.handle import Lab
from tests.lab.network.programs import uncovered

PORTS = ("scan", "scan2")
"""Devices of the router that the scanner's namespace is joined to: its uplink, and a second one it may not use."""
_SETTLE_SEC = 0.3
_TAP = Path(__file__).with_name("tap.py")


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was on the wire: frames by kind, faults by reason, and nft's count of the same frames."""

    rightly: dict[str, int]
    faults: dict[str, int]
    wrong: int
    total: int
    offenders: list[str] = field(repr=False)
    lost: int = 0
    counted: dict[str, int] = field(default_factory=dict)

    @property
    def scans(self) -> int:
        """Frames that carry a probe or a conversation to an address in scope."""
        return sum(self.rightly.get(kind, 0) for kind in ("tcp", "udp", "icmp", "icmp6"))

    def check_eyes(self) -> None:
        """The tap must have lost no frame, and nft must have counted as many."""
        assert not self.lost, f"the tap lost {self.lost} frames"
        assert self.counted["total"] == self.total, f"nft counted {self.counted['total']}, the tap {self.total} frames"

    def assert_held(self, *, at_least: int) -> None:
        """No frame out of scope, with ``at_least`` frames of scans in scope on the same wire."""
        self.check_eyes()
        assert not self.wrong, f"{self.wrong} frames out of scope: {self.faults}\n" + "\n".join(self.offenders)
        outside = {name: count for name, count in self.counted.items() if name != "total" and count}
        assert not outside, f"nft counted frames out of scope: {outside}"
        assert self.scans >= at_least, f"only {self.scans} frames of scans in scope: {self.rightly}; nothing was proved"


class Wire:
    """The tap and the counters, running."""

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
        """Forget what was seen so far, frames that are still under way included."""
        time.sleep(_SETTLE_SEC)
        self._lab.run("r1", ["nft", "reset", "counters", "table", "netdev", "wire"])
        self._ask("reset")

    def read(self) -> Traffic:
        """What was seen since the reset, once the wire has come to rest."""
        time.sleep(_SETTLE_SEC)
        for _ in range(20):  # a frame between the two readings is no fault of either
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
        """Watch both of the scanner's ports for as long as the block runs."""
        lab.run("r1", ["nft", "-f", "-"], text_in=_counting_rules())
        argv = lab.exec_argv("r1", [sys.executable, "-I", "-S", str(_TAP), json.dumps(ground.settings()), *PORTS])
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=uncovered(), text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield cls(lab, process, process.stdin, process.stdout)
        finally:
            process.stdin.close()
            process.wait(10)
            process.stdout.close()


_SECOND_MACS = ("02:77:09:00:00:01", "02:77:09:00:00:02")


def second_uplink(lab: Lab) -> None:
    """Give the host another way out, with a route of its own: an escape by the wrong device is an escape too."""
    commands = [
        ("r1", f"link add scan2 address {_SECOND_MACS[0]} type veth peer name eth9 address {_SECOND_MACS[1]}"),
        ("r1", "link set scan2 up"),
        ("r1", "addr add 192.168.77.1/24 dev scan2"),
        # Neither kernel has to ask the other, or to answer: what is seen there was sent on purpose.
        ("r1", f"neigh replace 192.168.77.2 lladdr {_SECOND_MACS[1]} nud permanent dev scan2"),
    ]
    for namespace, command in commands:
        lab.run(namespace, ["ip", *command.split()])
    # veth ends are moved by process, as the lab's namespaces have names in its own mount namespace only.
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
        ", ".join(net for net in ground.without_exclusions() if (":" in net) == is_six) for is_six in (False, True)
    )
    link = ", ".join(address for address in (*ground.GATEWAYS, ground.RESOLVER, *ground.HOST) if ":" not in address)
    near = f"{{ fe80::/10, {ground.GATEWAYS[1]} }}"
    chains = "\n".join(
        f"""
  chain {port} {{
    type filter hook ingress device "{port}" priority -400; policy accept;
    counter name total
    ether type arp arp daddr ip != @four arp daddr ip != {{ {link} }} counter name arp_out
    ether type ip ip daddr {ground.RESOLVER} meta l4proto {{ tcp, udp }} th dport 53 accept
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
