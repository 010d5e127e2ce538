"""Reads the elements inside nmap's ``<host>`` and builds the host that they describe."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final
from xml.parsers import expat

from mcp_server.model.addresses import Address
from mcp_server.model.host import ExtraPorts, Host, OsMatch, Port, Script, Service, ServiceText, VersionProbe
from mcp_server.model.summary import is_service_name
from mcp_server.model.untrusted import FIELD_LIMIT, TextBudget, sanitize

Attributes = dict[str, str]

SCRIPT_LIMIT: Final = 4096
"""The maximum number of characters that are kept of the output of one script."""

_SHORT: Final = 64
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}")
_SERVICE_TEXTS: Final = ("name", "product", "version", "extrainfo", "tunnel", "hostname", "ostype", "method")

# nmap's own words are few and occur often, so they are cached. Text of a target is not cached.
_vocabulary = lru_cache(maxsize=1024)(sanitize)


def word(text: str) -> str:
    """Sanitize a string that probably occurs again. Short strings are cached."""
    return _vocabulary(text) if len(text) <= _SHORT else sanitize(text)


@lru_cache(maxsize=4096)
def _number(text: str) -> int | None:
    try:
        return int(float(text)) if "." in text else int(text)
    except (ValueError, OverflowError):
        return None


def number(text: str | None, low: int, high: int = 2**63) -> int | None:
    """Return the integer part of a number attribute, or None if it is missing, malformed or out of bounds."""
    if text is None or len(text) > 24 or not text.isascii():
        return None
    value = _number(text)
    return None if value is None or not low <= value <= high else value


def _service(take: Callable[[str], str], texts: tuple[str, ...], conf: int, cpe: tuple[str, ...]) -> Service:
    name, product, version, extra_info, tunnel, hostname, os_type, method = texts
    known = is_service_name(name)
    probe = VersionProbe(
        name="" if known else word(name),
        product=take(product),
        version=take(version),
        extra_info=take(extra_info),
        hostname=take(hostname),
        os_type=take(os_type),
        cpe=tuple(map(take, cpe)),
    )
    return Service(word(name) if known else "", word(tunnel), word(method), conf, ServiceText(probe))


@lru_cache(maxsize=2048)
def _shared_service(texts: tuple[str, ...], conf: int, cpe: tuple[str, ...]) -> tuple[Service, int]:
    """Return a service, and how many characters of the target's text it holds.

    A network has few different services on many ports, so equal services share one object.
    """
    service = _service(sanitize, texts, conf, cpe)
    probe = service.from_target.version_probe
    taken = (probe.product, probe.version, probe.extra_info, probe.hostname, probe.os_type, *probe.cpe)
    return service, sum(map(len, taken))


class HostReader:
    """Handles the events of an expat parser between ``<host>`` and ``</host>``, one host after the other.

    ``done`` gets the address of each host (None if it is unreadable) and the host. It must set other handlers on the
    parser. ``warn`` gets sentences without any text of a target.
    """

    def __init__(
        self, xml: expat.XMLParserType, done: Callable[[Address | None, Host], None], warn: Callable[[str], None]
    ) -> None:
        self._xml, self._done, self._warn = xml, done, warn
        self._budget = TextBudget()
        self._on_start: dict[str, Callable[[Attributes], None]] = {
            "status": self._status,
            "address": self._address_of,
            "port": self._begin_port,
            "state": self._state_of_port,
            "service": self._service_of_port,
            "cpe": self._begin_cpe,
            "script": self._script,
            "extraports": self._begin_extraports,
            "extrareasons": self._extrareasons,
            "osmatch": self._begin_osmatch,
            "distance": self._distance_to,
            "times": self._times,
        }
        self._on_end: dict[str, Callable[[], None]] = {
            "port": self._end_port,
            "cpe": self._end_cpe,
            "extraports": self._end_extraports,
            "osmatch": self._end_osmatch,
            "host": self._end_host,
        }

    def begin(self, attributes: Attributes, *, ports_asked: bool) -> None:
        """Start a new host. ``ports_asked`` says whether this run scans ports."""
        self._timed_out = attributes.get("timedout") == "true"
        self._never_started = ports_asked and attributes.get("starttime") == "0"
        self._address: Address | None = None
        self._state = self._reason = self._mac = self._vendor = ""
        self._ports: list[Port] = []
        self._extra: list[ExtraPorts] = []
        self._os: list[OsMatch] = []
        self._scripts: list[Script] = []
        self._budget.next_host()
        self._distance: int | None = None
        self._rtt_ms: float | None = None
        # The state of elements that have children.
        self._port: tuple[str, int | None] | None = None
        self._port_state = ("", "")
        self._service: Attributes | None = None
        self._port_scripts: list[Script] = []
        self._cpe: list[str] = []
        self._cpe_text: list[str] = []
        self._extra_left: tuple[str, int] | None = None
        self._os_match: tuple[str, int] | None = None
        self._xml.StartElementHandler = self._start
        self._xml.EndElementHandler = self._end

    def _start(self, name: str, attributes: Attributes) -> None:
        handler = self._on_start.get(name)
        if handler is not None:
            handler(attributes)

    def _end(self, name: str) -> None:
        handler = self._on_end.get(name)
        if handler is not None:
            handler()

    def _status(self, a: Attributes) -> None:
        self._state, self._reason = word(a.get("state", "")), word(a.get("reason", ""))

    def _address_of(self, a: Attributes) -> None:
        text, kind = a.get("addr", ""), a.get("addrtype", "ipv4")
        if kind == "mac":
            # The address is six bytes of a frame. The vendor is from nmap's own table of prefixes.
            if _MAC.fullmatch(text):
                self._mac, self._vendor = text, word(a.get("vendor", ""))
            return
        try:
            self._address = IPv6Address(text) if kind == "ipv6" else IPv4Address(text)
        except ValueError:
            self._address = None

    def _begin_port(self, a: Attributes) -> None:
        self._port = word(a.get("protocol", "")), number(a.get("portid"), 0, 65535)
        self._port_state, self._service, self._port_scripts, self._cpe = ("", ""), None, [], []

    def _state_of_port(self, a: Attributes) -> None:
        self._port_state = word(a.get("state", "")), word(a.get("reason", ""))

    def _service_of_port(self, a: Attributes) -> None:
        self._service = a

    def _end_port(self) -> None:
        if self._port is None:
            return
        transport, portid = self._port
        self._port = None
        if portid is None:
            self._warn("A port without a readable number was left out.")
            return
        state, reason = self._port_state
        service = self._service_seen() if self._service is not None else None
        self._ports.append(Port(transport, portid, state, reason, service, tuple(self._port_scripts)))

    def _service_seen(self) -> Service:
        get = (self._service or {}).get
        texts = tuple([get(key, "") for key in _SERVICE_TEXTS])
        conf, cpe = number(get("conf"), 0, 10) or 0, tuple(self._cpe)
        if sum(map(len, texts)) <= FIELD_LIMIT:
            service, size = _shared_service(texts, conf, cpe)
            if size <= self._budget.remaining:
                self._budget.spend(size)
                return service
        return _service(self._budget.take, texts, conf, cpe)

    def _begin_cpe(self, _: Attributes) -> None:
        # Only CPEs are in text nodes. A permanent handler would be called for every line break.
        self._cpe_text = []
        self._xml.CharacterDataHandler = self._cpe_text.append

    def _end_cpe(self) -> None:
        self._xml.CharacterDataHandler = None
        # Not sanitized yet: services and OS matches sanitize it together with their other texts.
        text = "".join(self._cpe_text)
        if text and text not in self._cpe:
            self._cpe.append(text)

    def _script(self, a: Attributes) -> None:
        script = Script.of(word(a.get("id", "")), self._budget.take(a.get("output", ""), SCRIPT_LIMIT))
        (self._scripts if self._port is None else self._port_scripts).append(script)

    def _begin_extraports(self, a: Attributes) -> None:
        self._extra_left = word(a.get("state", "")), number(a.get("count"), 0) or 0

    def _extrareasons(self, a: Attributes) -> None:
        if self._extra_left is None:
            return
        state, left = self._extra_left
        count = min(number(a.get("count"), 0) or 0, left)
        self._extra.append(ExtraPorts(state, count, word(a.get("reason", ""))))
        self._extra_left = state, left - count

    def _end_extraports(self) -> None:
        if self._extra_left is None:
            return
        state, left = self._extra_left
        self._extra_left = None
        if left:
            self._extra.append(ExtraPorts(state, left))

    def _begin_osmatch(self, a: Attributes) -> None:
        self._os_match, self._cpe = (self._budget.take(a.get("name", "")), number(a.get("accuracy"), 0, 100) or 0), []

    def _end_osmatch(self) -> None:
        if self._os_match is not None:
            self._os.append(OsMatch(*self._os_match, tuple(map(self._budget.take, self._cpe))))
            self._os_match, self._cpe = None, []

    def _distance_to(self, a: Attributes) -> None:
        self._distance = number(a.get("value"), 0, 255)

    def _times(self, a: Attributes) -> None:
        micros = number(a.get("srtt"), 0)
        self._rtt_ms = None if micros is None else micros / 1000

    def _end_host(self) -> None:
        # A host whose port scan never started has starttime 0 and no ports.
        unscanned = self._never_started and self._state == "up" and not self._ports and not self._extra
        host = Host(
            address=str(self._address),
            state=self._state,
            reason=self._reason,
            mac=self._mac,
            vendor=self._vendor,
            ports=tuple(self._ports),
            extra_ports=tuple(self._extra),
            os=tuple(self._os),
            scripts=tuple(self._scripts),
            timed_out=self._timed_out or unscanned,
            distance=self._distance,
            rtt_ms=self._rtt_ms,
        )
        self._done(self._address, host)
