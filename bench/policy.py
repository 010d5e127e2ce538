"""A policy of 100,000 networks: from the file to its first answer, and what one check costs."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Final

import yaml

from bench.result import Result, Spread
from mcp_server.model.target import Network
from mcp_server.scope.policy import ScopePolicy

NETWORKS: Final = 100_000
CHECKS: Final = 20_000
ROUNDS: Final = 5
LOAD_SEC: Final = 1.0
CHECK_US: Final = 10.0


def measure() -> list[Result]:
    """Loading with the hash, against PyYAML's C loader alone on the same file; checks of addresses and of /24s."""
    networks = _networks()
    with tempfile.TemporaryDirectory(prefix="mcp-bench-") as folder:
        plain, rich = Path(folder, "plain.yaml"), Path(folder, "rich.yaml")
        plain.write_text("version: 1\nallow:\n" + "".join(f"  - {net}\n" for net in networks))
        rich.write_text(
            "version: 1\nallow:\n" + "".join(f"  - {{network: '{net}', max_risk: probe}}\n" for net in networks)
        )
        # In turn, so that whatever else the machine does falls on both.
        taken: dict[str, list[float]] = {"floor": [], "plain": [], "rich": []}
        for _ in range(ROUNDS):
            taken["floor"].append(_seconds(lambda: yaml.load(plain.read_text(), yaml.CSafeLoader)))
            taken["plain"].append(_seconds(lambda: ScopePolicy.from_file(plain).hash))
            taken["rich"].append(_seconds(lambda: ScopePolicy.from_file(rich).hash))
        policy = ScopePolicy.from_file(plain)
    floor, load, own_terms = (Spread.of(taken[key], "s") for key in ("floor", "plain", "rich"))
    return [
        Result(
            f"policy of {NETWORKS:,} networks, file to hash",
            str(load),
            f"<= {LOAD_SEC:g} s",
            load.median <= LOAD_SEC,
            floor=str(floor),
            ratio=load.median / floor.median,
            notes=(f"with a mapping and a risk for each network {own_terms}; the floor is yaml.CSafeLoader alone",),
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
    asked = random.Random(2).sample(networks, min(CHECKS, len(networks)))  # noqa: S311 - no secret
    # A set of texts is the least that could know an address at all.
    known = {str(net) for net in asked}
    check, floor = (
        Spread.of(_each(policy.check_network, asked), "µs"),
        Spread.of(_each(lambda net: str(net) in known, asked), "µs"),
    )
    return Result(
        f"check, {what}",
        str(check),
        f"<= {CHECK_US:g} µs",
        check.median <= CHECK_US,
        floor=str(floor),
        ratio=check.median / floor.median,
    )


def _each(do: Callable[[Network], Any], asked: list[Network]) -> list[float]:
    """Microseconds for each of them, in every round."""

    def once() -> None:
        for network in asked:
            do(network)

    return [_seconds(once) / len(asked) * 1e6 for _ in range(ROUNDS)]


def _seconds(do: Callable[[], Any]) -> float:
    started = time.process_time()
    do()
    return time.process_time() - started


def _networks() -> list[Network]:
    """A fifth IPv6, most IPv4 ones small, many nested."""
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
