"""The fleet: thousands of addresses with mixed open ports, the same on every machine because the seed is fixed."""

from __future__ import annotations

import ipaddress
import random
from dataclasses import dataclass
from typing import Final

FLEET_NETWORK: Final = "10.78.0.0/16"
_SEED: Final = 7801

# profile: its open TCP ports, and how often it is met
_PROFILES: Final[dict[str, tuple[tuple[int, ...], int]]] = {
    "linux": ((22,), 25),
    "web": ((22, 80, 443), 15),
    "win": ((135, 139, 445, 3389), 20),
    "printer": ((80, 515, 631, 9100), 6),
    "iot": ((80, 554), 8),
    "cam": ((8080,), 4),
    "redis": ((22, 6379), 4),
    "my": ((22, 3306), 4),
    "pg": ((22, 5432), 4),
    "odd": ((17571,), 2),
    "pingonly": ((), 8),
}
FLEET_PORTS: Final = tuple(sorted({port for ports, _ in _PROFILES.values() for port in ports}))


@dataclass(frozen=True, slots=True)
class FleetHost:
    """One fleet address. ``resets``: its closed ports answer with a reset, else they are silent."""

    address: str
    profile: str
    tcp: tuple[int, ...]
    answers_ping: bool
    resets: bool

    @property
    def unlisted(self) -> str:
        """The state of every TCP port that is not in ``tcp``."""
        return "closed" if self.resets else "filtered"


def make_fleet(count: int) -> dict[str, FleetHost]:
    """``count`` fleet hosts by address: 60 % of them in 20 busy /24s, the rest strewn over the /16."""
    rnd = random.Random(_SEED)  # noqa: S311 - a repeatable population, not a secret
    base = int(ipaddress.ip_network(FLEET_NETWORK).network_address)
    live: set[int] = set()
    for third_octet in rnd.sample(range(1, 255), 20):
        busy = min(240, int(count * 0.6 / 20))
        live |= {base + third_octet * 256 + octet for octet in rnd.sample(range(1, 255), busy)}
    while len(live) < count:
        address = base + rnd.randrange(1, 65535)
        if address & 0xFF not in {0, 255}:
            live.add(address)
    return {host.address: host for host in (_make_host(str(ipaddress.ip_address(a)), rnd) for a in sorted(live))}


def _make_host(address: str, rnd: random.Random) -> FleetHost:
    profile = rnd.choices(list(_PROFILES), [weight for _, weight in _PROFILES.values()])[0]
    answers_ping = profile == "pingonly" or rnd.random() > 0.15
    return FleetHost(address, profile, _PROFILES[profile][0], answers_ping, resets=rnd.random() < 0.6)
