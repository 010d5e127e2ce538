"""Pinning with a real DNS server: one look-up per name, a check of every answer, every address counted once."""

from __future__ import annotations

import time
from ipaddress import IPv4Network, ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server.errors import ArgumentError, RefusedError, TargetError
from mcp_server.model.target import Evidence, Targets
from mcp_server.scope.pinning import LOOKUPS_AT_ONCE, pin_targets
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.resolver import SystemResolver
from tests.unit.scope.loopback_dns import Zone

HOST = "host.lab.internal"
ASKED_ONCE = [(f"{HOST}.", "A"), (f"{HOST}.", "AAAA")]


async def pin(policy: ScopePolicy, resolver: SystemResolver, *texts: str, limit: int = 1024) -> Targets:
    return await pin_targets(texts, policy, resolver, max_addresses=limit)


async def refusal(policy: ScopePolicy, resolver: SystemResolver, *texts: str, limit: int = 1024) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        await pin(policy, resolver, *texts, limit=limit)
    return caught.value


# names


async def test_a_name_is_pinned_to_its_address(zone: Zone, policy: ScopePolicy, resolver: SystemResolver) -> None:
    zone.records[HOST] = ["A 10.77.0.5"]
    targets = await pin(policy, resolver, "HOST.lab.internal.")
    (target,) = targets.items
    assert targets.canonical() == ("10.77.0.5",)
    assert (target.name, target.given, target.count) == (HOST, "HOST.lab.internal.", 1)
    assert sorted(zone.questions) == ASKED_ONCE


async def test_all_addresses_of_a_name_are_pinned_in_a_stable_order(
    zone: Zone, policy: ScopePolicy, resolver: SystemResolver
) -> None:
    zone.records[HOST] = ["A 10.77.0.9", "A 10.77.0.5", "A 192.168.1.1"]
    assert (await pin(policy, resolver, HOST)).canonical() == ("10.77.0.5", "10.77.0.9", "192.168.1.1")


async def test_ipv6_answers_need_their_own_entry(zone: Zone, policy: ScopePolicy, resolver: SystemResolver) -> None:
    zone.records[HOST] = ["A 10.77.0.5", "AAAA fd77::5"]
    error = await refusal(policy, resolver, HOST)
    assert error.code == "target_out_of_scope"
    assert error.message.startswith(f"{HOST} resolves out of scope: fd77::5 is outside the scope")
    wider = ScopePolicy.from_entries([*policy.entries, "fd77::/64"])
    assert (await pin(wider, resolver, HOST)).canonical() == ("10.77.0.5", "fd77::5")


@pytest.mark.parametrize(
    ("records", "offender"),
    [
        (["A 10.77.0.5", "A 8.8.8.8"], "8.8.8.8"),
        (["A 8.8.8.8", "A 1.1.1.1"], "1.1.1.1"),
        (["A 10.77.0.5", "A 169.254.169.254"], "169.254.169.254"),
        (["A 127.0.0.1"], "127.0.0.1"),
        (["A 0.0.0.0"], "0.0.0.0"),
        (
            ["A 10.77.0.5", "AAAA ::ffff:10.77.0.5"],
            str(ip_address("::ffff:a4d:5")),
        ),  # the spelling of Python before 3.13
        (["AAAA 64:ff9b::a4d:5"], "64:ff9b::a4d:5"),
        (["CNAME alias.lab.internal."], "8.8.4.4"),
    ],
)
async def test_one_answer_out_of_scope_refuses_the_name(
    records: list[str], offender: str, zone: Zone, policy: ScopePolicy, resolver: SystemResolver
) -> None:
    zone.records |= {HOST: records, "alias.lab.internal": ["A 10.77.0.5", "A 8.8.4.4"]}
    error = await refusal(policy, resolver, "10.77.0.1", HOST)
    assert error.code == "target_out_of_scope"
    assert f"{HOST} resolves out of scope: {offender} " in error.message


