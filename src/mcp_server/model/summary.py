"""One host in one line: open ports, factored by service, in text that costs a model little.

A line is ``name: PORTS SERVICE; PORTS SERVICE; …``. PORTS is ``22,80-90/tcp``, with ``?`` after the transport
for open|filtered. SERVICE is a word of the tool's own vocabulary, only where a probe found it out: a name from
the table of well-known ports says no more than the number does. What the target said of the service, product and
version, is kept apart: a line holds our words only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mcp_server.model.addresses import ranges
from mcp_server.model.host import Host, Port, Service

MAYBE_LISTED = 16
"""Open|filtered ports of one transport that are listed; more are given as their count."""
SERVICE_CHARS = 200
"""Longer than any name, product and version nmap can report together (its buffers hold 80 characters each)."""
LINE_CHARS = 1500
"""Characters of ports with services in a line; a longer one falls back to ports alone."""
PORTS_CHARS = 1000
"""Characters of one list of ports; a longer one is cut, with the number of ports left out."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_SERVICE = re.compile(r"(?!\d+/)[A-Za-z0-9][A-Za-z0-9._+:/-]{0,31}")


@dataclass(frozen=True, slots=True)
class HostSummary:
    """One host: parts in our words, each with what the target said of it (or an empty string)."""

    parts: tuple[tuple[str, str], ...] = ()


def host_summary(host: Host) -> HostSummary:
    """Return what is worth telling of a host, or a line without parts where that is nothing."""
    factored: dict[tuple[str, str], list[Port]] = {}
    for port in host.ports:
        if port.state == "open":
            factored.setdefault(_service_texts(port.service), []).append(port)
    parts = [(f"{_ports(ports)} {ours}".rstrip(), theirs) for (ours, theirs), ports in factored.items()]
    if sum(len(ours) + len(theirs) + 2 for ours, theirs in parts) > LINE_CHARS:
        parts = [(_ports(port for port in host.ports if port.state == "open"), ""), ("services left out", "")]
    more = _maybe_open(host)
    if host.os:
        more.append(f"os {_confined(host.os[0].name)} {host.os[0].accuracy}%")
    scripts = len(host.scripts) + sum(len(port.scripts) for port in host.ports)
    if scripts:
        more.append(f"{scripts} script{'s' if scripts > 1 else ''}")
    name = next((name for name in host.names if _NAME.fullmatch(name)), "")
    if host.timed_out and (parts or more or name):
        more.append("timed out")
    if name and not parts and not more:
        more.append("no open ports")
    parts += [(ours, "") for ours in more]
    if name:
        parts[0] = (f"{name}: {parts[0][0]}", parts[0][1])
    return HostSummary(tuple(parts))


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
    projected = sum(extra.count for extra in host.extra_ports if extra.state == "open|filtered")
    parts = []
    for ports in listed.values():
        if len(ports) <= MAYBE_LISTED:
            parts.append(_ports(ports, "?"))
        else:
            projected += len(ports)
    if projected:
        # Hosts are grouped by this text, and a count that differs by one would keep them apart.
        parts.append(f"{projected} ports open|filtered" if exact else "more open|filtered")
    return parts


def _service_texts(service: Service | None) -> tuple[str, str]:
    """Return what a probe found: the service in the tool's words, and product and version in the target's."""
    if service is None or service.method != "probed":
        return "", ""
    probe = service.from_target.version_probe
    name = service.name or probe.name
    if service.tunnel:
        name = f"{service.tunnel}/{name}"
    known = is_service_name(name)
    words = (probe.product, probe.version) if known else (name, probe.product, probe.version)
    return name if known else "", _shortened(" ".join(word for word in words if word))


def is_service_name(text: str) -> bool:
    """Whether ``text`` is written as the names in nmap-service-probes are; anything else is the target's text."""
    return _SERVICE.fullmatch(text) is not None


def _confined(text: str) -> str:
    """Keep a text from ending the part it stands in; the escape is that of `sanitize`."""
    return _shortened(text.replace(";", "\\x3b"))


def _shortened(text: str) -> str:
    if len(text) <= SERVICE_CHARS:
        return text
    kept = text[:SERVICE_CHARS]
    start = kept.rfind("\\", SERVICE_CHARS - len("\\U0001f600"))
    return (kept if start < 0 else kept[:start].rstrip("\\")) + "…"
