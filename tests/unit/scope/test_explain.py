"""Explaining a target takes the same road as a call and starts nothing."""

from __future__ import annotations

import json

from mcp_server.scope.explain import explain
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.resolver import SystemResolver
from tests.unit.scope.loopback_dns import Zone


async def test_an_address_is_explained_by_its_entry(policy: ScopePolicy, resolver: SystemResolver) -> None:
    assert await explain("10.0.0.1", policy, resolver) == {
        "target": "10.0.0.1",
        "allowed": True,
        "code": None,
        "hint": None,
        "reason": "10.0.0.1 is allowed by RFC1918",
        "entries": ["RFC1918"],
        "name": None,
        "addresses": ["10.0.0.1"],
        "count": 1,
        "scope_hash": policy.hash,
    }


async def test_a_network_larger_than_any_call_may_scan_is_still_explained(
    policy: ScopePolicy, resolver: SystemResolver
) -> None:
    answer = await explain("10.0.0.0/8", policy, resolver)
    assert (answer["allowed"], answer["addresses"], answer["count"]) == (True, ["10.0.0.0/8"], 2**24)


async def test_a_name_is_explained_by_its_suffix_and_by_what_allows_its_addresses(
    zone: Zone, resolver: SystemResolver
) -> None:
    policy = ScopePolicy.from_entries(["RFC1918", "fd77::/64", ".lab.internal"])
    zone.records["host.lab.internal"] = ["A 10.77.0.5", "AAAA fd77::5"]
    answer = await explain("Host.lab.internal", policy, resolver)
    assert answer["entries"] == [".lab.internal", "RFC1918", "fd77::/64"]
    assert answer["name"] == "host.lab.internal"
    assert answer["addresses"] == ["10.77.0.5", "fd77::5"]
    assert answer["count"] == 2
    assert answer["reason"] == (
        "host.lab.internal (10.77.0.5, fd77::5) is allowed by .lab.internal, RFC1918, fd77::/64"
    )


async def test_a_refusal_is_explained_with_its_code_and_hint(policy: ScopePolicy, resolver: SystemResolver) -> None:
    answer = await explain("8.8.8.8", policy, resolver)
    assert answer["allowed"] is False
    assert answer["code"] == "target_out_of_scope"
    assert "RFC1918" in answer["reason"]
    assert answer["hint"]
    assert (answer["entries"], answer["addresses"], answer["count"]) == ([], [], 0)


async def test_an_unresolvable_name_and_unreadable_text_are_answers_not_exceptions(
    policy: ScopePolicy, resolver: SystemResolver
) -> None:
    assert (await explain("gone.lab.internal", policy, resolver))["code"] == "target_unresolvable"
    answer = await explain("10.0.0.1\x1b[31m", policy, resolver)
    assert answer["code"] == "forbidden_characters"
    assert "\x1b" not in json.dumps(answer, ensure_ascii=False)
