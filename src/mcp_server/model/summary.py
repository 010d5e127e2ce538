"""One host in one line of few tokens: its open ports, grouped by service.

A line is ``name: PORTS SERVICE; PORTS SERVICE; …``. PORTS is ``22,80-90/tcp``, with ``?`` after the transport for
open|filtered. SERVICE is a word of nmap's vocabulary, and is given only if a probe found the service: a name from the
table of well-known ports says no more than the number. Text that the target wrote, such as product and version,
is never part of a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mcp_server.model.addresses import ranges
from mcp_server.model.host import Host, Port, Service

MAYBE_LISTED = 16
"""The most open|filtered ports of one transport that are listed. If there are more, their count is given."""
SERVICE_CHARS = 200
"""The most characters of one text. Name, product and version of nmap have at most 80 characters each."""
LINE_CHARS = 1500
"""The most characters of ports with services in a line. If there are more, the line has ports only."""
PORTS_CHARS = 1000
"""The most characters of one list of ports. A longer list is cut, with the number of ports left out."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_SERVICE = re.compile(r"(?!\d+/)[A-Za-z0-9][A-Za-z0-9._+:/-]{0,31}")


@dataclass(frozen=True, slots=True)
class HostSummary:
    """One host in parts. Each part is a pair: trusted text, and text of the target or an empty string."""

    parts: tuple[tuple[str, str], ...] = ()


def host_summary(host: Host) -> HostSummary:
    """Return the summary of a host. It has no parts if there is nothing to report."""
    by_service: dict[tuple[str, str], list[Port]] = {}
    for port in host.ports:
        if port.state == "open":
            by_service.setdefault(_service_texts(port.service), []).append(port)
    parts = [
        (f"{_ports(ports)} {trusted}".rstrip(), from_target) for (trusted, from_target), ports in by_service.items()
    ]
    if sum(len(trusted) + len(from_target) + 2 for trusted, from_target in parts) > LINE_CHARS:
        parts = [(_ports(port for port in host.ports if port.state == "open"), ""), ("services left out", "")]
    more = _maybe_open(host)
    if host.os:
        more.append(f"os {_without_semicolons(host.os[0].name)} {host.os[0].accuracy}%")
    scripts = len(host.scripts) + sum(len(port.scripts) for port in host.ports)
    if scripts:
        more.append(f"{scripts} script{'s' if scripts > 1 else ''}")
    name = next((name for name in host.names if _NAME.fullmatch(name)), "")
    if host.timed_out and (parts or more or name):
        more.append("timed out")
    if name and not parts and not more:
        more.append("no open ports")
    parts += [(text, "") for text in more]
    if name:
        parts[0] = (f"{name}: {parts[0][0]}", parts[0][1])
    return HostSummary(tuple(parts))


def open_ports_text(host: Host) -> str:
    """Return the open ports as ``22,80/tcp 53/udp``, or an empty string if there are none."""
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
    """Return the open|filtered ports: a list if nmap lists them and they are few, otherwise their count."""
    listed: dict[str, list[Port]] = {}
    for port in host.ports:
        if port.state == "open|filtered":
            listed.setdefault(port.transport, []).append(port)
    unlisted = sum(extra.count for extra in host.extra_ports if extra.state == "open|filtered")
    parts = []
    for ports in listed.values():
        if len(ports) <= MAYBE_LISTED:
            parts.append(_ports(ports, "?"))
        else:
            unlisted += len(ports)
    if unlisted:
        # Hosts are grouped by this text. With exact counts, hosts that differ by one port would not share a group.
        parts.append(f"{unlisted} ports open|filtered" if exact else "more open|filtered")
    return parts


def _service_texts(service: Service | None) -> tuple[str, str]:
    """Return the result of a probe: the name of the service, and the text of the target about it."""
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
    """Return whether ``text`` is written like a name in nmap-service-probes. Other text may be the target's."""
    return _SERVICE.fullmatch(text) is not None


def _without_semicolons(text: str) -> str:
    """Escape semicolons, which separate parts, in the way of `sanitize`."""
    return _shortened(text.replace(";", "\\x3b"))


def _shortened(text: str) -> str:
    if len(text) <= SERVICE_CHARS:
        return text
    kept = text[:SERVICE_CHARS]
    start = kept.rfind("\\", SERVICE_CHARS - len("\\U0001f600"))
    return (kept if start < 0 else kept[:start].rstrip("\\")) + "…"
