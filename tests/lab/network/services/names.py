"""Two name servers for lab.internal: dnsmasq on the router, and BIND, which allows zone transfers."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from tests.lab.network.daemons import WORK, Daemon, folder, own_copy, write
from tests.lab.network.programs import find
from tests.lab.network.truth import DOMAIN, Truth

_DNS = (("tcp", 53), ("udp", 53))


def name_daemons(truth: Truth) -> Iterable[Daemon]:
    """Yield the two name servers of the lab."""
    yield _dnsmasq(truth)
    yield _bind(truth)


def _dnsmasq(truth: Truth) -> Daemon:
    records = [
        line
        for host in truth.hosts.values()
        for address in host.resolves_to
        for line in (
            f"host-record={host.fqdn},{address}",
            f"ptr-record={ipaddress.ip_address(address).reverse_pointer},{host.fqdn}",
        )
    ]
    configuration = write(
        "dnsmasq.conf",
        "\n".join(
            [
                "no-resolv",
                "no-hosts",
                f"local=/{DOMAIN}/",
                "local=/10.in-addr.arpa/",
                "local=/d.f.ip6.arpa/",
                f"domain={DOMAIN}",
                "user=root",
                f"pid-file={WORK}/dnsmasq.pid",
                f'txt-record={DOMAIN},"v=lab1"',
                *records,
                "",
            ]
        ),
    )
    return Daemon("dnsmasq", "r1", [find("dnsmasq"), "-k", "-C", str(configuration)], _DNS)


def _bind(truth: Truth) -> Daemon:
    home = folder("named")
    write(
        "named/zone",
        "\n".join(
            [
                "$TTL 60",
                f"@ SOA ns.{DOMAIN}. root.{DOMAIN}. 1 60 60 60 60",
                f"@ NS ns.{DOMAIN}.",
                f"ns A {truth['udp1'].ipv4}",
                *(
                    f"{host.name} {'AAAA' if ':' in address else 'A'} {address}"
                    for host in truth.hosts.values()
                    for address in filter(None, (host.ipv4, host.ipv6))
                ),
                "",
            ]
        ),
    )
    configuration = write(
        "named/named.conf",
        f"""
options {{
  directory "{home}"; pid-file none; session-keyfile none; recursion no; dnssec-validation no;
  listen-on-v6 {{ any; }}; allow-transfer {{ any; }};
}};
controls {{ }};
zone "{DOMAIN}" {{ type master; file "{home}/zone"; }};
""",
    )
    return Daemon("named", "udp1", [own_copy("named"), "-g", "-n", "1", "-c", str(configuration)], _DNS)