async def test_cnames_are_followed(zone: Zone, policy: ScopePolicy, resolver: SystemResolver) -> None:
    zone.records |= {
        HOST: ["CNAME a.lab.internal."],
        "a.lab.internal": ["CNAME b.lab.internal."],
        "b.lab.internal": ["A 10.77.0.7"],
    }
    (target,) = (await pin(policy, resolver, HOST)).items
    assert (target.name, target.canonical()) == (HOST, ("10.77.0.7",))
    assert sorted(zone.questions) == ASKED_ONCE


@pytest.mark.parametrize(
    "records",
    [
        {},
        {HOST: []},
        {HOST: ["CNAME gone.lab.internal."]},
        {HOST: ["CNAME dangling.example."]},
        {HOST: [f"CNAME {HOST}."]},
        {HOST: ["CNAME a.lab.internal."], "a.lab.internal": [f"CNAME {HOST}."]},
    ],
    ids=["nxdomain", "no-address", "alias-of-nothing", "dangling-alias", "alias-of-itself", "alias-loop"],
)
async def test_a_name_without_an_address_is_unresolvable(
    records: dict[str, list[str]], zone: Zone, policy: ScopePolicy, resolver: SystemResolver
) -> None:
    zone.records |= records
    error = await refusal(policy, resolver, HOST)
    assert error.code == "target_unresolvable"
    assert HOST in error.message
    assert sorted(zone.questions) == ASKED_ONCE


async def test_a_silent_name_server_ends_in_a_timeout(zone: Zone, policy: ScopePolicy) -> None:
    zone.silent |= {(f"{HOST}.", "A"), (f"{HOST}.", "AAAA")}
    resolver = SystemResolver(["127.0.0.1"], port=zone.port, lifetime=0.3, hosts_file=None)
    start = time.monotonic()
    error = await refusal(policy, resolver, HOST)
    assert 0.25 < time.monotonic() - start < 3
    assert error.code == "target_unresolvable"
    assert error.message == f"{HOST} cannot be resolved: no name server answered in time."
    assert error.retryable


@pytest.mark.parametrize("kind", ["A", "AAAA"])
async def test_a_name_with_one_failed_question_is_refused(kind: str, zone: Zone) -> None:
    """Otherwise a scan would silently omit the addresses of the other IP version."""
    policy = ScopePolicy.from_entries(["RFC1918", "fd77::/64", ".lab.internal"])
    resolver = SystemResolver(["127.0.0.1"], port=zone.port, lifetime=0.3, hosts_file=None)
    zone.records[HOST] = ["A 10.77.0.5", "AAAA fd77::5"]
    assert (await pin(policy, resolver, HOST)).count == 2
    zone.silent.add((f"{HOST}.", kind))
    assert (await refusal(policy, resolver, HOST)).code == "target_unresolvable"
    zone.silent.clear()
    zone.broken.add((f"{HOST}.", kind))
    error = await refusal(policy, resolver, HOST)
    assert error.message == f"{HOST} cannot be resolved: the name servers gave no usable answer."


async def test_dns_rebinding_does_not_change_pinned_targets(
    zone: Zone, policy: ScopePolicy, resolver: SystemResolver
) -> None:
    zone.records[HOST] = []
    zone.changing[f"{HOST}.", "A"] = [["A 10.77.0.5"], ["A 8.8.8.8"]]
    targets = await pin(policy, resolver, HOST, HOST)
    assert sorted(zone.questions) == ASKED_ONCE
    assert targets.canonical() == ("10.77.0.5",)
    assert (await refusal(policy, resolver, HOST)).code == "target_out_of_scope"
    assert targets.canonical() == ("10.77.0.5",)


# evidence


