"""The ruleset in the kernel: loading, reading, updating, losing and self-testing it."""

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
from mcp_server.netguard.nft import Nft
from mcp_server.netguard.ruleset import COUNTERS, Link, ruleset, update
from mcp_server.netguard.self_test import run_self_test
from mcp_server.scope.address_ranges import merged, without
from mcp_server.scope.guard_sets import GuardSets
from tests.containment.guarded_link import NetNamespace, ip
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
def namespace() -> Iterator[NetNamespace]:
    """A namespace with a device that is up and not connected."""
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
def nft(namespace: NetNamespace) -> Iterator[Nft]:
    made = Nft()
    yield made
    made.close()


def run_nft(script: str) -> None:
    subprocess.run([find("nft"), "-f", "-"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    "sets", [SETS, GuardSets(), GuardSets(allow4=(IPv4Network("0.0.0.0/0"),), allow6=(IPv6Network("::/0"),))]
)
@pytest.mark.parametrize("link", [LINK, Link("g0", (ip_address("10.77.0.2"),)), Link("g0", (ip_address("fd77::2"),))])
def test_every_policy_loads_for_every_link_and_passes_the_self_test(nft: Nft, sets: GuardSets, link: Link) -> None:
    nft.run(ruleset(sets, link))
    if sets.allow4 and sets.allow4[0].prefixlen == 0:
        # The self-test uses reserved addresses, which every real policy excludes.
        with pytest.raises(PlatformError, match="was not dropped"):
            run_self_test(link, nft)
        nft.run(
            ruleset(
                GuardSets(sets.allow4, sets.allow6, SETS.exclude4, (*SETS.exclude6, IPv6Network("64:ff9b::/96"))), link
            )
        )
    run_self_test(link, nft)
    reading = nft.read()
    assert reading.dropped > 0
    assert set(nft.counters()) == set(COUNTERS) - {"held"}


def test_the_self_test_fails_if_all_frames_pass_or_none(nft: Nft) -> None:
    nft.run(ruleset(SETS, LINK))
    nft.run("flush chain netdev mcp_scope egress\nadd rule netdev mcp_scope egress accept\n")
    with pytest.raises(PlatformError, match="was not dropped") as caught:
        run_self_test(LINK, nft)
    assert caught.value.code == "guard_unavailable"
    assert nft.counters()["held"] > 0, "expected the chain hold to drop frames, found none"

    nft.run(ruleset(SETS, LINK))
    nft.run("flush chain netdev mcp_scope to_arp\nadd rule netdev mcp_scope to_arp counter name drop_arp_form drop\n")
    with pytest.raises(PlatformError, match="ARP request for the gateway did not pass"):
        run_self_test(LINK, nft)

    nft.run(ruleset(SETS, LINK))
    run_self_test(LINK, nft)
    with pytest.raises(PlatformError, match="chain 'hold' is not loaded"):
        run_self_test(LINK, nft)


def test_a_missing_device_and_one_that_is_down_are_errors(nft: Nft) -> None:
    with pytest.raises(PlatformError, match="no hardware address"):
        ruleset(SETS, Link("absent0", LINK.own))
    with pytest.raises(PlatformError, match="not an Ethernet"):
        ruleset(SETS, Link("lo", LINK.own))
    absent = Link("absent0", LINK.own, mac="02:00:00:00:00:01")
    # From Linux 6.16, the ruleset loads and the kernel waits for the device.
    with pytest.raises(PlatformError, match=r"absent0|self-test"):  # noqa: PT012 - either can raise it
        nft.run(ruleset(SETS, absent))
        run_self_test(absent, nft)
    nft.run(ruleset(SETS, LINK))
    ip("link set g0 down")
    with pytest.raises(PlatformError, match="The self-test of the guard failed"):
        run_self_test(LINK, nft)


def test_the_hash_covers_rules_and_sets_but_not_counters(nft: Nft) -> None:
    nft.run(ruleset(SETS, LINK))
    run_self_test(LINK, nft)
    first = nft.read()
    assert len(first.ruleset) == 64

    nft.run(update(GuardSets(allow4=(IPv4Network("10.78.0.0/16"),))))
    second = nft.read()
    assert second.ruleset != first.ruleset
    assert second.generation > first.generation
    assert second.drops == first.drops, "expected an update to keep the counters"

    nft.run(update(SETS))
    assert nft.read().ruleset == first.ruleset
    nft.run(ruleset(SETS, LINK))
    run_self_test(LINK, nft)
    assert nft.read().ruleset == first.ruleset, "expected the same hash for the same policy"


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
def test_a_changed_ruleset_is_noticed_and_not_updated(nft: Nft, tampering: str, words: str) -> None:
    nft.run(ruleset(SETS, LINK))
    run_self_test(LINK, nft)
    nft.read()
    run_nft(tampering + "\n")
    for ask in (nft.read, lambda: nft.run(update(SETS)), nft.read):
        with pytest.raises(PlatformError, match=words) as caught:
            ask()
        assert caught.value.code == "guard_unavailable"


def test_a_change_that_was_reverted_is_not_an_error(nft: Nft) -> None:
    nft.run(ruleset(SETS, LINK))
    before = nft.read()
    run_nft("add element netdev mcp_scope scope4 { 0x08080808 }\n")
    run_nft("delete element netdev mcp_scope scope4 { 0x08080808 }\n")
    assert nft.read().ruleset == before.ruleset


def test_a_script_is_one_transaction(nft: Nft) -> None:
    nft.run(ruleset(SETS, LINK))
    before = nft.read()
    with pytest.raises(PlatformError, match="nftables refused the script") as caught:
        nft.run("flush set netdev mcp_scope scope4\nadd element netdev mcp_scope nosuchset { 0x1 }\n")
    assert caught.value.code == "guard_unavailable"
    assert nft.read() == before


def test_nft_stays_in_its_namespace(nft: Nft, namespace: NetNamespace) -> None:
    nft.run(ruleset(SETS, LINK))
    elsewhere = NetNamespace()
    with elsewhere.inside():
        nft.run(update(GuardSets()))
        assert nft.read().passed == 0
        listed = subprocess.run([find("nft"), "list", "tables"], capture_output=True, text=True, check=True)
    assert listed.stdout == ""


def test_other_tables_can_be_loaded_in_a_namespace_without_a_guard(namespace: NetNamespace) -> None:
    host = Nft()
    host.run("table inet a { }\n")
    run_nft("table inet b { }\n")
    host.run("table inet c { }\n")
    with pytest.raises(PlatformError, match="No ruleset has been loaded"):
        host.read()
    host.close()


def test_the_hint_for_a_missing_library_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft_module, "_LIBRARY", "libnftables.so.99")
    with pytest.raises(PlatformError, match=r"libnftables\.so\.99") as caught:
        Nft()
    assert "apt-get install nftables" in caught.value.hint


