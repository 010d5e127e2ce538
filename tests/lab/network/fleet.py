"""The fleet: thousands of addresses with different open ports.

It is the same on every machine, because the seed is fixed.
"""

from __future__ import annotations

import ipaddress
import random
from dataclasses import dataclass
from typing import Final

from tests.lab.network.endpoint import Endpoint

FLEET_NETWORK: Final = "10.78.0.0/16"
_SEED: Final = 7801

# The services that the listeners of the fleet claim to be. They are invented and do not depend on installed programs.
FLEET_NGINX: Final = "1.22.1"
FLEET_OPENSSH: Final = "9.2p1 Debian 2+deb12u3"

# profile: its open TCP ports, and how often it occurs
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
FLEET_WEB_PORTS: Final = (80, 631, 8080)

_NAMES: Final = {
    135: "msrpc",
    139: "netbios-ssn",
    443: "https",
    445: "microsoft-ds",
    515: "printer",
    554: "rtsp",
    3306: "mysql",
    3389: "ms-wbt-server",
    5432: "postgresql",
    6379: "redis",
    9100: "jetdirect",
    17571: "unknown",
}


@dataclass(frozen=True, slots=True)
class FleetHost:
    """One address of the fleet, IPv4 only.

    ``resets``: closed ports answer with a reset; otherwise they do not answer.
    """

    address: str
    profile: str
    tcp: tuple[int, ...]
    answers_ping: bool
    resets: bool

    @property
    def unlisted(self) -> str:
        """The state of every TCP port that is not in ``tcp``."""
        return "closed" if self.resets else "filtered"

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The open ports, as nmap -sV reports them."""
        return tuple(_endpoint(port) for port in self.tcp)


def _endpoint(port: int) -> Endpoint:
    if port == 22:
        return Endpoint("tcp", port, "ssh", "OpenSSH", FLEET_OPENSSH, ipv6=False)
    if port in FLEET_WEB_PORTS:
        return Endpoint("tcp", port, "http", "nginx", FLEET_NGINX, ipv6=False)
    return Endpoint("tcp", port, _NAMES[port], ipv6=False)


def make_fleet(count: int) -> dict[str, FleetHost]:
    """Return ``count`` hosts by address: 60 % of them in 20 busy /24s, the others spread over the /16."""
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
