"""The policy: allowed and always-refused networks, name suffixes, the hash, and which entry decides."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server.errors import ConfigError, TargetError
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.special_networks import ALWAYS_REFUSED

DEFAULT = ["RFC1918", ".lab.internal"]
WIDEST = ["0.0.0.0/0", "::/0", "loopback"]


def allowed(entries: list[str], text: str) -> bool:
    return ScopePolicy.from_entries(entries).check_network(ip_network(text)).allowed


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.0",
        "10.255.255.255",
        "172.16.0.0",
        "172.31.255.255",
        "192.168.0.0",
        "192.168.1.1",
        "192.168.255.255",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "10.77.0.0/24",
    ],
)
def test_all_of_rfc1918_is_allowed(text: str) -> None:
    assert allowed(DEFAULT, text)


@pytest.mark.parametrize(
    "text",
    ["9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "10.0.0.0/7",
     "172.0.0.0/11", "192.168.0.0/15", "127.0.0.1", "::1", "fd00::1", "100.64.0.1", "198.18.0.1", "192.0.0.1"],
)  # fmt: skip
def test_addresses_beside_rfc1918_are_refused(text: str) -> None:
    assert not allowed(DEFAULT, text)


def test_a_refusal_names_the_target_and_lists_the_scope() -> None:
    verdict = ScopePolicy.from_entries(DEFAULT).check_network(ip_network("8.8.8.8"))
    assert verdict.reason == "8.8.8.8 is outside the scope. Allowed: RFC1918, .lab.internal."
    assert (verdict.allowed, verdict.code, verdict.allowed_by) == (False, "target_out_of_scope", None)
    with pytest.raises(TargetError, match="RFC1918") as caught:
        verdict.require()
    assert caught.value.code == "target_out_of_scope"


def test_a_network_that_is_partly_in_scope_says_so() -> None:
    verdict = ScopePolicy.from_entries(DEFAULT).check_network(ip_network("10.0.0.0/7"))
    assert verdict.reason.startswith("10.0.0.0/7 is only partly in the scope")


@pytest.mark.parametrize(("network", "words"), ALWAYS_REFUSED, ids=[str(network) for network, _ in ALWAYS_REFUSED])
def test_no_entry_allows_a_refused_range(network: IPv4Network, words: str) -> None:
    policy = ScopePolicy.from_entries([*WIDEST, "169.254.0.0/16", "fe80::/10", "240.0.0.0/4", "2002::/16"])
    wider = network.supernet()
    for part in (network, network[0], network[-1], wider):
        verdict = policy.check_network(ip_network(part))
        assert not verdict.allowed
        assert verdict.code == "target_out_of_scope"
    assert words in policy.check_network(ip_network(network[0])).reason


def test_addresses_beside_the_refused_ranges_can_be_allowed() -> None:
    beside = ["1.0.0.0", "169.253.255.255", "169.255.0.0", "223.255.255.255", "8.8.8.8", "2001:1::1", "2003::1"]
    for text in [*beside, "fd00::1", "fec0::1", "2001:db8::/32", "64:ff9a::1", "64:ff9b:2::1", "::1:0:0"]:
        assert allowed(WIDEST, text), text


def test_loopback_is_allowed_only_by_its_own_entry() -> None:
    assert not allowed(["0.0.0.0/0", "::/0"], "127.0.0.1")
    assert not allowed(["0.0.0.0/0", "::/0"], "::1")
    assert not allowed(["126.0.0.0/7"], "127.0.0.0/8")
    assert allowed(["loopback"], "127.0.0.1")
    assert allowed(["loopback"], "127.255.255.255")
    assert allowed(["loopback"], "::1")
    assert allowed(["127.0.0.1"], "127.0.0.1")
    assert not allowed(["127.0.0.1"], "127.0.0.2")
    assert not allowed(["loopback"], "128.0.0.1")
    assert not allowed(["loopback"], "10.0.0.1")


def test_a_zone_id_is_refused_even_inside_the_scope() -> None:
    policy = ScopePolicy.from_entries(["fd77::/64"])
    assert policy.check_address(ip_address("fd77::1")).allowed
    assert "zone id" in policy.check_address(ip_address("fd77::1%eth0")).reason


def test_ipv6_needs_an_entry_that_names_it() -> None:
    assert not allowed(DEFAULT, "fd77::1")
    assert allowed([*DEFAULT, "fd77::/64"], "fd77::1")
    assert not allowed([*DEFAULT, "fd77::/64"], "fd77:0:0:1::1")
    assert not allowed([*DEFAULT, "fd77::/64"], "fd77::/63")


def test_adjacent_entries_allow_a_network_together_and_are_both_named() -> None:
    policy = ScopePolicy.from_entries(["192.0.2.0/25", "192.0.2.128/25", "198.51.100.0/25"])
    verdict = policy.check_network(ip_network("192.0.2.0/24"))
    assert verdict.allowed
    assert verdict.allowed_by == "192.0.2.0/25, 192.0.2.128/25"
    assert not policy.check_network(ip_network("198.51.100.0/24")).allowed
    assert not policy.check_network(ip_network("192.0.2.0/23")).allowed


def test_a_gap_between_entries_is_refused() -> None:
    policy = ScopePolicy.from_entries(["192.0.2.0/26", "192.0.2.128/25"])
    assert not policy.check_network(ip_network("192.0.2.0/24")).allowed
    assert policy.check_network(ip_network("192.0.2.128/25")).allowed
    assert not policy.check_address(ip_address("192.0.2.64")).allowed


def test_the_entry_that_allows_a_network_is_named() -> None:
    policy = ScopePolicy.from_entries(["RFC1918", "203.0.113.7", "loopback"])
    assert policy.check_network(ip_network("10.1.2.3")).allowed_by == "RFC1918"
    assert policy.check_network(ip_network("203.0.113.7")).allowed_by == "203.0.113.7"
    assert policy.check_network(ip_network("127.0.0.1")).allowed_by == "loopback"


def test_the_narrowest_of_nested_entries_decides() -> None:
    policy = ScopePolicy.from_entries(["10.255.255.255", "RFC1918", "10.1.0.0/16"])
    assert policy.check_network(ip_network("10.255.255.255")).allowed_by == "10.255.255.255"
    assert policy.check_network(ip_network("10.1.0.1")).allowed_by == "10.1.0.0/16"
    assert policy.check_network(ip_network("10.2.0.1")).allowed_by == "RFC1918"
    assert policy.check_network(ip_network("10.255.255.254/31")).allowed_by == "RFC1918, 10.255.255.255"


def test_a_network_that_ends_in_the_scope_is_partly_in_it() -> None:
    policy = ScopePolicy.from_entries(["192.0.2.3"])
    assert "only partly in" in policy.check_network(ip_network("192.0.2.0/30")).reason
    assert "outside" in policy.check_network(ip_network("192.0.2.0/31")).reason


def test_names_are_allowed_under_a_suffix_only() -> None:
    policy = ScopePolicy.from_entries(["RFC1918", ".lab.internal", ".corp.example"])
    assert policy.check_name("server.lab.internal").allowed_by == ".lab.internal"
    assert policy.check_name("a.b.corp.example").allowed_by == ".corp.example"
    for name in ("lab.internal", "xlab.internal", "lab.internal.example", "internal", "example", "corp.example.com"):
        verdict = policy.check_name(name)
        assert not verdict.allowed
        assert verdict.code == "target_out_of_scope"
        assert ".lab.internal" in verdict.reason


def test_a_suffix_does_not_allow_any_address() -> None:
    assert not allowed([".lab.internal"], "10.0.0.1")


def test_an_empty_scope_allows_nothing_and_says_so() -> None:
    policy = ScopePolicy.from_entries([])
    assert policy.check_network(ip_network("10.0.0.1")).reason == "10.0.0.1 is outside the scope. Allowed: nothing."
    assert not policy.check_name("a.lab.internal").allowed


def test_a_long_scope_is_cut_in_messages() -> None:
    policy = ScopePolicy.from_entries([f"192.0.2.{n}" for n in range(40)])
    assert policy.summary().endswith("192.0.2.11 and 28 more")


def test_entries_are_read_without_regard_to_case_and_kept_in_order() -> None:
    policy = ScopePolicy.from_entries(["rfc1918", "LOOPBACK", ".Lab.Internal.", "FD77::/64", "RFC1918"])
    assert policy.entries == ("RFC1918", "loopback", ".lab.internal", "fd77::/64")


@pytest.mark.parametrize(
    "entry",
    ["", ".", "*", "all", "private", "lab.internal", "10.0.0.1/24", "010.0.0.0/8", "10.*", ".8.8.8.8", "..lab",
     "10.0.0.0-5", ".lab internal", "::ffff:0:0/96", "fe80::1%eth0", "RFC 1918", "RFC4193", ".lab.internal/24", "a;b"],
)  # fmt: skip
def test_a_bad_entry_is_a_configuration_error_that_names_it(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"security\.allowed_targets") as caught:
        ScopePolicy.from_entries([*DEFAULT, entry])
    assert caught.value.code == "config_invalid"
    assert "RFC1918" in caught.value.hint


def test_entries_without_effect_are_listed() -> None:
    policy = ScopePolicy.from_entries(["RFC1918", "169.254.169.254", "0.0.0.0/0", "fe80::/10"])
    assert policy.without_effect == ("169.254.169.254", "fe80::/10")


def test_the_hash_depends_on_the_decisions_and_not_on_the_spelling() -> None:
    def digest(*entries: str) -> str:
        return ScopePolicy.from_entries(entries).hash

    base = digest("RFC1918", ".lab.internal")
    assert len(base) == 64
    assert int(base, 16) >= 0
    assert base == digest(".lab.internal", "rfc1918", "10.0.0.0/8")
    assert base == digest(".lab.internal", "192.168.0.0/16", "172.16.0.0/12", "10.0.0.0/9", "10.128.0.0/9")
    others = [
        digest("RFC1918"),
        digest("RFC1918", ".lab.internals"),
        digest("RFC1918", ".lab.internal", "loopback"),
        digest("RFC1918", ".lab.internal", "11.0.0.0/8"),
        digest("0.0.0.0/0", "::/0"),
        digest("0.0.0.0/0", "::/0", "loopback"),
        digest(),
    ]
    assert len({base, *others}) == len(others) + 1


def test_the_hash_covers_the_refused_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ScopePolicy.from_entries(DEFAULT).hash
    monkeypatch.setattr("mcp_server.scope.policy.ALWAYS_REFUSED", ALWAYS_REFUSED[1:])
    assert ScopePolicy.from_entries(DEFAULT).hash != before


@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 8)), max_size=8),
    st.tuples(st.integers(0, 255), st.integers(0, 8)),
)
@settings(max_examples=400, deadline=None)
def test_the_verdict_on_a_network_agrees_with_its_addresses(
    entries: list[tuple[int, int]], asked: tuple[int, int]
) -> None:
    """Compare networks inside 192.0.2.0/24 with the verdicts on each of their addresses."""

    def network(last: int, bits: int) -> IPv4Network:
        return IPv4Network((f"192.0.2.{last >> bits << bits}", 32 - bits))

    scope = [network(*entry) for entry in entries]
    target = network(*asked)
    expected = all(any(address in part for part in scope) for address in target)
    verdict = ScopePolicy.from_entries([str(part) for part in scope]).check_network(target)
    assert verdict.allowed is expected
    assert ("only partly" in verdict.reason) == (not expected and any(part.overlaps(target) for part in scope))
