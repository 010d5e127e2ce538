"""Checks of single values that a type and a range cannot express. Each raises ValueError with the allowed values."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, ip_address, ip_interface
from typing import Final

from mcp_server.errors import ConfigError

_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_AUTHORITY: Final = re.compile(rf"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|{_LABEL}(?:\.{_LABEL})*)(?::(?P<port>[0-9]{{1,5}}))?")
_MODULE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_DEVICE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_IPV4_LOOPBACK: Final = IPv4Network("127.0.0.0/8")

DATABASE_SCHEMES: Final = ("sqlite", "sqlite+aiosqlite", "postgresql", "postgresql+asyncpg")


def check_scope_entry(entry: str) -> str:
    """Accept an entry of the scope policy, and return its canonical spelling."""
    from mcp_server.scope.entries import read_entry

    try:
        return read_entry(entry)[0]
    except ConfigError as error:
        raise ValueError(f"{error.message} {error.hint}") from None


def check_bind_host(host: str) -> str:
    """Accept an address (IPv6 without brackets) or a host name to listen on."""
    try:
        ip_address(host)
    except ValueError:
        # A name of digits and dots only is a mistyped address, which a resolver may read as another address.
        if not _NAME.fullmatch(host) or not re.search("[A-Za-z]", host):
            raise ValueError(
                f"{host!r} is neither an address nor a host name. Write 127.0.0.1, ::1 or a name"
            ) from None
    return host


def is_loopback(host: str) -> bool:
    """Return whether a server on ``host`` can be reached from this machine only: 127.0.0.0/8, ::1 or localhost."""
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address in _IPV4_LOOPBACK if address.version == 4 else str(address) == "::1"


def check_authority(value: str) -> str:
    """Accept an exact ``host[:port]`` as in a Host header, without wildcards, and return it in lower case."""
    if not _is_authority(value):
        raise ValueError(f"{value!r} is not an exact host:port, such as 127.0.0.1:8080 or scan.lab.internal:443")
    return value.lower()


def check_origin(value: str) -> str:
    """Accept an exact origin (RFC 6454): http or https, host, port if it is not the default, and no path."""
    scheme, separator, authority = value.partition("://")
    if not separator or scheme.lower() not in {"http", "https"} or not _is_authority(authority):
        raise ValueError(f"{value!r} is not an exact origin, such as http://127.0.0.1:8080")
    return value.lower()


def check_interface(value: str) -> str:
    """Accept an address with its prefix length, and return its canonical spelling."""
    try:
        interface = ip_interface(value)
    except ValueError:
        interface = None
    if interface is None or "/" not in value or "%" in value:
        raise ValueError(f"{value!r} is not an address with prefix length, such as 10.0.0.250/24 or fd00::250/64")
    return str(interface)


def check_address(value: str) -> str:
    """Accept one address, and return its canonical spelling."""
    try:
        address = ip_address(value)
    except ValueError:
        address = None
    if address is None or "%" in value:
        raise ValueError(f"{value!r} is not an address, such as 10.0.0.1 or fd00::1")
    return str(address)


def check_link_network(value: str) -> str:
    """Accept an IPv4 network of exactly four addresses: two ends, the network address and the broadcast address."""
    try:
        network = IPv4Network(value)
    except ValueError:
        network = None
    if network is None or network.prefixlen != 30:
        raise ValueError(f"{value!r} is not an IPv4 /30, such as 198.18.77.0/30")
    return str(network)


def check_user(name: str) -> str:
    """Accept the name of a user of this machine (useradd(8)), whether it exists or not, or an empty name."""
    if name and not _USER.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a user")
    return name


def check_device(name: str) -> str:
    """Accept the name of a network device (netdevice(7)), or an empty name."""
    if name and not _DEVICE.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a network device, such as eth0")
    return name


def check_shipment(target: str) -> str:
    """Accept a destination of checkpoints: syslog, an absolute path, or an empty text for no destination."""
    if target not in {"", "syslog"} and not target.startswith("/"):
        raise ValueError(f"{target!r} is neither syslog nor an absolute path")
    return target


def check_module(name: str) -> str:
    """Accept a dotted Python package name."""
    if not _MODULE.fullmatch(name):
        raise ValueError(f"{name!r} is not a package name, such as acme.network_tools")
    return name


def check_database_url(url: str | None) -> str | None:
    """Accept a SQLAlchemy URL of a supported database. The URL is never part of the message."""
    scheme, separator, _ = (url or "").partition("://")
    if url is not None and (not separator or scheme not in DATABASE_SCHEMES):
        raise ValueError(f"the URL must start with one of {', '.join(s + '://' for s in DATABASE_SCHEMES)}")
    return url


def check_rate_storage(url: str) -> str:
    """Accept a URL of Redis, or an empty one. The URL is never part of the message."""
    if url and not url.startswith(("redis://", "rediss://")):
        raise ValueError("the URL must start with redis:// or rediss://")
    return url


def check_http_url(url: str) -> str:
    """Accept an http or https URL with a host, or an empty one."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        known = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # malformed brackets or port
        known = False
    if url and not known:
        raise ValueError("the URL must start with http:// or https:// and name a host")
    return url


def check_issuer(url: str) -> str:
    """Accept an issuer identifier (RFC 8414 section 2: a URL without query and fragment), or an empty one."""
    check_http_url(url)
    if "?" in url or "#" in url:
        raise ValueError("an issuer has neither query nor fragment")
    return url


def check_jwks_url(url: str) -> str:
    """Accept an https URL, an http URL on loopback, or an empty one. Over http, keys could be replaced in transit."""
    from urllib.parse import urlsplit

    check_http_url(url)
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ValueError("http is allowed for a loopback address only. Write https://")
    if parts.username is not None or parts.fragment:
        raise ValueError("the URL must have neither user nor fragment")
    return url


def _is_authority(text: str) -> bool:
    match = _AUTHORITY.fullmatch(text)
    if match is None or not 1 <= int(match["port"] or 1) <= 65535:
        return False
    try:
        return match["v6"] is None or ip_address(match["v6"]).version == 6
    except ValueError:
        return False
