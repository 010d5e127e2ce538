"""The ruleset in a real kernel: loaded, read, swapped, lost; and the canary that proves it."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.errors import PlatformError
from mcp_server.netguard import nft as nft_module
from mcp_server.netguard.canary import prove
from mcp_server.netguard.nft import Nft
from mcp_server.netguard.rules import COUNTERS, Link, ruleset, update
from mcp_server.scope.address_ranges import merged, without
from mcp_server.scope.guard_sets import GuardSets
from tests.containment.guard_stage import NetNamespace, ip
from tests.lab.network.programs import find

SETS = GuardSets(
    allow4=(IPv4Network("10.77.1.0/24"),),
    allow6=(IPv6Network("fd77:1::/64"),),
    exclude4=(IPv4Network("10.77.1.5"), IPv4Network("224.0.0.0/3")),
    exclude6=(IPv6Network("fd77:1::5"), IPv6Network("ff00::/8")),
    resolvers=(ip_address("10.77.9.53"), ip_address("10.77.1.5"), ip_address("fd77:9::53")),
)
LINK = Link("g0", (ip_address("10.77.0.2"), ip_address("fd77::2")), (ip_address("10.77.0.1"), ip_address("fd77::1")))


@pytest.fixture
def room() -> Iterator[NetNamespace]:
    """A namespace with a device that is up and leads nowhere."""
    made = NetNamespace()
    with made.inside():
        ip(
            "link add p0 type veth peer name g0",
            "link set g0 addrgenmode none",
            "link set g0 up",
            "addr add 10.77.0.2/24 dev g0",
            "addr add fd77::2/64 dev g0 nodad",
        )
        yield made


@pytest.fixture
def nft(room: NetNamespace) -> Iterator[Nft]:
    made = Nft()
    yield made
    made.close()


def by_hand(script: str) -> None:
    subprocess.run([find("nft"), "-f", "-"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    "sets", [SETS, GuardSets(), GuardSets(allow4=(IPv4Network("0.0.0.0/0"),), allow6=(IPv6Network("::/0"),))]
)
@pytest.mark.parametrize("link", [LINK, Link("g0", (ip_address("10.77.0.2"),)), Link("g0", (ip_address("fd77::2"),))])
def test_every_policy_and_link_loads_and_is_proved(nft: Nft, sets: GuardSets, link: Link) -> None:
    nft.run(ruleset(sets, link))
    if sets.allow4 and sets.allow4[0].prefixlen == 0:
        # What no policy allows is what the policy's exclusions always hold.
        with pytest.raises(PlatformError, match="was not dropped"):
            prove(link, nft)
        nft.run(
            ruleset(
                GuardSets(sets.allow4, sets.allow6, SETS.exclude4, (*SETS.exclude6, IPv6Network("64:ff9b::/96"))), link
            )
        )
    prove(link, nft)
    reading = nft.read()
    assert reading.dropped > 0
    assert set(nft.counters()) == set(COUNTERS) - {"gate_held"}


def test_a_guard_that_lets_all_through_or_nothing_is_not_proved(nft: Nft) -> None:
    nft.run(ruleset(SETS, LINK))
    nft.run("flush chain netdev mcp_scope egress\nadd rule netdev mcp_scope egress accept\n")
    with pytest.raises(PlatformError, match="was not dropped") as caught:
        prove(LINK, nft)
    assert caught.value.code == "guard_unavailable"
    assert nft.counters()["gate_held"] > 0, "the gate let it out"

    nft.run(ruleset(SETS, LINK))
    nft.run("flush chain netdev mcp_scope to_arp\nadd rule netdev mcp_scope to_arp counter name drop_arp_form drop\n")
    with pytest.raises(PlatformError, match="ARP request for the gateway did not pass"):
        prove(LINK, nft)

    nft.run(ruleset(SETS, LINK))
    prove(LINK, nft)
    with pytest.raises(PlatformError, match="gate is not closed"):
        prove(LINK, nft)


def test_a_device_that_is_not_there_or_down_is_said(nft: Nft) -> None:
    with pytest.raises(PlatformError, match="no hardware address"):
        ruleset(SETS, Link("absent0", LINK.own))
    with pytest.raises(PlatformError, match="no Ethernet"):
        ruleset(SETS, Link("lo", LINK.own))
    absent = Link("absent0", LINK.own, mac="02:00:00:00:00:01")
    # Linux 6.16 takes it, and waits for the device to come.
    with pytest.raises(PlatformError, match=r"absent0|could not be proved"):  # noqa: PT012 - either may refuse
        nft.run(ruleset(SETS, absent))
        prove(absent, nft)
    nft.run(ruleset(SETS, LINK))
    ip("link set g0 down")
    with pytest.raises(PlatformError, match="could not be proved"):
        prove(LINK, nft)


def test_the_hash_is_of_the_rules_and_sets_and_not_of_the_counts(nft: Nft) -> None:
    nft.run(ruleset(SETS, LINK))
    prove(LINK, nft)
    first = nft.read()
    assert len(first.ruleset) == 64

    nft.run(update(GuardSets(allow4=(IPv4Network("10.78.0.0/16"),)), LINK))
    second = nft.read()
    assert second.ruleset != first.ruleset
    assert second.generation > first.generation
    assert second.drops == first.drops, "a swap keeps the counts"

    nft.run(update(SETS, LINK))
    assert nft.read().ruleset == first.ruleset
    nft.run(ruleset(SETS, LINK))
    prove(LINK, nft)
    assert nft.read().ruleset == first.ruleset, "made again, the same policy is the same ruleset"


@pytest.mark.parametrize(
    ("tampering", "words"),
    [
        ("flush ruleset", "is gone"),
        ("delete table netdev mcp_scope", "is gone"),
        ("add element netdev mcp_scope scope4 { 0x08080808 }", "not the one that was loaded"),
        ("delete element netdev mcp_scope excluded4 { 0x0a4d0105 }", "not the one that was loaded"),
        ("insert rule netdev mcp_scope egress accept", "not the one that was loaded"),
        ("flush chain netdev mcp_scope scoped4", "not the one that was loaded"),
        ("table netdev other { }", "not the one that was loaded"),
    ],
)
def test_a_guard_that_was_changed_is_noticed_and_not_built_upon(nft: Nft, tampering: str, words: str) -> None:
    nft.run(ruleset(SETS, LINK))
    prove(LINK, nft)
    nft.read()
    by_hand(tampering + "\n")
    for ask in (nft.read, lambda: nft.run(update(SETS, LINK)), nft.read):
        with pytest.raises(PlatformError, match=words) as caught:
            ask()
        assert caught.value.code == "guard_unavailable"


def test_a_change_that_was_taken_back_is_no_difference(nft: Nft) -> None:
    nft.run(ruleset(SETS, LINK))
    before = nft.read()
    by_hand("add element netdev mcp_scope scope4 { 0x08080808 }\n")
    by_hand("delete element netdev mcp_scope scope4 { 0x08080808 }\n")
    assert nft.read().ruleset == before.ruleset


def test_a_script_is_carried_out_whole_or_not_at_all(nft: Nft) -> None:
    nft.run(ruleset(SETS, LINK))
    before = nft.read()
    with pytest.raises(PlatformError, match="nftables refused the guard") as caught:
        nft.run("flush set netdev mcp_scope scope4\nadd element netdev mcp_scope nosuchset { 0x1 }\n")
    assert caught.value.code == "guard_unavailable"
    assert nft.read() == before


def test_it_stays_bound_to_its_namespace(nft: Nft, room: NetNamespace) -> None:
    nft.run(ruleset(SETS, LINK))
    elsewhere = NetNamespace()
    with elsewhere.inside():
        nft.run(update(GuardSets(), LINK))
        assert nft.read().passed == 0
        listed = subprocess.run([find("nft"), "list", "tables"], capture_output=True, text=True, check=True)
    assert listed.stdout == ""


def test_other_tables_can_be_loaded_where_there_is_no_guard(room: NetNamespace) -> None:
    host = Nft()
    host.run("table inet a { }\n")
    by_hand("table inet b { }\n")
    host.run("table inet c { }\n")
    with pytest.raises(PlatformError, match="no ruleset has been loaded"):
        host.read()
    host.close()


def test_a_missing_library_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft_module, "_LIBRARY", "libnftables.so.99")
    with pytest.raises(PlatformError, match=r"libnftables\.so\.99") as caught:
        Nft()
    assert "apt-get install nftables" in caught.value.hint


def test_a_reading_costs_the_same_with_a_hundred_thousand_networks(nft: Nft) -> None:
    """A listing of them takes half a second; the measured figures stand in docs/guard-rules.md."""

    def median() -> float:
        times = []
        for _ in range(101):
            start = time.perf_counter()
            nft.read()
            times.append(time.perf_counter() - start)
        return sorted(times)[50]

    nft.run(ruleset(SETS, LINK))
    few = median()
    numbers = range(0x0A0000, 0x0A0000 + 2 * 100_000, 2)
    many = GuardSets(allow4=tuple(IPv4Network((number << 8, 25)) for number in numbers))
    nft.run(update(many, LINK))
    assert nft.holds("scope4", f"0x{numbers[-1] << 8:08x}")
    assert not nft.holds("scope4", f"0x{numbers[-1] << 8 | 0x80:08x}")
    assert median() < 5 * few


def test_readings_are_right_while_another_thread_swaps(nft: Nft) -> None:
    nft.run(ruleset(SETS, LINK))
    other = GuardSets(allow4=(IPv4Network("10.78.0.0/16"),))
    known = {nft.read().ruleset}
    nft.run(update(other, LINK))
    known.add(nft.read().ruleset)
    done = threading.Event()

    def swap() -> None:
        for turn in range(100):
            nft.run(update(SETS if turn % 2 else other, LINK))
        done.set()

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    while not done.is_set():
        seen.add(nft.read().ruleset)
    thread.join()
    assert seen == known


ranges = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 8)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=12
)


@given(ranges, ranges)
def test_what_is_left_of_ranges_is_what_is_left_of_their_members(
    some: list[tuple[int, int]], holes: list[tuple[int, int]]
) -> None:
    def members(pairs: list[tuple[int, int]]) -> set[int]:
        return {number for first, last in pairs for number in range(first, last + 1)}

    left = without(merged(some), merged(holes))
    assert members(left) == members(some) - members(holes)
    assert left == sorted(left)
    assert all(first <= last for first, last in left)
    assert sum(last - first + 1 for first, last in left) == len(members(left))
