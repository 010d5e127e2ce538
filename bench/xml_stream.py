"""Write the XML of an nmap -sV scan of a large network to standard output: ``python -m bench.xml_stream HOSTS``.

The hosts have consecutive addresses from 10.0.0.0. Each is up and has the open ports of one of five profiles.
"""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Final

NETWORK: Final = "10.0.0.0/15"
_FIRST: Final = int(IPv4Address("10.0.0.0"))
_SSH: Final = (22, "ssh", "OpenSSH", "9.2p1 Debian 2+deb12u7")
_HTTP: Final = (80, "http", "nginx", "1.22.1")
_PROFILES: Final = (
    (_SSH, _HTTP, (443, "http", "nginx", "1.22.1")),
    ((135, "msrpc", "Microsoft Windows RPC", ""), (139, "netbios-ssn", "Samba smbd", "4.6.2")),
    (_SSH, (5432, "postgresql", "PostgreSQL DB", "9.6.0 or later"), (6379, "redis", "Redis key-value store", "7.0.15")),
    (_HTTP, (8080, "http", "Apache Tomcat", "9.0.70"), (8443, "http", "Apache Tomcat", "9.0.70")),
    ((21, "ftp", "vsftpd", "3.0.3"), (25, "smtp", "OpenSMTPD", ""), (53, "domain", "ISC BIND", "9.18.28")),
)


def covering(hosts: int) -> IPv4Network:
    """Return the network whose first ``hosts`` addresses are in the stream."""
    network = ip_network(NETWORK)
    if not isinstance(network, IPv4Network) or hosts > network.num_addresses:
        raise ValueError(f"{hosts} hosts do not fit into {NETWORK}.")
    return network


def main(hosts: int) -> None:
    """Write the document."""
    out = sys.stdout.buffer
    out.write(
        b'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE nmaprun>\n'
        b'<nmaprun scanner="nmap" args="nmap -n -oX - -sV" start="1" version="7.93" xmloutputversion="1.05">\n'
        b'<scaninfo type="syn" protocol="tcp" numservices="1000" services="1-1000"/>\n'
    )
    bodies = [_body(profile) for profile in _PROFILES]
    for index in range(hosts):
        address = str(IPv4Address(_FIRST + index)).encode()
        out.write(bodies[index % len(bodies)].replace(b"ADDRESS", address))
    end = f'<finished time="2" elapsed="1" exit="success"/><hosts up="{hosts}" down="0" total="{hosts}"/>'
    out.write(f"<runstats>{end}\n</runstats>\n</nmaprun>\n".encode())


def _body(profile: tuple[tuple[int, str, str, str], ...]) -> bytes:
    ports = "".join(
        f'<port protocol="tcp" portid="{port}"><state state="open" reason="syn-ack" reason_ttl="64"/>'
        f'<service name="{name}" product="{product}" version="{version}" ostype="Linux" method="probed" conf="10">'
        f"<cpe>cpe:/a:vendor:{name}:{version.split(' ')[0]}</cpe><cpe>cpe:/o:linux:linux_kernel</cpe></service></port>"
        for port, name, product, version in profile
    )
    return (
        '<host starttime="1" endtime="2"><status state="up" reason="arp-response" reason_ttl="0"/>\n'
        '<address addr="ADDRESS" addrtype="ipv4"/>\n<address addr="02:00:00:00:00:01" addrtype="mac"/>\n'
        "<hostnames>\n</hostnames>\n"
        f'<ports><extraports state="closed" count="{1000 - len(profile)}">\n'
        f'<extrareasons reason="reset" count="{1000 - len(profile)}" proto="tcp" ports="1-1000"/>\n</extraports>\n'
        f'{ports}</ports>\n<times srtt="320" rttvar="120" to="100000"/>\n</host>\n'
    ).encode()


if __name__ == "__main__":
    main(int(sys.argv[1]))
