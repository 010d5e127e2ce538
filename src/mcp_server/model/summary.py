"""One host in one line: open ports, factored by service, in text that costs a model little.

A line is ``name: PORTS SERVICE; PORTS SERVICE; …``. PORTS is ``22,80-90/tcp``, with ``?`` after the transport
for open|filtered. SERVICE is nmap's name, product and version, only where a probe found them out: a name from
the table of well-known ports says no more than the number does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mcp_server.model.addresses import ranges
from mcp_server.model.asset import Host, Port, Service

MAYBE_LISTED = 16
"""Open|filtered ports of one transport that are listed; more are given as their count."""
SERVICE_CHARS = 200
"""Longer than any name, product and version nmap can report together (its buffers hold 80 characters each)."""
LINE_CHARS = 1500
"""Characters of ports with services in a line; a longer one falls back to ports alone."""
PORTS_CHARS = 1000
"""Characters of one list of ports; a longer one is cut, with the number of ports left out."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


def host_line(host: Host) -> str:
    """Return what is worth telling of a host, or an empty string where that is nothing."""
    factored: dict[str, list[Port]] = {}
    for port in host.ports:
        if port.state == "open":
            factored.setdefault(_service_text(port.service), []).append(port)
    parts = [f"{_ports(ports)} {service}".rstrip() for service, ports in factored.items()]
    if sum(len(part) + 2 for part in parts) > LINE_CHARS:
        parts = [_ports(port for port in host.ports if port.state == "open"), "services left out"]
    parts += _maybe_open(host)
    if host.os:
        parts.append(f"os {_confined(host.os[0].name)} {host.os[0].accuracy}%")
    scripts = len(host.scripts) + sum(len(port.scripts) for port in host.ports)
    if scripts:
        parts.append(f"{scripts} script{'s' if scripts > 1 else ''}")
    name = next((name for name in host.names if _NAME.fullmatch(name)), "")
    if host.timed_out and (parts or name):
        parts.append("timed out")
    if name and not parts:
        parts.append("no open ports")
    return f"{name}: {'; '.join(parts)}" if name else "; ".join(parts)


def open_ports_text(host: Host) -> str:
    """Return the open ports alone, ``22,80/tcp 53/udp``, or an empty string where none is."""
    ports = _ports(port for port in host.ports if port.state == "open")
    return " ".join(part for part in (ports, *_maybe_open(host, exact=False)) if part)


def _ports(ports: Iterable[Port], mark: str = "") -> str:
    by_transport: dict[str, set[int]] = {}
    for port in ports:
        by_transport.setdefault(port.transport, set()).add(port.number)
    return " ".join(_listed(sorted(numbers), f"/{transport}{mark}") for transport, numbers in by_transport.items())


def _listed(numbers: list[int], suffix: str) -> str:
    text = ranges(numbers)
    if len(text) <= PORTS_CHARS:
        return text + suffix
    kept = text[:PORTS_CHARS].rpartition(",")[0]
    last = int(re.split("[,-]", kept)[-1])
    return f"{kept}{suffix} and {sum(number > last for number in numbers)} more"


def _maybe_open(host: Host, *, exact: bool = True) -> list[str]:
    """Return the open|filtered ports: a list where they are few, a count where nmap or this module folds them."""
    listed: dict[str, list[Port]] = {}
    for port in host.ports:
        if port.state == "open|filtered":
            listed.setdefault(port.transport, []).append(port)
    folded = sum(extra.count for extra in host.extra_ports if extra.state == "open|filtered")
    parts = []
    for ports in listed.values():
        if len(ports) <= MAYBE_LISTED:
            parts.append(_ports(ports, "?"))
        else:
            folded += len(ports)
    if folded:
        # Hosts are grouped by this text, and a count that differs by one would keep them apart.
        parts.append(f"{folded} ports open|filtered" if exact else "more open|filtered")
    return parts


def _service_text(service: Service | None) -> str:
    if service is None or service.method != "probed":
        return ""
    name = f"{service.tunnel}/{service.name}" if service.tunnel else service.name
    return _confined(" ".join(part for part in (name, service.product, service.version) if part))


def _confined(text: str) -> str:
    """Keep a target's text from ending the part it stands in; the escape is that of `neutralise`."""
    text = text.replace(";", "\\x3b")
    if len(text) <= SERVICE_CHARS:
        return text
    kept = text[:SERVICE_CHARS]
    start = kept.rfind("\\", SERVICE_CHARS - len("\\U0001f600"))
    return (kept if start < 0 else kept[:start].rstrip("\\")) + "…"
