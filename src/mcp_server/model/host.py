"""What a tool saw of a host: immutable observations in nmap's vocabulary.

Port states are nmap's six: open, closed, filtered, unfiltered, open|filtered, closed|filtered; ``reason``,
``method`` (table, probed) and ``conf`` (0-10) are its DTD's words. Every string that a target could have
chosen has passed `mcp_server.model.untrusted.sanitize` before it stands in one of these.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Script:
    """Output of one script against a port or a host."""

    id: str
    output: str


@dataclass(frozen=True, slots=True)
class Service:
    """What listens on a port, and how sure the tool is (``conf`` 0-10)."""

    name: str
    product: str = ""
    version: str = ""
    extra_info: str = ""
    tunnel: str = ""
    hostname: str = ""
    os_type: str = ""
    method: str = ""
    conf: int = 0
    cpe: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Port:
    """One tested port with the state it was found in and why."""

    transport: str
    number: int
    state: str
    reason: str = ""
    service: Service | None = None
    scripts: tuple[Script, ...] = ()


@dataclass(frozen=True, slots=True)
class ExtraPorts:
    """Ports reported only as a count: ``count`` ports were ``state`` because of ``reason``."""

    state: str
    count: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OsMatch:
    """One guess at the operating system; ``accuracy`` is a percentage."""

    name: str
    accuracy: int
    cpe: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """Everything one run saw of one address.

    ``state`` is up, down, unknown or skipped. ``timed_out`` means that the tool gave the host up: ports not
    listed were not looked at. ``mac`` is set only where the host was seen on the same link.
    """

    address: str
    state: str
    reason: str = ""
    names: tuple[str, ...] = ()
    mac: str = ""
    vendor: str = ""
    ports: tuple[Port, ...] = ()
    extra_ports: tuple[ExtraPorts, ...] = ()
    os: tuple[OsMatch, ...] = ()
    scripts: tuple[Script, ...] = ()
    timed_out: bool = False
    distance: int | None = None
    rtt_ms: float | None = None
