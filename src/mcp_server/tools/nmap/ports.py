"""Reads port specifications (numbers, ranges, service names, ``top:N`` and ``all``) into canonical ranges.

nmap's own port grammar also has open ranges, wildcards, protocol prefixes and names from a file. None of these reaches
an argv. Service names are resolved here, from a table of this project.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mcp_server.model.untrusted import sanitize

PORT_MAX: Final = 65_535
MAX_RANGES: Final = 100
MAX_PORTS_CHARS: Final = 2048
TOP_MAX: Final = 5000
"""The highest N of ``top:N``. nmap-services of 7.93 ranks 8,366 TCP ports, so nmap tests exactly N of them."""

PORTS_HINT: Final = "Write ports as 22,80-90,https or top:100 or all, without spaces. Ports are 1 to 65535."

SERVICE_PORTS: Final[dict[str, int]] = {
    "amqp": 5672,
    "bgp": 179,
    "cassandra": 9042,
    "couchdb": 5984,
    "dhcp": 67,
    "dns": 53,
    "docker": 2375,
    "domain": 53,
    "elasticsearch": 9200,
    "epmd": 4369,
    "finger": 79,
    "ftp": 21,
    "ftp-data": 20,
    "ftps": 990,
    "git": 9418,
    "gopher": 70,
    "grafana": 3000,
    "http": 80,
    "http-alt": 8080,
    "http-proxy": 8080,
    "https": 443,
    "https-alt": 8443,
    "ident": 113,
    "imap": 143,
    "imaps": 993,
    "ipmi": 623,
    "ipp": 631,
    "irc": 6667,
    "isakmp": 500,
    "iscsi": 3260,
    "kerberos": 88,
    "kerberos-sec": 88,
    "kubernetes": 6443,
    "ldap": 389,
    "ldaps": 636,
    "mdns": 5353,
    "memcached": 11211,
    "microsoft-ds": 445,
    "modbus": 502,
    "mongodb": 27017,
    "mqtt": 1883,
    "ms-sql": 1433,
    "ms-wbt-server": 3389,
    "msrpc": 135,
    "mysql": 3306,
    "netbios-dgm": 138,
    "netbios-ns": 137,
    "netbios-ssn": 139,
    "nfs": 2049,
    "nntp": 119,
    "ntp": 123,
    "oracle": 1521,
    "pop3": 110,
    "pop3s": 995,
    "postgresql": 5432,
    "printer": 515,
    "prometheus": 9090,
    "rabbitmq": 15672,
    "radius": 1812,
    "rdp": 3389,
    "redis": 6379,
    "rpcbind": 111,
    "rsync": 873,
    "rtsp": 554,
    "sip": 5060,
    "sips": 5061,
    "smb": 445,
    "smtp": 25,
    "smtps": 465,
    "snmp": 161,
    "snmptrap": 162,
    "socks": 1080,
    "ssdp": 1900,
    "ssh": 22,
    "submission": 587,
    "syslog": 514,
    "telnet": 23,
    "tftp": 69,
    "upnp": 1900,
    "vnc": 5900,
    "whois": 43,
    "winrm": 5985,
    "winrms": 5986,
    "x11": 6000,
    "xmpp": 5222,
    "xmpp-client": 5222,
}
"""Service name to its usual port, from nmap-services, or from IANA's registry if that port is more common."""

_NUMBER = re.compile(r"[0-9]{1,9}\Z")
_RANGE = re.compile(r"([0-9]{1,9})-([0-9]{1,9})\Z")
_TOP = re.compile(r"top:([0-9]{1,9})\Z")


