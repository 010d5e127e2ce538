"""The content of the lab: every host, port, service and version, defined before anything is built.

`topology` and `services` build it, and tests compare results with it. Service and product names are spelled as nmap
7.93 prints them (as in its nmap-service-probes file).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Final

from tests.lab.network.endpoint import Certificate, Endpoint
from tests.lab.network.fleet import FleetHost, make_fleet
from tests.lab.network.versions import Versions, installed_versions

DOMAIN: Final = "lab.internal"
RESOLVER: Final = "10.77.1.1"
SCANNER_IPV4: Final = "10.77.1.250"
SCANNER_IPV6: Final = "fd77:1::fa"
SEGMENTS: Final = ("10.77.1.0/24", "10.77.2.0/24")
SEGMENTS_IPV6: Final = ("fd77:1::/64", "fd77:2::/64")


class Behavior(StrEnum):
    """How a host treats traffic, besides its open ports."""

    PLAIN = "plain"
    DROPS = "drops everything except connections to its open ports, also ping"
    DARK = "drops everything"
    REJECTS = "answers with ICMP admin-prohibited"
    RATE_LIMITED = "accepts 10 new connections a second and drops the others"
    TARPIT = "accepts connections on every TCP port and sends nothing"
    SLOW = "is 150 ms away in each direction and loses 5 % of packets"
    HOSTILE = "sends banners that try to harm their reader"


@dataclass(frozen=True, slots=True)
class LabHost:
    """One host, in a network namespace with the same name.

    ``unlisted`` is the state of every TCP port that is not in ``endpoints``. ``dual_name`` means that its name resolves
    to both addresses. ``also`` are further addresses that answer with the same ports.
    """

    name: str
    segment: int
    octet: int
    endpoints: tuple[Endpoint, ...] = ()
    behavior: Behavior = Behavior.PLAIN
    unlisted: str = "closed"
    has_ipv4: bool = True
    dual_name: bool = False
    also: tuple[str, ...] = ()

    @property
    def fqdn(self) -> str:
        """The name that both name servers of the lab know."""
        return f"{self.name}.{DOMAIN}"

    @property
    def ipv4(self) -> str | None:
        """The IPv4 address, or None for the host that has only IPv6."""
        return f"10.77.{self.segment}.{self.octet}" if self.has_ipv4 else None

    @property
    def ipv6(self) -> str:
        """The IPv6 address with the same segment and octet, in canonical form."""
        return str(ipaddress.ip_address(f"fd77:{self.segment}::{self.octet:x}"))

    @property
    def mac(self) -> str:
        """The hardware address, which the scanner sees only on segment 1. The router has one for each segment."""
        return f"02:77:{self.segment:02x}:00:00:{self.octet:02x}"

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses that answer as this host."""
        return tuple(filter(None, (self.ipv4, self.ipv6))) + self.also

    @property
    def resolves_to(self) -> tuple[str, ...]:
        """The addresses that the resolver of the lab returns for the name; BIND on udp1 returns all."""
        if self.ipv4 is None:
            return (self.ipv6,)
        return (self.ipv4, self.ipv6) if self.dual_name else (self.ipv4,)

    @property
    def hops(self) -> int:
        """The number of hops from the scanner: the routers on the path and the host itself."""
        return 1 if self.segment == 1 else 2

    @property
    def answers_ping(self) -> bool:
        """Whether the host answers ICMP echo requests."""
        return self.behavior not in {Behavior.DROPS, Behavior.DARK}

    def open_ports(self, transport: str, *, ipv6: bool = False) -> dict[int, Endpoint]:
        """Return the open ports of a transport, by number; on an IPv6 address some listeners are missing."""
        return {e.port: e for e in self.endpoints if e.transport == transport and (e.ipv6 or not ipv6)}


@dataclass(frozen=True)
class Truth:
    """Everything in the lab. ``fleet`` is keyed by IPv4 address."""

    hosts: dict[str, LabHost]
    fleet: dict[str, FleetHost] = field(default_factory=dict)

    @cached_property
    def _by_address(self) -> dict[str, LabHost]:
        return {address: host for host in self.hosts.values() for address in host.addresses}

    def __getitem__(self, name: str) -> LabHost:
        return self.hosts[name]

    def at(self, address: str) -> LabHost | FleetHost | None:
        """Return the host of an address, or None if no host has it."""
        canonical = str(ipaddress.ip_address(address))
        return self._by_address.get(canonical) or self.fleet.get(canonical)

    def live(self, network: str) -> Iterator[str]:
        """Return the addresses of a network that a host has, including the scanner."""
        inside = ipaddress.ip_network(network)
        for address in (*self._by_address, *self.fleet, SCANNER_IPV4, SCANNER_IPV6):
            parsed = ipaddress.ip_address(address)
            if parsed.version == inside.version and parsed in inside:
                yield address

    def busiest_network(self) -> str:
        """Return the /24 of the fleet with the most live hosts."""
        counts: dict[str, int] = {}
        for address in self.fleet:
            prefix = address.rpartition(".")[0]
            counts[prefix] = counts.get(prefix, 0) + 1
        return max(counts, key=lambda prefix: counts[prefix]) + ".0/24"


