"""The policy as one actor may use it: the intersection of the policy and the actor's networks."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server.errors import ConfigError
from mcp_server.model.target import Network
from mcp_server.scope.actor_policy import MOST_KEPT, ActorPolicies, ActorPolicy
from mcp_server.scope.policy import ScopePolicy

POLICY = """
version: 1
allow:
  - {network: 10.0.0.0/8, max_risk: scan}
  - {network: 10.1.0.0/16, max_risk: probe}
  - 192.168.0.0/16
  - 127.0.0.0/8
  - .lab.internal
  - host.else.internal
exclude: [10.1.5.0/24, 192.168.9.0/24, printer.lab.internal]
"""


@pytest.fixture
def policy(tmp_path: Path) -> ScopePolicy:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    path.chmod(0o600)
    return ScopePolicy.from_file(path)


def test_the_actors_networks_are_checked_before_the_policy(policy: ScopePolicy) -> None:
    own = ActorPolicy(policy, ["10.1.0.0/16", "172.16.0.0/12", ".build.lab.internal"])
    inside = own.check_network(ip_network("10.1.2.3"))
    assert (inside.allowed, list(map(str, inside.entries))) == (True, ["10.1.0.0/16 (line 5)"])
    outside = own.check_network(ip_network("192.168.1.1"))
    assert outside.reason == (
        "192.168.1.1 is outside the networks of this caller. Allowed: 10.1.0.0/16, 172.16.0.0/12, .build.lab.internal."
    )
    assert outside.code == "target_out_of_scope"
    assert "192.168" not in str(own.check_network(ip_network("10.2.0.0/16")).reason)
    excluded = own.check_network(ip_network("10.1.5.1"))
    assert excluded.reason == "10.1.5.1 is excluded by 10.1.5.0/24 (line 10)."
    theirs = own.check_network(ip_network("172.16.0.1"))
    assert theirs.reason.startswith("172.16.0.1 is outside the scope. Allowed: 10.1.0.0/16, 172.16.0.0/12")
    assert "192.168" not in theirs.reason
    assert not own.check_network(ip_network("169.254.169.254")).allowed


def test_the_hint_names_the_part_that_both_allow(policy: ScopePolicy) -> None:
    own = ActorPolicy(policy, ["10.1.4.0/22"])
    verdict = own.check_network(ip_network("10.1.0.0/16"))
    assert verdict.hint == "Allowed part: 10.1.4.0/24, 10.1.6.0/23."
    assert own.rest_of(ip_network("10.1.0.0/16"), 1) == (ip_network("10.1.4.0/24"),)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("a.build.lab.internal", True),
        ("build.lab.internal", False),
        ("a.lab.internal", False),
        ("a.other.internal", False),
        ("host.else.internal", False),
    ],
)
def test_a_name_must_be_under_a_suffix_of_both(policy: ScopePolicy, name: str, *, allowed: bool) -> None:
    own = ActorPolicy(policy, [".build.lab.internal", ".other.internal"])
    assert own.check_name(name).allowed is allowed


def test_only_entries_that_overlap_the_actors_networks_are_shown(policy: ScopePolicy) -> None:
    own = ActorPolicy(policy, ["10.1.0.0/16", ".build.lab.internal"])
    assert own.entries == ("10.1.0.0/16", ".lab.internal")
    assert own.size == 2
    assert [entry.text for entry in own.policy_entries(1)] == ["10.1.0.0/16"]
    assert own.exclusions == ("10.1.5.0/24",)
    assert own.hash == policy.hash, "the hash must be that of the operator's policy"
    wide = ActorPolicy(policy, ["10.0.0.0/8", "loopback"])
    assert wide.entries == ("10.0.0.0/8", "10.1.0.0/16", "127.0.0.0/8")


def test_loopback_needs_an_entry_of_the_actor_too(policy: ScopePolicy) -> None:
    assert not ActorPolicy(policy, ["0.0.0.0/0"]).check_network(ip_network("127.0.0.1")).allowed
    assert ActorPolicy(policy, ["loopback"]).check_network(ip_network("127.0.0.1")).allowed


def test_no_networks_allow_nothing(policy: ScopePolicy) -> None:
    own = ActorPolicy(policy, [])
    assert not own.check_network(ip_network("10.1.0.1")).allowed
    assert (own.entries, own.exclusions) == ((), ())


def test_a_bad_entry_is_an_error(policy: ScopePolicy) -> None:
    with pytest.raises(ConfigError):
        ActorPolicy(policy, ["10.0.0.1/8"])


def test_the_policy_of_an_actor_is_built_once_per_policy(policy: ScopePolicy) -> None:
    kept = ActorPolicies()
    assert kept.of(policy, None) is policy
    first = kept.of(policy, ("10.0.0.0/8",))
    assert kept.of(policy, ("10.0.0.0/8",)) is first
    for number in range(MOST_KEPT):
        kept.of(policy, (f"10.{number}.0.0/16",))
    assert len(kept._kept) == MOST_KEPT
    assert kept.of(policy, ("10.0.0.0/8",)) is not first
    other = ScopePolicy.from_entries(["192.168.0.0/16"])
    assert not kept.of(other, ("10.0.0.0/8",)).check_network(ip_network("10.0.0.1")).allowed
    assert len(kept._kept) == 1


def _networks() -> st.SearchStrategy[Network]:
    return st.integers(0, 8).flatmap(
        lambda bits: st.integers(0, (1 << bits) - 1).map(
            lambda index: IPv4Network(((10 << 24) | index << (8 - bits), 24 + bits))
        )
    )


@given(st.lists(_networks(), max_size=6), st.lists(_networks(), max_size=6), _networks())
@settings(max_examples=300, deadline=None)
def test_an_address_is_allowed_if_both_allow_it(allowed: list[Network], own: list[Network], asked: Network) -> None:
    policy = ScopePolicy.from_entries(map(str, allowed))
    both = ActorPolicy(policy, map(str, own))
    for network in (asked, ip_network(asked.network_address)):
        expected = all(
            any(address in each for each in allowed) and any(address in each for each in own) for address in network
        )
        assert both.check_network(network).allowed is expected
        rest = {address for part in both.rest_of(network) for address in part}
        assert rest == {a for a in network if any(a in each for each in allowed) and any(a in each for each in own)}