@dataclass(frozen=True, slots=True)
class PortSet:
    """Ports to test: merged ascending ``ranges``, or the ``top`` N of nmap's ranking. Only one of the two is set."""

    ranges: tuple[tuple[int, int], ...] = ()
    top: int = 0

    @property
    def count(self) -> int:
        """The number of ports for one transport."""
        return self.top or sum(high - low + 1 for low, high in self.ranges)

    @property
    def spec(self) -> str:
        """The canonical text: ``22,80-90`` or ``top:100``."""
        if self.top:
            return f"top:{self.top}"
        return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in self.ranges)

    def words(self) -> list[str]:
        """Return the argv words that select these ports."""
        return ["--top-ports", str(self.top)] if self.top else ["-p", self.spec]


ALL_PORTS: Final = PortSet(ranges=((1, PORT_MAX),))


def parse_ports(text: str) -> PortSet:
    """Return the ports that ``text`` names. Overlapping and adjacent ranges are merged.

    ``text`` is ``all``, ``top:N``, or up to `MAX_RANGES` numbers, ranges and service names, separated by commas. Raises
    ValueError that names the wrong part.
    """
    if len(text) > MAX_PORTS_CHARS:
        raise ValueError(f"at most {MAX_PORTS_CHARS} characters, not {len(text)}")
    if text == "all":
        return ALL_PORTS
    if text.startswith("top:"):
        match = _TOP.match(text)
        if not match or not 1 <= int(match[1]) <= TOP_MAX:
            raise ValueError(f"top:N takes an N from 1 to {TOP_MAX}, not '{sanitize(text[4:], 20)}'")
        return PortSet(top=int(match[1]))
    items = text.split(",")
    if len(items) > MAX_RANGES:
        raise ValueError(f"at most {MAX_RANGES} ranges, not {len(items)}")
    ranges: set[tuple[int, int]] = set()
    for item in items:
        pair = _range(item)
        if pair in ranges:
            raise ValueError(f"'{sanitize(item, 20)}' stands twice")
        ranges.add(pair)
    return PortSet(ranges=_merge(sorted(ranges)))


def _range(item: str) -> tuple[int, int]:
    shown = sanitize(item, 20)
    if not item:
        raise ValueError("a port is missing beside a comma")
    if match := _RANGE.match(item):
        low, high = _port(match[1]), _port(match[2])
        if low > high:
            raise ValueError(f"the range '{shown}' is reversed")
        return low, high
    if _NUMBER.match(item):
        number = _port(item)
        return number, number
    if item in SERVICE_PORTS:
        return SERVICE_PORTS[item], SERVICE_PORTS[item]
    if item == "all" or item.startswith("top:"):
        raise ValueError(f"'{shown}' cannot be part of a list")
    raise ValueError(f"'{shown}' is neither a port, a range nor a known service name{_nearest(item)}")


def _port(digits: str) -> int:
    number = int(digits)
    if not 1 <= number <= PORT_MAX or digits != str(number):
        raise ValueError(f"'{digits}' is not a port; ports are 1 to {PORT_MAX}")
    return number


def _nearest(item: str) -> str:
    import difflib

    nearest = difflib.get_close_matches(item[:40], SERVICE_PORTS, n=1)
    return f" (the nearest is '{nearest[0]}')" if nearest else ""


def _merge(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for low, high in ranges:
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


@dataclass(frozen=True, slots=True)
class PortsValue:
    """The value of ``-p``: a port specification that `parse_ports` reads, written in canonical ranges."""

    @property
    def label(self) -> str:
        """The label: ``PORTS``."""
        return "PORTS"

    def parse(self, text: str) -> PortSet:
        """Return the ports."""
        return parse_ports(text)

    def emit(self, value: PortSet) -> str:
        """Return the canonical text."""
        return "all" if value == ALL_PORTS else value.spec


@dataclass(frozen=True, slots=True)
class TopPortsValue:
    """The value of ``--top-ports``: the number of most common ports."""

    @property
    def label(self) -> str:
        """The label: ``INT 1-5000``."""
        return f"INT 1-{TOP_MAX}"

    def parse(self, text: str) -> PortSet:
        """Return the ports."""
        return parse_ports(f"top:{text}")

    def emit(self, value: PortSet) -> str:
        """Return the number."""
        return str(value.top)
