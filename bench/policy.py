"""Measure a policy of 100,000 networks: reading the file, and one check."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Final

import yaml

from bench.result import Range, Result
from mcp_server.model.target import Network
from mcp_server.scope.policy import ScopePolicy

NETWORKS: Final = 100_000
CHECKS: Final = 20_000
ROUNDS: Final = 5
LOAD_RATIO: Final = 2.5
CHECK_RATIO: Final = 7.0


def measure() -> list[Result]:
    """Measure reading with the hash, compared with PyYAML's C loader alone, and checks of addresses and /24s."""
    networks = _networks()
    with tempfile.TemporaryDirectory(prefix="mcp-bench-") as folder:
        plain, rich = Path(folder, "plain.yaml"), Path(folder, "rich.yaml")
        plain.write_text("version: 1\nallow:\n" + "".join(f"  - {net}\n" for net in networks))
        rich.write_text(
            "version: 1\nallow:\n" + "".join(f"  - {{network: '{net}', max_risk: probe}}\n" for net in networks)
        )
        # The runs alternate, so that other load of the machine affects all of them.
        taken: dict[str, list[float]] = {"floor": [], "plain": [], "rich": []}
        for _ in range(ROUNDS):
            taken["floor"].append(_seconds(lambda: yaml.load(plain.read_text(), yaml.CSafeLoader)))
            taken["plain"].append(_seconds(lambda: ScopePolicy.from_file(plain).hash))
            taken["rich"].append(_seconds(lambda: ScopePolicy.from_file(rich).hash))
        policy = ScopePolicy.from_file(plain)
    notes = (
        f"{Range.of(taken['rich'], 's')} if each network is a mapping with a risk; the floor is yaml.CSafeLoader alone",
    )
    return [
        Result.of_ratio(
            f"policy of {NETWORKS:,} networks, file to hash", taken["plain"], taken["floor"], "s", LOAD_RATIO, notes
        ),
        _checks("addresses in them", policy, [ip_network(net.network_address) for net in networks]),
        _checks(
            "/24s",
            policy,
            [net.supernet(new_prefix=24) for net in networks if net.version == 4 and net.prefixlen >= 24],
        ),
        _checks("addresses anywhere", policy, [IPv4Network(random.getrandbits(32)) for _ in range(CHECKS)]),
    ]


def _checks(what: str, policy: ScopePolicy, networks: list[Network]) -> Result:
    sample = random.Random(2).sample(networks, min(CHECKS, len(networks)))  # noqa: S311 - no secret
    # A set of texts is the simplest structure that can find an address.
    known = {str(net) for net in sample}
    checks, lookups = [], []
    for _ in range(ROUNDS):
        checks.append(_microseconds(policy.check_network, sample))
        lookups.append(_microseconds(lambda net: str(net) in known, sample))
    return Result.of_ratio(f"check, {what}", checks, lookups, "µs", CHECK_RATIO)


def _microseconds(check: Callable[[Network], Any], networks: list[Network]) -> float:
    """Return the microseconds per network."""

    def once() -> None:
        for network in networks:
            check(network)

    return _seconds(once) / len(networks) * 1e6


def _seconds(do: Callable[[], Any]) -> float:
    started = time.process_time()
    do()
    return time.process_time() - started


def _networks() -> list[Network]:
    """Return random networks: a fifth IPv6, most IPv4 ones small, many nested."""
    draw = random.Random(1)  # noqa: S311 - no secret
    found: dict[Network, None] = {}
    while len(found) < NETWORKS:
        if draw.random() < 0.2:
            length = draw.choice((32, 48, 56, 64, 64, 128))
            found[IPv6Network(((0xFD << 120 | draw.getrandbits(120)) >> (128 - length) << (128 - length), length))] = (
                None
            )
        else:
            length = draw.choice((16, 20, 22, 24, 24, 24, 26, 28, 32, 32))
            found[IPv4Network((draw.randrange(1 << 24, 0xDF << 24) >> (32 - length) << (32 - length), length))] = None
    return list(found)
