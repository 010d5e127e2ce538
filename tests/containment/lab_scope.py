"""The scope of the containment tests: what the policy allows in the lab, and the addresses just outside.

Every kind of address outside the scope has a live host close to an allowed one: excluded hosts on the same link
(redis1, udp1), hosts behind the router (web2), and the rest of the fleet. The gateway and the resolver are outside the
scope too, and may only be used as such.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Final

ALLOWED: Final = ("10.77.1.8/29", "10.77.1.16/28", "10.78.148.0/24", "fd77:1::8/125", "fd77:1::10/124")
EXCLUDED: Final = ("10.77.1.12", "10.77.1.19", "fd77:1::c", "fd77:1::13")
"""redis1 and udp1: live hosts on the same link, in allowed networks, but excluded."""

RESOLVER: Final = "10.77.1.2"
"""The false name server, on the same link and outside the scope. Only queries to its port 53 may reach it."""

INSIDE: Final = "10.77.1.10"
INSIDE_V6: Final = "fd77:1::a"
ON_LINK_OUT: Final = "10.77.1.12"
ROUTED_OUT: Final = "10.77.2.10"
ROUTED_OUT_V6: Final = "fd77:2::a"

HOST: Final = ("10.77.1.250", "fd77:1::fa")
"""The addresses of the namespace that represents the host."""
HOST_MAC: Final = "02:77:01:00:00:fa"
GUARDED: Final = ("10.77.1.249", "fd77:1::f9")
"""The addresses of the guarded namespace."""
SECOND: Final = ("10.77.1.248", "fd77:1::f8")
"""The addresses of a second guarded namespace, for the server over stdio."""
GATEWAYS: Final = ("10.77.1.1", "fd77:1::1")

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


def without_exclusions() -> list[str]:
    """The scope as a list of networks without exclusions."""
    nets: list[Network] = [ip_network(text) for text in ALLOWED]
    for text in EXCLUDED:
        hole = ip_network(text)
        nets = [
            part
            for net in nets
            for part in (net.address_exclude(hole) if net.version == hole.version and hole.subnet_of(net) else [net])  # type: ignore[arg-type]  # the versions are equal
        ]
    return sorted(map(str, nets))


def policy_file() -> str:
    """The scope as a policy file."""
    lines = ["version: 1", "name: containment", "defaults:", "  max_risk: intrusive", "allow:"]
    lines += [f'  - "{text}"' for text in (*ALLOWED, ".lab.internal")]
    lines += ["exclude:", *(f'  - "{text}"' for text in EXCLUDED), "resolvers:", f'  - "{RESOLVER}"', ""]
    return "\n".join(lines)


def write_policy(path: str) -> Path:
    """Write the policy file so that only its owner can change it."""
    file = Path(path)
    file.write_text(policy_file())
    file.chmod(0o644)
    return file


def guard_settings() -> dict[str, Any]:
    """The section ``guard`` of the configuration, with the guard's own addresses on the host's network."""
    return {
        "mode": "macvlan",
        "uplink": "eth0",
        "addresses": (f"{GUARDED[0]}/24", f"{GUARDED[1]}/64"),
        "gateways": GATEWAYS,
    }


def settings() -> dict[str, object]:
    """The settings of the tap on the wire, which shares no code with the server."""
    return {
        "allowed": list(ALLOWED),
        "excluded": list(EXCLUDED),
        "own": [*HOST, *GUARDED, *SECOND],
        "host_macs": [HOST_MAC],
        "gateways": list(GATEWAYS),
        "resolvers": [RESOLVER],
    }


def in_scope(address: str) -> bool:
    """Whether an address is in scope."""
    parsed = ip_address(address)
    return any(parsed in ip_network(net) for net in ALLOWED) and str(parsed) not in EXCLUDED