def make_truth(*, fleet: int = 2000, databases: bool = True) -> Truth:
    """Return the truth of a lab with ``fleet`` fleet hosts (0 to 20,000), with or without the two database hosts.

    Versions are read from the installed programs, so that a security update of the distribution fails no test.
    """
    hosts = _hosts(installed_versions(databases=databases))
    if not databases:
        hosts = [host for host in hosts if host.name not in {"pg1", "maria1"}]
    return Truth({host.name: host for host in hosts}, make_fleet(fleet))


def _hosts(v: Versions) -> list[LabHost]:
    ssh = Endpoint("tcp", 22, "ssh", "OpenSSH", v.openssh)
    web = Endpoint("tcp", 80, "http", "nginx", v.nginx)
    old, new = Certificate(f"old.{DOMAIN}", expired=True), Certificate(f"web1.{DOMAIN}", expired=False)
    return [
        LabHost("r1", 1, 1, _dns("dnsmasq", v.dnsmasq), also=("10.77.2.1", "fd77:2::1")),
        LabHost("web1", 1, 10, (web, _https(443, v.nginx, new), _https(8443, v.nginx, old)), dual_name=True),
        LabHost("ssh1", 1, 11, (ssh, Endpoint("tcp", 2222, "ssh", "OpenSSH", v.openssh))),
        LabHost("redis1", 1, 12, (Endpoint("tcp", 6379, "redis", "Redis key-value store", v.redis),)),
        LabHost("pg1", 1, 13, (Endpoint("tcp", 5432, "postgresql", "PostgreSQL DB", "9.6.0 or later"),)),
        LabHost("maria1", 1, 14, (Endpoint("tcp", 3306, "mysql", "MySQL", v.mariadb),)),
        LabHost("ftp1", 1, 15, (Endpoint("tcp", 21, "ftp", "vsftpd", v.vsftpd),)),
        LabHost("mail1", 1, 16, (Endpoint("tcp", 25, "smtp", "OpenSMTPD", ""),)),
        LabHost("snmp1", 1, 17, _SNMP),
        LabHost(
            "smb1", 1, 18, tuple(Endpoint("tcp", port, "netbios-ssn", "Samba smbd", "4.6.2") for port in (139, 445))
        ),
        LabHost("udp1", 1, 19, (*_dns("ISC BIND", v.bind), *_UDP)),
        LabHost("dual1", 1, 20, (ssh, web), dual_name=True),
        LabHost("v6only", 1, 21, (web,), has_ipv4=False),
        LabHost("web2", 2, 10, (web, Endpoint("tcp", 8080, "http", "nginx", v.nginx, ipv6=False))),
        LabHost("drop1", 2, 20, (ssh,), Behavior.DROPS, "filtered"),
        LabHost("dark1", 2, 21, (), Behavior.DARK, "filtered"),
        LabHost("rej1", 2, 22, (web,), Behavior.REJECTS, "filtered"),
        LabHost("rate1", 2, 23, (ssh, web), Behavior.RATE_LIMITED),
        LabHost("tarpit", 2, 24, (), Behavior.TARPIT, "open"),
        LabHost("slow1", 2, 25, (ssh, web), Behavior.SLOW),
        LabHost("evil1", 2, 26, _HOSTILE, Behavior.HOSTILE),
        LabHost("rst1", 2, 27),
    ]


_SNMP = (
    Endpoint("udp", 161, "snmp", "SNMPv1 server; net-snmp SNMPv3 server", ""),
    Endpoint("tcp", 199, "smux", "Linux SNMP multiplexer", "", ipv6=False),
)
_UDP = (
    Endpoint("udp", 69, "tftp", ipv6=False, state="open|filtered"),  # it answers from another port, as TFTP does
    Endpoint("udp", 123, "ntp", "NTP", "v4"),
)
_HOSTILE = (
    Endpoint("tcp", 80, "http", "Apache httpd", "2.4"),
    Endpoint("tcp", 2323, "telnet"),
    Endpoint("tcp", 9000, "cslistener"),  # nmap knows only the name of the port number
)


def _dns(product: str, version: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(transport, 53, "domain", product, version) for transport in ("tcp", "udp"))


def _https(port: int, version: str, certificate: Certificate) -> Endpoint:
    return Endpoint("tcp", port, "http", "nginx", version, tunnel="ssl", certificate=certificate)
