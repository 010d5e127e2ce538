"""The terms of a policy: exclusions, risks, rates, windows and limits, and which entry decides."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server.errors import RefusedError
from mcp_server.model.run import Risk
from mcp_server.model.target import Network
from mcp_server.scope.grant import Grant
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.special_networks import ALWAYS_REFUSED

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)  # a Monday
MIDNIGHT = NOON.replace(hour=23)

TEXT = """
version: 1
defaults: {max_risk: scan, packets_per_second: 5000}
windows:
  nights: {days: mon-fri, from: 22:00, to: 06:00}
  noon: {from: 12:00, to: 13:00}
allow:
  - 10.0.0.0/8
  - {network: 10.1.0.0/16, max_risk: intrusive}
  - {network: 10.1.2.0/24, max_risk: passive, packets_per_second: 10}
  - {network: 10.2.0.0/16, windows: [nights]}
  - {network: 10.2.3.0/24, windows: [nights, noon]}
  - {entries: [10.3.0.0/25, 10.3.0.128/25], max_risk: intrusive}
  - .lab.internal
  - {name: .slow.lab.internal, packets_per_second: 1, max_risk: probe}
  - {name: one.corp.example, max_risk: passive}
exclude:
  - 10.0.0.13
  - 10.4.0.0/16
  - .hr.lab.internal
  - printer.lab.internal
