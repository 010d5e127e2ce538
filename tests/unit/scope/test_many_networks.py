"""A policy of 100,000 networks: its verdicts are those of a table of all prefixes."""

from __future__ import annotations

import asyncio
import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path

import pytest

from mcp_server.errors import TargetError
from mcp_server.model.target import Network
from mcp_server.scope.pinning import pin_targets
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.resolver import SystemResolver
from mcp_server.scope.special_networks import ALWAYS_REFUSED
from mcp_server.scope.verdict import Verdict

pytestmark = pytest.mark.no_cover

COUNT = 100_000
RNG = random.Random(20261122)  # noqa: S311 - test data


def some_network() -> Network:
    if RNG.random() < 0.2:
        length = RNG.choice([32, 48, 56, 64, 128])
        return IPv6Network(((0xFD << 120 | RNG.getrandbits(120)) >> (128 - length) << (128 - length), length))
    length = RNG.choice([12, 16, 20, 22, 24, 24, 26, 28, 32])
    return IPv4Network((RNG.getrandbits(32) >> (32 - length) << (32 - length), length))


@pytest.fixture(scope="module")
def networks() -> list[Network]:
    found: dict[Network, None] = {}
    while len(found) < COUNT:
        found[some_network()] = None
    return list(found)


@pytest.fixture(scope="module")
def policy(networks: list[Network], tmp_path_factory: pytest.TempPathFactory) -> ScopePolicy:
    file = tmp_path_factory.mktemp("many") / "policy.yaml"
    file.write_text("version: 1\nallow:\n" + "".join(f"- {network}\n" for network in networks))
    return ScopePolicy.from_file(file)


def by_table(table: dict[tuple[int, int, int], str], network: Network) -> str | None:
    """The narrowest prefix that contains the network, by looking each prefix up."""
    width = network.max_prefixlen
    first = int(network.network_address)
    for length in range(network.prefixlen, -1, -1):
        found = table.get((network.version, length, first >> (width - length)))
        if found is not None:
            return found
    return None


def test_every_verdict_is_that_of_a_table_of_all_prefixes(policy: ScopePolicy, networks: list[Network]) -> None:
    assert policy.size == COUNT
    table: dict[tuple[int, int, int], str] = {
        (net.version, net.prefixlen, int(net.network_address) >> (net.max_prefixlen - net.prefixlen)): (
            str(net.network_address) if net.num_addresses == 1 else str(net)
        )
        for net in networks
    }
    loopback = (IPv4Network("127.0.0.0/8"), IPv6Network("::1"))
    asked: list[Network] = [ip_network(net.network_address) for net in RNG.sample(networks, 3000)]
    asked += [ip_network(net.broadcast_address) for net in RNG.sample(networks, 3000)]
    asked += [IPv4Network(RNG.getrandbits(32)) for _ in range(3000)]
    asked += [IPv6Network(0xFD << 120 | RNG.getrandbits(120)) for _ in range(1000)]
    allowed = 0
    for each in asked:
        if any(each.overlaps(other) for other in loopback if other.version == each.version):
            continue
        verdict = policy.check_network(each)
        refused = any(each.subnet_of(net) for net, _ in ALWAYS_REFUSED if net.version == each.version)  # type: ignore[arg-type] # one version on each side
        expected = None if refused else by_table(table, each)
        assert verdict.allowed_by == expected, each
        allowed += verdict.allowed
    assert 4000 < allowed < 9990


def test_a_network_is_allowed_if_each_of_its_addresses_is(policy: ScopePolicy, networks: list[Network]) -> None:
    small = [net for net in networks if net.version == 4 and 24 <= net.prefixlen <= 28]
    spans = [net.supernet(new_prefix=net.prefixlen - RNG.choice([0, 1, 2])) for net in RNG.sample(small, 300)]
    seen = set()
    for span in spans:
        expected = all(policy.check_address(address).allowed for address in span)
        assert policy.check_network(span).allowed is expected
        seen.add(expected)
    assert seen == {True, False}


def test_the_guard_sets_have_the_same_addresses(policy: ScopePolicy, networks: list[Network]) -> None:
    sets = policy.guard_sets()
    lows = [int(net.network_address) for net in sets.allow4]
    assert lows == sorted(lows)
    holes = [net for net in sets.allow4 if net.overlaps(IPv4Network("127.0.0.0/8"))]
    assert holes == []
    total = sum(int(net.broadcast_address) - int(net.network_address) + 1 for net in sets.allow4)
    covered = sum(last - first + 1 for first, last in _union([net for net in networks if isinstance(net, IPv4Network)]))
    in_loopback = sum(
        min(last, int(IPv4Address("127.255.255.255"))) - max(first, int(IPv4Address("127.0.0.0"))) + 1
        for first, last in _union([net for net in networks if isinstance(net, IPv4Network)])
        if first <= int(IPv4Address("127.255.255.255")) and last >= int(IPv4Address("127.0.0.0"))
    )
    assert total == covered - in_loopback
    assert all(isinstance(net.network_address, IPv6Address) for net in sets.allow6)


def _union(networks: list[IPv4Network]) -> list[tuple[int, int]]:
    from ipaddress import collapse_addresses

    return [(int(net.network_address), int(net.broadcast_address)) for net in collapse_addresses(networks)]


def test_the_hash_does_not_depend_on_their_order(policy: ScopePolicy, networks: list[Network], tmp_path: Path) -> None:
    shuffled = list(networks)
    RNG.shuffle(shuffled)
    file = tmp_path / "policy.yaml"
    file.write_text("version: 1\nallow:\n" + "".join(f'  - "{network}"\n' for network in shuffled))
    assert ScopePolicy.from_file(file).hash == policy.hash
    file.write_text("version: 1\nallow:\n" + "".join(f"  - {network}\n" for network in shuffled[1:]))
    assert ScopePolicy.from_file(file).hash != policy.hash


async def test_of_too_many_wide_networks_only_a_few_are_judged(
    networks: list[Network], policy: ScopePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Network] = []
    real = policy.check_network

    def check(network: Network) -> Verdict:
        judged.append(network)
        return real(network)

    monkeypatch.setattr(policy, "check_network", check)
    resolver = SystemResolver.of(policy)
    with pytest.raises(TargetError):
        await pin_targets(["10.0.0.0/8"] * 64, policy, resolver, max_addresses=65536)
    assert judged == [ip_network("10.0.0.0/8")], "a repeated network must be judged once"
    judged.clear()
    inside = [str(net) for net in networks if net.version == 4 and real(net).allowed][:64]
    with pytest.raises(TargetError) as caught:
        await pin_targets(inside, policy, resolver, max_addresses=8)
    assert caught.value.code == "too_many_targets"
    assert len(judged) == 8


async def test_other_tasks_run_between_two_targets(networks: list[Network], policy: ScopePolicy) -> None:
    texts = [str(network) for network in networks if network.version == 4 and network.prefixlen == 32][:50]
    texts = [text for text in texts if policy.check_network(ip_network(text)).allowed]
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await pin_targets(texts, policy, SystemResolver.of(policy), max_addresses=1000)
    counting.cancel()
    assert turns >= len(texts) > 10
