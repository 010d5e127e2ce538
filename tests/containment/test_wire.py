"""The tap itself: it sees what raw nmap sends, in scope and out, and judges each frame by its bytes."""

from __future__ import annotations

import pytest

from tests.containment import ground
from tests.containment.tap import Judge
from tests.containment.wire import Wire
from tests.lab.network.handle import Lab


def test_the_tap_sees_scans_in_scope_and_calls_them_right(ground_lab: Lab, wire: Wire) -> None:
    wire.reset()
    ground_lab.run("scan", ["nmap", "-n", "-sS", "-p1-50", "-T4", ground.INSIDE])
    ground_lab.run("scan", ["nmap", "-n", "-6", "-sS", "-p1-50", "-T4", ground.INSIDE_V6])
    traffic = wire.read()
    traffic.assert_held(at_least=90)
    assert {"tcp", "arp", "nd"} <= traffic.rightly.keys()


def test_the_tap_sees_what_leaves_the_scope(ground_lab: Lab, wire: Wire) -> None:
    """`test_escapes` has many more; these are one of each way out."""
    wire.reset()
    for arguments in (["-sn", ground.ON_LINK_OUT], ["-Pn", "-p80", ground.ROUTED_OUT], ["-Pn", "-p80", "172.20.0.1"]):
        ground_lab.run("scan", ["nmap", "-n", "-T4", "--max-retries=0", *arguments])
    traffic = wire.read()
    traffic.check_eyes()
    assert traffic.faults.keys() >= {
        f"arp for {ground.ON_LINK_OUT}",
        f"tcp to {ground.ROUTED_OUT} port 80",
        "from 192.168.77.2, which is not ours, to 172.20.0.1",
    }
    with pytest.raises(AssertionError, match="out of scope"):
        traffic.assert_held(at_least=0)


def test_a_silent_wire_proves_nothing(ground_lab: Lab, wire: Wire) -> None:
    wire.reset()
    traffic = wire.read()
    with pytest.raises(AssertionError, match="nothing was proved"):
        traffic.assert_held(at_least=1)


def test_frames_that_hide_their_kind_are_faults() -> None:
    judge = Judge(ground.settings())
    ethernet = bytes(12)
    for frame, fault in (
        (ethernet + b"\x81\x00" + bytes(60), "vlan tag"),
        (ethernet + b"\x00\x2e" + bytes(60), "ethertype 0x002e"),
        (ethernet + b"\x08\x00" + b"\x65" + bytes(60), "strange ipv4"),
        (ethernet + b"\x86\xdd" + b"\x45" + bytes(60), "strange ipv6"),
        (ethernet + b"\x08\x06" + bytes(40), "strange arp"),
        (ethernet + b"\x86\xdd" + b"\x60", "broken frame of type 0x86dd"),
    ):
        assert judge(frame) == (False, fault)