def test_a_reading_takes_the_same_time_with_a_hundred_thousand_networks(nft: Nft) -> None:
    """Listing them takes half a second. The measurements are in docs/guard-rules.md."""

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
    nft.run(update(many))
    assert nft.holds("scope4", f"0x{numbers[-1] << 8:08x}")
    assert not nft.holds("scope4", f"0x{numbers[-1] << 8 | 0x80:08x}")
    assert median() < 5 * few


def test_readings_are_correct_while_another_thread_updates_the_sets(nft: Nft) -> None:
    nft.run(ruleset(SETS, LINK))
    other = GuardSets(allow4=(IPv4Network("10.78.0.0/16"),))
    known = {nft.read().ruleset}
    nft.run(update(other))
    known.add(nft.read().ruleset)
    done = threading.Event()

    def update_sets() -> None:
        for turn in range(100):
            nft.run(update(SETS if turn % 2 else other))
        done.set()

    thread = threading.Thread(target=update_sets)
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
def test_subtracting_ranges_equals_subtracting_their_members(
    some: list[tuple[int, int]], holes: list[tuple[int, int]]
) -> None:
    def members(pairs: list[tuple[int, int]]) -> set[int]:
        return {number for first, last in pairs for number in range(first, last + 1)}

    left = without(merged(some), merged(holes))
    assert members(left) == members(some) - members(holes)
    assert left == sorted(left)
    assert all(first <= last for first, last in left)
    assert sum(last - first + 1 for first, last in left) == len(members(left))
