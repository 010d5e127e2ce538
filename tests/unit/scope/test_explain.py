"""The explanation of a target: the same decisions as for a call, without starting anything."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mcp_server.model.run import Risk
from mcp_server.scope.explain import describe, explain
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.resolver import CachingResolver, SystemResolver
from tests.unit.scope.loopback_dns import Zone

MONDAY_NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


async def say(
    text: str, policy: ScopePolicy, resolver: SystemResolver, risk: Risk = Risk.PASSIVE, now: datetime = MONDAY_NOON
) -> dict[str, Any]:
    return await explain(text, policy, resolver, now=now, risk=risk, allow_intrusive=True)


async def test_an_intrusive_risk_needs_the_setting_too(policy: ScopePolicy, resolver: SystemResolver) -> None:
    for risk, allow_intrusive, code in (
        (Risk.INTRUSIVE, False, "intrusive_not_allowed"),
        (Risk.INTRUSIVE, True, None),
        (Risk.SCAN, False, None),
    ):
        answer = await explain(
            "10.0.0.1", policy, resolver, now=MONDAY_NOON, risk=risk, allow_intrusive=allow_intrusive
        )
        assert (answer["allowed"], answer["code"]) == (code is None, code)
        assert answer["addresses"] == ["10.0.0.1"]


async def test_an_address_is_explained_by_its_entry(policy: ScopePolicy, resolver: SystemResolver) -> None:
    assert await say("10.0.0.1", policy, resolver) == {
        "target": "10.0.0.1",
        "allowed": True,
        "code": None,
        "hint": None,
        "reason": "10.0.0.1 is allowed by RFC1918.",
        "entries": ["RFC1918"],
        "name": None,
        "addresses": ["10.0.0.1"],
        "count": 1,
        "resolved": None,
        "max_risk": "intrusive",
        "packets_per_second": None,
        "policy_entries": [
            {"entry": "RFC1918", "line": None, "max_risk": "intrusive", "packets_per_second": None, "windows": []}
        ],
        "windows": [],
    }


async def test_a_network_larger_than_any_call_may_scan_is_still_explained(
    policy: ScopePolicy, resolver: SystemResolver
) -> None:
    answer = await say("10.0.0.0/8", policy, resolver)
    assert (answer["allowed"], answer["addresses"], answer["count"]) == (True, ["10.0.0.0/8"], 2**24)


async def test_a_name_is_explained_by_its_suffix_and_the_entries_for_its_addresses(
    zone: Zone, resolver: SystemResolver
) -> None:
    policy = ScopePolicy.from_entries(["RFC1918", "fd77::/64", ".lab.internal"])
    zone.records["host.lab.internal"] = ["A 10.77.0.5", "AAAA fd77::5"]
    answer = await say("Host.lab.internal", policy, resolver)
    assert answer["entries"] == [".lab.internal", "RFC1918", "fd77::/64"]
    assert answer["name"] == "host.lab.internal"
    assert answer["addresses"] == ["10.77.0.5", "fd77::5"]
    assert answer["count"] == 2
    assert answer["reason"] == (
        "host.lab.internal (10.77.0.5, fd77::5) is allowed by .lab.internal, RFC1918, fd77::/64."
    )
    assert answer["resolved"] == {
        "name": "host.lab.internal",
        "addresses": ["10.77.0.5", "fd77::5"],
        "aliases": [],
        "ttl": 60,
        "source": "127.0.0.1",
    }


async def test_a_caching_resolver_asks_once_for_two_explanations(
    zone: Zone, policy: ScopePolicy, resolver: SystemResolver
) -> None:
    zone.records["host.lab.internal"] = []
    zone.changing["host.lab.internal.", "A"] = [["A 10.77.0.5"], ["A 8.8.8.8"]]
    once = CachingResolver(resolver)
    for _ in range(2):
        answer = await explain("host.lab.internal", policy, once, now=MONDAY_NOON, allow_intrusive=True)
        assert answer["addresses"] == ["10.77.0.5"]
    assert len(zone.questions) == 2, "expected one question for A and one for AAAA"
    for _ in range(2):
        assert (await explain("gone.lab.internal", policy, once, now=MONDAY_NOON, allow_intrusive=True))[
            "code"
        ] == "target_unresolvable"
    assert len(zone.questions) == 4


async def test_a_refusal_is_explained_with_its_code_and_hint(policy: ScopePolicy, resolver: SystemResolver) -> None:
    answer = await say("8.8.8.8", policy, resolver)
    assert answer["allowed"] is False
    assert answer["code"] == "target_out_of_scope"
    assert "RFC1918" in answer["reason"]
    assert answer["hint"]
    assert (answer["entries"], answer["addresses"], answer["count"]) == ([], [], 0)


async def test_an_unresolvable_name_and_an_invalid_text_raise_nothing(
    policy: ScopePolicy, resolver: SystemResolver
) -> None:
    assert (await say("gone.lab.internal", policy, resolver))["code"] == "target_unresolvable"
    answer = await say("10.0.0.1\x1b[31m", policy, resolver)
    assert answer["code"] == "forbidden_characters"
    assert "\x1b" not in json.dumps(answer, ensure_ascii=False)


TERMS = """
version: 1
name: terms
defaults: {max_risk: scan}
windows:
  nights: {days: mon-fri, from: 22:00, to: 06:00}
allow:
  - 10.0.0.0/8
  - {network: 10.1.0.0/16, max_risk: probe, packets_per_second: 50, windows: [nights]}
exclude: [10.1.0.13]
limits: {packets_per_second: 1000, packets_per_hour: 100000}
resolvers: [10.0.0.53]
"""


async def test_terms_are_explained_by_the_strictest_entry_and_its_window(
    tmp_path: Path, resolver: SystemResolver
) -> None:
    (tmp_path / "policy.yaml").write_text(TERMS)
    policy = ScopePolicy.from_file(tmp_path / "policy.yaml")
    plain = await say("10.2.0.1", policy, resolver, Risk.SCAN)
    assert (plain["allowed"], plain["max_risk"], plain["packets_per_second"]) == (True, "scan", 1000.0)
    assert plain["policy_entries"][0]["line"] == 8
    both = await say("10.0.0.0/15", policy, resolver)
    assert (both["allowed"], both["code"]) == (False, "target_out_of_scope"), "the network contains an exclusion"
    closed = await say("10.1.1.0/24", policy, resolver)
    assert (closed["allowed"], closed["code"], closed["max_risk"]) == (False, "outside_time_window", "probe")
    assert closed["packets_per_second"] == 50.0
    assert closed["windows"] == [
        {
            "name": "nights",
            "when": "mon, tue, wed, thu, fri 22:00-06:00 UTC",
            "open": False,
            "next_opening": "2026-11-23T22:00+00:00",
        }
    ]
    night = MONDAY_NOON.replace(hour=23)
    opened = await say("10.1.1.0/24", policy, resolver, now=night)
    assert (opened["allowed"], opened["windows"][0]["open"]) == (True, True)
    assert (await say("10.1.1.0/24", policy, resolver, Risk.SCAN, night))["code"] == "risk_not_allowed"
    about = describe(policy, MONDAY_NOON)
    assert (about["name"], about["exclude"], about["resolvers"]) == ("terms", ["10.1.0.13"], ["10.0.0.53"])
    assert about["limits"]["packets_per_hour"] == 100000
    assert [line["entry"] for line in about["allow"]] == ["10.0.0.0/8", "10.1.0.0/16"]
    assert about["windows"][0]["open"] is False