async def test_the_evidence_has_the_addresses_the_aliases_and_the_server(
    zone: Zone, resolver: SystemResolver, policy: ScopePolicy
) -> None:
    zone.records |= {
        HOST: ["CNAME A.lab.internal."],
        "A.lab.internal": ["CNAME b.lab.internal."],
        "b.lab.internal": ["A 10.77.0.9", "A 10.77.0.5"],
    }
    (target, literal) = (await pin(policy, resolver, HOST, "10.0.0.1")).items
    assert target.evidence is not None
    assert target.evidence.as_dict() == {
        "name": HOST,
        "addresses": ["10.77.0.5", "10.77.0.9"],
        "aliases": ["a.lab.internal", "b.lab.internal"],
        "ttl": 60,
        "source": "127.0.0.1",
    }
    assert literal.evidence is None


async def test_evidence_from_the_hosts_file_names_the_file(policy: ScopePolicy, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(f"10.77.0.5 {HOST}\n")
    (target,) = (await pin(policy, SystemResolver([], hosts_file=hosts), HOST)).items
    assert target.evidence is not None
    assert (target.evidence.source, target.evidence.ttl) == (str(hosts), None)


async def test_the_evidence_is_that_of_the_first_answer(
    zone: Zone, policy: ScopePolicy, resolver: SystemResolver
) -> None:
    zone.records[HOST] = []
    zone.changing[f"{HOST}.", "A"] = [["A 10.77.0.5"], ["A 10.77.0.6"]]
    first = await pin(policy, resolver, HOST)
    second = await pin(policy, resolver, HOST)
    for targets, address in ((first, "10.77.0.5"), (second, "10.77.0.6")):
        (target,) = targets.items
        assert target.evidence is not None
        assert targets.canonical() == (address,) == tuple(map(str, target.evidence.addresses))


async def test_an_alias_that_is_excluded_refuses_the_name(zone: Zone, resolver: SystemResolver, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("version: 1\nallow: [RFC1918, .lab.internal]\nexclude: [.hr.lab.internal]\n")
    strict = ScopePolicy.from_file(file)
    zone.records |= {HOST: ["CNAME db.HR.lab.internal."], "db.HR.lab.internal": ["A 10.77.0.5"]}
    error = await refusal(strict, resolver, HOST)
    assert error.code == "target_out_of_scope"
    assert "db.hr.lab.internal is excluded by .hr.lab.internal (line 3)" in error.message
    assert (await refusal(strict, resolver, "db.hr.lab.internal")).code == "target_out_of_scope"


async def test_only_the_resolvers_of_the_policy_are_asked(zone: Zone, tmp_path: Path) -> None:
    """If the policy names resolvers, neither resolv.conf nor the hosts file is used."""
    file = tmp_path / "policy.yaml"
    file.write_text("version: 1\nallow: [RFC1918, .lab.internal]\nresolvers: [127.0.0.1, 10.0.0.53]\n")
    policy = ScopePolicy.from_file(file)
    made = SystemResolver.of(policy)
    assert made._nameservers == ["127.0.0.1", "10.0.0.53"]
    assert made._hosts_file is None
    made._port = zone.port  # the test server cannot listen on port 53
    zone.records["localhost.lab.internal"] = ["A 10.77.0.5"]
    assert (await pin(policy, made, "localhost.lab.internal")).canonical() == ("10.77.0.5",)
    default = SystemResolver.of(ScopePolicy.from_entries(["RFC1918"]))
    assert (default._nameservers, str(default._hosts_file)) == (None, "/etc/hosts")


# no question for a refused call


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        (["www.example.com"], "target_out_of_scope"),
        ([HOST, "www.example.com"], "target_out_of_scope"),
        ([HOST, "8.8.8.8"], "target_out_of_scope"),
        ([HOST, "10.0.0.01"], "invalid_target"),
        ([HOST, "10.0.0.0/8"], "too_many_targets"),
        ([], "invalid_target"),
    ],
)
async def test_a_refused_call_asks_no_name_server(
    texts: list[str], code: str, zone: Zone, policy: ScopePolicy, resolver: SystemResolver
) -> None:
    zone.records[HOST] = ["A 10.77.0.5"]
    assert (await refusal(policy, resolver, *texts)).code == code
    assert zone.questions == []


