"""The sets of the packet guard allow exactly the addresses that the policy allows."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server.scope.guard_sets import GuardSets
from mcp_server.scope.policy import ScopePolicy

POLICY = """
version: 1
allow: [10.0.0.0/9, 10.128.0.0/9, 192.0.2.0/24, 192.0.2.7, 'fd77::/64', loopback, .lab.internal]
exclude: [10.0.0.13, 10.0.0.12, 'fd77::1', .hr.lab.internal]
resolvers: [10.0.0.53, 'fd77::53']
"""


def test_the_sets_are_collapsed_and_have_no_loopback(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(POLICY)
    sets = ScopePolicy.from_file(tmp_path / "p.yaml").guard_sets()
    assert sets.allow4 == (IPv4Network("10.0.0.0/8"), IPv4Network("192.0.2.0/24"))
    assert sets.allow6 == (IPv6Network("fd77::/64"),)
    assert IPv4Network("10.0.0.12/31") in sets.exclude4
    assert IPv4Network("169.254.0.0/16") in sets.exclude4
    assert IPv4Network("224.0.0.0/3") in sets.exclude4, "multicast and reserved addresses are adjacent"
    assert IPv6Network("fd77::1/128") in sets.exclude6
    assert sets.resolvers == (ip_address("10.0.0.53"), ip_address("fd77::53"))
    assert sets.loopback


def test_a_policy_for_everything_has_no_loopback_in_its_sets() -> None:
    sets = ScopePolicy.from_entries(["0.0.0.0/0", "::/0"]).guard_sets()
    assert not sets.loopback
    assert not any(each.overlaps(IPv4Network("127.0.0.0/8")) for each in sets.allow4)
    assert not any(each.overlaps(IPv6Network("::1")) for each in sets.allow6)
    assert sum(each.num_addresses for each in sets.allow4) == 2**32 - 2**24
    assert sum(each.num_addresses for each in sets.allow6) == 2**128 - 1


def test_excluded_loopback_is_not_allowed(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("version: 1\nallow: [127.0.0.1]\nexclude: [127.0.0.0/8]\n")
    assert not ScopePolicy.from_file(tmp_path / "p.yaml").guard_sets().loopback


def test_an_empty_policy_allows_nothing_and_still_excludes() -> None:
    sets = ScopePolicy.from_entries([]).guard_sets()
    assert (sets.allow4, sets.allow6, sets.resolvers, sets.loopback) == ((), (), (), False)
    assert sets.exclude4
    assert GuardSets().exclude4 == ()


BLOCKS = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 8)), max_size=6)


@given(BLOCKS)
@settings(max_examples=150, deadline=None)
def test_the_sets_allow_exactly_the_addresses_that_the_policy_allows(blocks: list[tuple[int, int]]) -> None:
    networks = [IPv4Network((f"192.0.2.{last >> bits << bits}", 32 - bits)) for last, bits in blocks]
    policy = ScopePolicy.from_entries(map(str, networks))
    sets = policy.guard_sets()
    for address in IPv4Network("192.0.2.0/24"):
        through = any(address in each for each in sets.allow4) and not any(address in each for each in sets.exclude4)
        assert through == policy.check_address(address).allowed
