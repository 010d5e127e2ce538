"""The tap: it sees what an unguarded nmap sends in scope and outside, and checks each frame by its bytes."""

from __future__ import annotations

import pytest

from tests.containment import lab_scope
from tests.containment.tap import FrameChecker
from tests.containment.wire import Wire
from tests.lab.network.handle import Lab


def test_the_tap_sees_scans_in_scope_and_allows_them(prepared_lab: Lab, wire: Wire) -> None:
    wire.reset()
    prepared_lab.run("scan", ["nmap", "-n", "-sS", "-p1-50", "-T4", lab_scope.INSIDE])
    prepared_lab.run("scan", ["nmap", "-n", "-6", "-sS", "-p1-50", "-T4", lab_scope.INSIDE_V6])
    traffic = wire.read()
    traffic.assert_in_scope(at_least=90)
    assert {"tcp", "arp", "nd"} <= traffic.allowed.keys()


def test_the_tap_sees_frames_outside_the_scope(prepared_lab: Lab, wire: Wire) -> None:
    """One example each for a host on the link, a routed host and the second uplink. `test_escapes` has many more."""
    wire.reset()
    for arguments in (
        ["-sn", lab_scope.ON_LINK_OUT],
        ["-Pn", "-p80", lab_scope.ROUTED_OUT],
        ["-Pn", "-p80", "172.20.0.1"],
    ):
        prepared_lab.run("scan", ["nmap", "-n", "-T4", "--max-retries=0", *arguments])
    traffic = wire.read()
    traffic.check_instruments()
    assert traffic.faults.keys() >= {
        f"arp for {lab_scope.ON_LINK_OUT}",
        f"tcp to {lab_scope.ROUTED_OUT} port 80",
        "from 192.168.77.2 (not our address) to 172.20.0.1",
    }
    with pytest.raises(AssertionError, match="expected no frames out of scope"):
        traffic.assert_in_scope(at_least=0)


def test_a_wire_without_scans_fails_the_check(prepared_lab: Lab, wire: Wire) -> None:
    wire.reset()
    traffic = wire.read()
    with pytest.raises(AssertionError, match="expected 1 frames in scope"):
        traffic.assert_in_scope(at_least=1)


def test_malformed_and_tagged_frames_are_faults() -> None:
    checker = FrameChecker(lab_scope.settings())
    ethernet = bytes(12)
    for frame, fault in (
        (ethernet + b"\x81\x00" + bytes(60), "vlan tag"),
        (ethernet + b"\x00\x2e" + bytes(60), "ethertype 0x002e"),
        (ethernet + b"\x08\x00" + b"\x65" + bytes(60), "invalid ipv4"),
        (ethernet + b"\x86\xdd" + b"\x45" + bytes(60), "invalid ipv6"),
        (ethernet + b"\x08\x06" + bytes(40), "invalid arp"),
        (ethernet + b"\x86\xdd" + b"\x60", "broken frame of type 0x86dd"),
    ):
        assert checker(frame) == (False, fault)