async def test_an_unsafe_text_is_an_argument_error(policy: ScopePolicy, resolver: SystemResolver) -> None:
    assert isinstance(await refusal(policy, resolver, "10.0.0.1;id"), ArgumentError)


async def test_more_names_than_addresses_allowed_are_not_asked(
    zone: Zone, policy: ScopePolicy, resolver: SystemResolver
) -> None:
    error = await refusal(policy, resolver, *[f"h{n}.lab.internal" for n in range(9)], limit=8)
    assert error.message == "The targets contain 9 names; the limit for this call is 8."
    assert zone.questions == []


async def test_many_names_are_resolved_and_the_first_failure_is_the_one_reported(
    zone: Zone, policy: ScopePolicy, resolver: SystemResolver
) -> None:
    names = [f"h{n}.lab.internal" for n in range(3 * LOOKUPS_AT_ONCE)]
    zone.records |= {name: [f"A 10.77.1.{n}"] for n, name in enumerate(names)}
    assert (await pin(policy, resolver, *names)).canonical() == tuple(f"10.77.1.{n}" for n in range(len(names)))
    zone.questions.clear()
    for n in (9, 5, LOOKUPS_AT_ONCE):
        zone.records[names[n]] = ["A 8.8.8.8"]
    assert names[5] in (await refusal(policy, resolver, *names)).message
    assert {name for name, _ in zone.questions} == {f"{name}." for name in names[:LOOKUPS_AT_ONCE]}


# the sources of names: resolv.conf and the hosts file


async def test_resolv_conf_is_used_without_its_search_domains(zone: Zone, policy: ScopePolicy, tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\nsearch elsewhere.example\noptions ndots:5\n")
    resolver = SystemResolver(port=zone.port, lifetime=2.0, hosts_file=None, resolv_conf=conf)
    assert (await refusal(policy, resolver, HOST)).code == "target_unresolvable"
    assert sorted(zone.questions) == ASKED_ONCE
    zone.records[HOST] = ["A 10.77.0.5"]
    assert (await pin(policy, resolver, HOST)).canonical() == ("10.77.0.5",)


@pytest.mark.parametrize("content", [None, "# nothing here\n", "nameserver 10.0.0\n"])
async def test_the_error_says_that_the_host_has_no_name_servers(
    content: str | None, policy: ScopePolicy, tmp_path: Path
) -> None:
    conf = tmp_path / "resolv.conf"
    if content is not None:
        conf.write_text(content)
    error = await refusal(policy, SystemResolver(hosts_file=None, resolv_conf=conf), HOST)
    assert error.code == "target_unresolvable"
    assert "no usable name server configured" in error.message


async def test_the_hosts_file_answers_before_dns(zone: Zone, policy: ScopePolicy, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "10.77.0.9 other.lab.internal # commented.lab.internal\n"
        "127.0.0.1\tlocalhost\n"
        "10.77.0.5  nas HOST.lab.internal  # the store\n"
        "10.77.0.6\thost.lab.internal\n"
        "8.8.8.8 public.lab.internal\n"
        "10.1 short.lab.internal\n"
        "fd77::1%eth0 zone.lab.internal\n"
        "10.77.0.0/24 net.lab.internal\n"
        "10.77.0.7\n"
    )
    zone.records |= {
        HOST: ["A 10.77.0.99"],
        "dns.lab.internal": ["A 10.77.0.8"],
        "commented.lab.internal": ["A 10.77.0.4"],
    }
    resolver = SystemResolver(["127.0.0.1"], port=zone.port, lifetime=2.0, hosts_file=hosts)
    assert (await pin(policy, resolver, HOST)).canonical() == ("10.77.0.5", "10.77.0.6")
    assert zone.questions == []
    assert (await refusal(policy, resolver, "public.lab.internal")).code == "target_out_of_scope"
    for bad, line in (("short", "line 6"), ("zone", "line 7"), ("net", "line 8")):
        error = await refusal(policy, resolver, f"{bad}.lab.internal")
        assert error.code == "target_unresolvable"
        assert line in error.message
    assert zone.questions == []
    assert (await pin(policy, resolver, "dns.lab.internal")).canonical() == ("10.77.0.8",)
    assert (await pin(policy, resolver, "commented.lab.internal")).canonical() == ("10.77.0.4",)


async def test_a_missing_hosts_file_is_an_empty_one(zone: Zone, policy: ScopePolicy, tmp_path: Path) -> None:
    zone.records[HOST] = ["A 10.77.0.5"]
    resolver = SystemResolver(["127.0.0.1"], port=zone.port, lifetime=2.0, hosts_file=tmp_path / "none")
    assert (await pin(policy, resolver, HOST)).count == 1


# counting


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["10.0.0.1", "10.0.0.1"], [("10.0.0.1",), ()]),
        (["10.0.0.5", "10.0.0.0/24"], [(), ("10.0.0.0/24",)]),
        (["10.0.0.0/24", "10.0.0.5"], [("10.0.0.0/24",), ()]),
        (["10.0.0.0/25", "10.0.0.128/25"], [("10.0.0.0/25",), ("10.0.0.128/25",)]),
        (["10.0.0.0/26", "10.0.0.0/24", "10.0.0.0/25"], [(), ("10.0.0.0/24",), ()]),
        (["10.77.0.4/30", HOST], [("10.77.0.4/30",), ("10.77.0.9",)]),
        ([HOST, "10.77.0.5"], [("10.77.0.5", "10.77.0.9"), ()]),
        ([HOST, "other.lab.internal"], [("10.77.0.5", "10.77.0.9"), ()]),
    ],
)
async def test_no_address_is_counted_twice(
    texts: list[str], expected: list[tuple[str, ...]], zone: Zone, policy: ScopePolicy, resolver: SystemResolver
) -> None:
    zone.records |= {HOST: ["A 10.77.0.5", "A 10.77.0.9"], "other.lab.internal": ["A 10.77.0.9"]}
    targets = await pin(policy, resolver, *texts)
    assert [item.canonical() for item in targets.items] == expected
    assert [item.given for item in targets.items] == texts