limits: {addresses_x_ports: 1000, packets_per_run: 2000}
"""


@pytest.fixture(scope="module")
def terms(tmp_path_factory: pytest.TempPathFactory) -> ScopePolicy:
    file = tmp_path_factory.mktemp("policy") / "policy.yaml"
    file.write_text(TEXT)
    return ScopePolicy.from_file(file)


def ask(
    policy: ScopePolicy, *networks: str, names: tuple[str, ...] = (), risk: Risk = Risk.PASSIVE, **cost: Any
) -> Grant:
    found: list[Network] = [ip_network(each) for each in networks]
    wanted: dict[str, Any] = {"addresses": 1, "ports": 1, "probes": 1, "now": NOON} | cost
    return policy.require(found, names, risk, **wanted)


def code(policy: ScopePolicy, *networks: str, **rest: Any) -> str | None:
    try:
        ask(policy, *networks, **rest)
    except RefusedError as error:
        return error.code
    return None


# exclusions


def test_an_exclusion_takes_precedence_over_every_entry(terms: ScopePolicy) -> None:
    for text in ("10.0.0.13", "10.4.0.0/16", "10.4.200.1", "10.4.0.0/15", "10.0.0.0/8"):
        assert code(terms, text) == "target_out_of_scope", text
    assert code(terms, "10.0.0.12", "10.0.0.13") == "target_out_of_scope"
    assert code(terms, "10.0.0.12", "10.0.0.14") is None


def test_a_refusal_names_the_exclusion_and_the_allowed_part(terms: ScopePolicy) -> None:
    verdict = terms.check_network(ip_network("10.0.0.8/29"))
    assert verdict.reason == "10.0.0.8/29 contains 10.0.0.13, which the policy excludes in line 18."
    assert verdict.hint == "Allowed part: 10.0.0.8/30, 10.0.0.12, 10.0.0.14/31."
    assert terms.check_network(ip_network("10.4.1.1")).reason == "10.4.1.1 is excluded by 10.4.0.0/16 (line 19)."
    assert terms.check_network(ip_network("10.4.1.1")).hint is None
    partly = terms.check_network(ip_network("10.0.0.0/7"))
    assert (partly.hint or "").startswith("Allowed part: 10.0.0.0/29, 10.0.0.8/30,")


@given(st.integers(0, 255), st.integers(0, 8))
@settings(max_examples=100, deadline=None)
def test_the_allowed_part_agrees_with_single_addresses(last: int, bits: int) -> None:
    policy = ScopePolicy.from_entries(["192.0.2.0/25", "192.0.2.160/27"])
    network = ip_network((f"192.0.2.{last >> bits << bits}", 32 - bits))
    rest = {address for part in policy.rest_of(network) for address in part}
    assert rest == {address for address in network if policy.check_address(address).allowed}


def test_an_excluded_suffix_excludes_the_bare_domain_too(terms: ScopePolicy) -> None:
    for name in ("printer.lab.internal", "a.hr.lab.internal", "b.a.hr.lab.internal", "hr.lab.internal"):
        assert not terms.check_name(name).allowed, name
        assert code(terms, "10.0.0.1", names=(name,)) == "target_out_of_scope"
    for name in ("printers.lab.internal", "a.printer.lab.internal", "xhr.lab.internal"):
        assert terms.check_name(name).allowed, name
    assert not terms.check_alias("x.hr.lab.internal").allowed
    assert terms.check_alias("anything.example").allowed


def test_a_name_may_be_an_entry_by_itself(terms: ScopePolicy) -> None:
    assert terms.check_name("one.corp.example").allowed_by == "one.corp.example"
    for name in ("a.one.corp.example", "two.corp.example", "corp.example"):
        assert not terms.check_name(name).allowed


# risks and rates


def test_the_narrowest_entry_decides_on_the_risk(terms: ScopePolicy) -> None:
    for text, highest in (("10.0.0.1", Risk.SCAN), ("10.1.0.1", Risk.INTRUSIVE), ("10.1.2.3", Risk.PASSIVE)):
        assert terms.check_network(ip_network(text)).max_risk == highest
        for risk in Risk:
            assert code(terms, text, risk=risk) == (None if risk <= highest else "risk_not_allowed")


def test_the_strictest_of_several_entries_decides(terms: ScopePolicy) -> None:
    assert code(terms, "10.1.2.0/23", risk=Risk.PROBE) == "risk_not_allowed"
    with pytest.raises(RefusedError) as caught:
        ask(terms, "10.1.0.0/22", risk=Risk.SCAN)
    assert (
        caught.value.message == "10.1.2.0/24 (line 10) allows the risk passive at most; the risk of this call is scan."
    )
    assert caught.value.details["max_risk"] == "passive"
    assert code(terms, "10.1.4.0/22", risk=Risk.INTRUSIVE) is None
    # Both halves have their own entry, so the wider entry decides on none of their addresses.
    assert code(terms, "10.3.0.0/24", risk=Risk.INTRUSIVE) is None
    assert code(terms, "10.3.0.0/23", risk=Risk.INTRUSIVE) == "risk_not_allowed"
    assert code(terms, "10.1.0.1", "10.0.0.1", risk=Risk.INTRUSIVE) == "risk_not_allowed"


def test_the_lowest_rate_applies(terms: ScopePolicy) -> None:
    assert ask(terms, "10.0.0.1").packets_per_second == 5000
    assert ask(terms, "10.0.0.1", "10.1.2.3").packets_per_second == 10
    assert terms.rate_for([ip_network("10.1.0.0/16")]) == 10
    assert ask(terms, "10.0.0.1", names=("a.slow.lab.internal",)).packets_per_second == 1
    assert terms.rate_for([ip_network("10.0.0.1")], ["a.slow.lab.internal"]) == 1
    assert ScopePolicy.from_entries(["RFC1918"]).rate_for([ip_network("10.0.0.1")]) is None


def test_all_entries_with_a_rate_are_named(tmp_path: Path) -> None:
    entries = "".join(f"  - network: 10.0.{n}.0/24\n    packets_per_second: {n + 1}\n" for n in range(40))
    file = tmp_path / "policy.yaml"
    file.write_text("version: 1\nallow:\n  - 10.1.0.0/16\n" + entries)
    file.chmod(0o600)
    policy = ScopePolicy.load(file, (), entries_are_set=False)
    assert policy.rated_entries([ip_network("10.1.0.0/16")]) == ()
    assert policy.rated_entries([ip_network("10.0.3.7")]) == ("10.0.3.0/24",)
    assert len(policy.rated_entries([ip_network("10.0.0.0/19"), ip_network("10.0.32.0/21")])) == 40


def test_a_name_adds_the_terms_of_its_own_entry_and_no_defaults(terms: ScopePolicy) -> None:
    assert code(terms, "10.1.0.1", names=("a.lab.internal",), risk=Risk.INTRUSIVE) is None
    assert code(terms, "10.1.0.1", names=("a.slow.lab.internal",), risk=Risk.SCAN) == "risk_not_allowed"


def test_the_grant_names_the_entries(terms: ScopePolicy) -> None:
    grant = ask(terms, "10.0.0.1", "10.1.0.0/23", names=("a.lab.internal",))
    assert tuple(map(str, grant.entries)) == (".lab.internal (line 14)", "10.0.0.0/8 (line 8)", "10.1.0.0/16 (line 9)")


# windows


def test_a_call_outside_the_window_is_refused(terms: ScopePolicy) -> None:
    assert code(terms, "10.2.0.1") == "outside_time_window"
    assert code(terms, "10.2.0.1", now=MIDNIGHT) is None
    assert code(terms, "10.2.3.1") is None, "one of its two windows is open"
    assert code(terms, "10.0.0.1", "10.2.0.1") == "outside_time_window"
    with pytest.raises(RefusedError) as caught:
        ask(terms, "10.2.2.0/23")
    assert caught.value.details["next_opening"] == "2026-11-23T22:00+00:00"
    assert caught.value.details["retry_after"] == 10 * 3600 + 1
    assert "10.2.0.0/16 (line 11)" in caught.value.message


def test_a_time_without_an_offset_is_an_error(terms: ScopePolicy) -> None:
    with pytest.raises(ValueError, match="offset"):
        ask(terms, "10.2.0.1", now=datetime(2026, 11, 23, 23))  # noqa: DTZ001 - that is the point


# limits


def test_the_error_for_the_size_has_both_numbers(terms: ScopePolicy) -> None:
    assert code(terms, "10.0.0.1", addresses=10, ports=100) is None
    with pytest.raises(RefusedError) as caught:
        ask(terms, "10.0.0.1", addresses=11, ports=100)
    assert caught.value.code == "budget_exceeded"
    assert caught.value.message == "11 addresses x 100 ports are 1100; the policy allows 1000 per call."
    assert (caught.value.details["limit"], caught.value.details["asked"]) == (1000, 1100)
    assert code(terms, "10.0.0.1", addresses=1001, ports=0) == "budget_exceeded", (
        "without ports, an address counts once"
    )
    with pytest.raises(RefusedError) as caught:
        ask(terms, "10.0.0.1", probes=2001)
    assert caught.value.message == "The call needs up to 2001 packets; the policy allows 2000 per call."


def test_scope_risk_time_and_size_are_checked_in_this_order(terms: ScopePolicy) -> None:
    everything: dict[str, Any] = {"risk": Risk.INTRUSIVE, "addresses": 10**6}
    assert code(terms, "8.8.8.8", **everything) == "target_out_of_scope"
    assert code(terms, "10.2.0.1", **everything) == "risk_not_allowed"
    assert code(terms, "10.2.0.1", **everything | {"risk": Risk.SCAN}) == "outside_time_window"
    assert code(terms, "10.2.0.1", **everything | {"risk": Risk.SCAN, "now": MIDNIGHT}) == "budget_exceeded"


def test_a_list_of_entries_has_no_terms() -> None:
    policy = ScopePolicy.from_entries(["RFC1918", ".lab.internal"])
    grant = ask(policy, "10.0.0.0/8", names=("a.lab.internal",), risk=Risk.INTRUSIVE, addresses=10**9, probes=10**12)
    assert grant == Grant(grant.entries, None)
    assert code(policy, "127.0.0.1") == "target_out_of_scope"


# ranges that no policy can allow


@pytest.mark.parametrize(("network", "words"), ALWAYS_REFUSED, ids=[str(network) for network, _ in ALWAYS_REFUSED])
def test_no_policy_file_allows_a_refused_range(network: Network, words: str, tmp_path: Path) -> None:
    # An IPv4-mapped address is not an entry.
    mapped = getattr(network[0], "ipv4_mapped", None) is not None
    wanted = [] if mapped else dict.fromkeys((str(network), str(network[0])))
    lines = "".join(f"  - '{text.removesuffix('/128')}'\n" for text in wanted)
    file = tmp_path / "policy.yaml"
    file.write_text(
        f"version: 1\ndefaults: {{max_risk: intrusive}}\nallow:\n  - 0.0.0.0/0\n  - '::/0'\n  - loopback\n{lines}"
        if network.num_addresses > 1
        else "version: 1\nallow: [0.0.0.0/0, '::/0', loopback, '::']\n"
    )
    policy = ScopePolicy.from_file(file)
    for part in (network, ip_network(network[0]), ip_network(network[-1]), network.supernet()):
        assert code(policy, str(part)) == "target_out_of_scope"
        assert words in policy.check_network(part).reason or part == network.supernet()
    assert {text.removesuffix("/128") for text in wanted} <= set(policy.without_effect)


@pytest.mark.no_cover
@given(st.lists(st.tuples(st.ip_addresses(), st.integers(0, 128)), max_size=6), st.ip_addresses())
@settings(max_examples=300, deadline=None)
def test_no_set_of_entries_allows_a_refused_range(entries: list[tuple[Any, int]], asked: Any) -> None:
    networks = [ip_network((address, min(length, address.max_prefixlen)), strict=False) for address, length in entries]
    texts = [text for text in map(str, networks) if not text.startswith("::ffff:")]
    policy = ScopePolicy.from_entries([*texts, "0.0.0.0/0", "::/0", "loopback"])
    inside = any(asked in network for network, _ in ALWAYS_REFUSED if network.version == asked.version)
    assert policy.check_address(asked).allowed is not inside
    sets = policy.guard_sets()
    for network, _ in ALWAYS_REFUSED:
        excluded = sets.exclude4 if network.version == 4 else sets.exclude6
        assert any(network.subnet_of(each) for each in excluded)  # type: ignore[arg-type] # one version on each side