async def test_the_limit_counts_addresses_after_collapsing(
    zone: Zone, policy: ScopePolicy, resolver: SystemResolver
) -> None:
    assert (await pin(policy, resolver, "10.0.0.0/24", "10.0.0.7", limit=256)).count == 256
    error = await refusal(policy, resolver, "10.0.0.0/24", "10.0.1.0", limit=256)
    assert error.code == "too_many_targets"
    assert error.message == "The targets contain 257 addresses; the limit for this call is 256."
    assert (error.details["count"], error.details["limit"]) == (257, 256)
    zone.records[HOST] = ["A 10.77.0.5", "A 10.77.0.6"]
    error = await refusal(policy, resolver, HOST, limit=1)
    assert (error.code, error.details["count"]) == ("too_many_targets", 2)


class NoAnswers:
    """A resolver that finds nothing and breaks its contract by not raising."""

    async def lookup(self, name: str) -> Evidence:
        assert name == HOST
        return Evidence(name, ())


async def test_an_empty_lookup_is_refused(policy: ScopePolicy) -> None:
    with pytest.raises(TargetError) as caught:
        await pin_targets([HOST], policy, NoAnswers(), max_addresses=10)
    assert caught.value.code == "target_unresolvable"


@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 6)), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
async def test_the_pinned_networks_are_the_union_of_the_given_ones(blocks: list[tuple[int, int]]) -> None:
    policy = ScopePolicy.from_entries(["10.0.0.0/26"])
    networks = [IPv4Network((f"10.0.0.{last >> bits << bits}", 32 - bits)) for last, bits in blocks]
    targets = await pin_targets([str(n) for n in networks], policy, NoAnswers(), max_addresses=64)
    pinned = [address for item in targets.items for network in item.networks for address in network]
    assert len(pinned) == len(set(pinned)) == targets.count
    assert set(pinned) == {address for network in networks for address in network}
