"""Reads nmap's XML while nmap writes it: takes bytes, returns hosts, and keeps only counts.

The elements are those of nmap's DTD (``nmap.dtd``, xmloutputversion 1.05). nmap escapes text of a target, so such text
cannot leave its attribute. It is sanitized before it is stored. The parse ends with an error if the document has its
own DTD, or a token or host that is too large. Hosts that were completed before stay valid.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from xml.parsers import expat

from mcp_server.model.addresses import Address
from mcp_server.model.coverage import CoverageCounter
from mcp_server.model.host import Host
from mcp_server.model.run import PortsTested
from mcp_server.model.target import Targets
from mcp_server.model.untrusted import sanitize
from mcp_server.tools.nmap.host import Attributes, HostReader, number
from mcp_server.tools.nmap.progress import NmapProgress
from mcp_server.tools.results import Parsed

TOKEN_LIMIT = 4 * 1024 * 1024
"""The largest tag with its attributes, in bytes. The longest tag of nmap, a list of every second port, has 200 kB."""
HOST_LIMIT = 512 * 1024 * 1024
"""The largest host, in bytes. A host with a service and a script on every TCP, UDP and SCTP port has about 200 MB."""
_SLICE = 64 * 1024
_WARNINGS_KEPT = 20
_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,32}")
_CUT_SHORT = "the closing statistics are missing"


class _DocumentError(Exception):
    """The document cannot be from nmap. The message has no text of a target."""


class NmapXmlParser:
    """An `OutputParser` for ``nmap -oX -``. It returns each host when its element closes, and needs constant memory."""

    def __init__(self, targets: Targets, ports: tuple[PortsTested, ...]) -> None:
        self._counter = CoverageCounter(targets)
        self._progress = NmapProgress(targets.count)
        self._named = _names(targets)
        self._ports = ports
        self._scanned: list[PortsTested] = []
        self._ready: list[Host] = []
        self._fed = 0
        self._root_closed = False
        self._success = False
        self._failure: str | None = None
        self._reported: dict[str, int] = {}
        self._version = ""
        self._warnings: list[str] = []
        self._outside: dict[str, Callable[[Attributes], None]] = {
            "nmaprun": self._on_run,
            "scaninfo": self._on_scaninfo,
            "target": self._on_target,
            "host": self._on_host,
            "taskbegin": lambda a: self._progress.task(a.get("task", ""), 0.0),
            "taskprogress": lambda a: self._progress.task(a.get("task", ""), number(a.get("percent"), 0) or 0.0),
            "taskend": lambda a: self._progress.task(a.get("task", ""), 100.0),
            "finished": self._on_finished,
            "hosts": self._on_hosts,
        }
        # nmap writes UTF-8, whatever the declaration says. Interning stores each repeated name once.
        xml = expat.ParserCreate("UTF-8", intern={})
        xml.buffer_text = True
        xml.StartDoctypeDeclHandler = _doctype
        xml.EntityDeclHandler = _entity
        self._xml: expat.XMLParserType | None = xml
        self._reader = HostReader(xml, self._complete, self._warn)
        self._host_began: int | None = None
        self._set_handlers()

    @property
    def progress(self) -> float | None:
        """The share of the work that is done, 0.0 to 1.0, or None before nmap has reported anything."""
        return self._progress.value

    def feed(self, data: bytes) -> list[Host]:
        """Take the next bytes and return the hosts that they completed. Never raises, whatever the bytes are."""
        view = memoryview(data)
        for offset in range(0, len(view), _SLICE):
            if self._xml is None:
                break
            self._parse(view[offset : offset + _SLICE])
        ready, self._ready = self._ready, []
        return ready

    def close(self) -> Parsed:
        """Return the coverage, and the reason if the document was incomplete. May be called again."""
        if self._xml is not None:
            self._parse(b"", final=True)
            self._release()
        whole = self._success and self._root_closed and self._failure is None
        if not whole and self._failure is None:
            self._failure = _CUT_SHORT
        coverage = self._counter.result(self._ports_tested(), whole=whole, down=self._reported.get("down"))
        return Parsed(
            coverage=coverage,
            complete=whole,
            version=self._version,
            warnings=tuple(self._warnings),
            error=self._failure,
        )

    def _parse(self, data: bytes | memoryview, *, final: bool = False) -> None:
        xml = self._xml
        if xml is None:
            return
        self._fed += len(data)
        try:
            xml.Parse(bytes(data), final)
        except expat.ExpatError as error:
            problem = f"{expat.ErrorString(error.code)} at byte {xml.ErrorByteIndex}"
            self._fail(_CUT_SHORT if final else f"the XML is not well-formed: {problem}")
        except _DocumentError as error:
            self._fail(str(error))
        else:
            # expat keeps an unfinished token in memory, and reads it again from its start with every slice.
            if self._fed - xml.CurrentByteIndex > TOKEN_LIMIT:
                self._fail(f"the XML has a token of more than {TOKEN_LIMIT} bytes")
            elif self._host_began is not None and self._fed - self._host_began > HOST_LIMIT:
                self._fail(f"the XML has a host of more than {HOST_LIMIT} bytes")

    def _fail(self, why: str) -> None:
        # Text after the end of the document does not change its content, so it is only a warning.
        if self._root_closed:
            self._warn(f"After the end of nmap's output, {why}.")
        elif self._failure is None:
            self._failure = why
        self._release()

    def _release(self) -> None:
        """Release expat, and the handlers that would keep it and this object alive in a cycle."""
        if self._xml is not None:
            self._xml.StartElementHandler = self._xml.EndElementHandler = self._xml.CharacterDataHandler = None
        self._xml = None

    def _warn(self, text: str) -> None:
        if len(self._warnings) < _WARNINGS_KEPT and text not in self._warnings:
            self._warnings.append(text)

    def _set_handlers(self) -> None:
        """Make expat call this object. Inside a host it calls the reader."""
        self._host_began = None
        if self._xml is not None:
            self._xml.StartElementHandler = self._start
            self._xml.EndElementHandler = self._end

    def _start(self, name: str, attributes: Attributes) -> None:
        handler = self._outside.get(name)
        if handler is not None:
            handler(attributes)

    def _end(self, name: str) -> None:
        if name == "nmaprun":
            self._root_closed = True

    def _complete(self, address: Address | None, host: Host) -> None:
        self._set_handlers()
        if address is None:
            self._warn("A host without a readable address was left out.")
            return
        position = self._counter.position(address)
        if position is None:
            self._warn(f"{address} is not among the targets and was left out.")
            return
        if host.timed_out or host.state not in {"up", "down"}:
            self._counter.gave_up(address)
        else:
            self._counter.finished(address, up=host.state == "up")
        self._progress.passed(position)
        pinned = self._named.get(address)
        if pinned:
            host = replace(host, names=tuple(dict.fromkeys(pinned)))
        self._ready.append(host)

    def _on_run(self, attributes: Attributes) -> None:
        version = attributes.get("version", "")
        self._version = version if _VERSION.fullmatch(version) else ""
        self._progress.arguments(attributes.get("args", ""))

    def _on_scaninfo(self, attributes: Attributes) -> None:
        self._scanned.append(
            PortsTested(
                transport=sanitize(attributes.get("protocol", "")),
                spec=sanitize(attributes.get("services", ""), TOKEN_LIMIT),
                count=number(attributes.get("numservices"), 0) or 0,
                method=sanitize(attributes.get("type", "")),
            )
        )

    def _on_target(self, attributes: Attributes) -> None:
        if attributes.get("status") != "skipped":
            return
        text = attributes.get("specification", "")
        try:
            known = self._counter.skipped(ip_network(text, strict=False))
        except ValueError:
            known = False
        if not known:
            self._warn("nmap skipped something that is not among the targets.")

    def _on_host(self, attributes: Attributes) -> None:
        ports_asked = bool(self._ports or self._scanned)
        self._host_began = self._fed
        self._reader.begin(attributes, ports_asked=ports_asked)

    def _on_finished(self, attributes: Attributes) -> None:
        # Old versions write no exit attribute after a success.
        if attributes.get("exit", "success") == "success":
            self._success = True
            self._progress.ended()
        else:
            # The attribute repeats the error, which may hold text of a target. So the message does not contain it.
            self._failure = "nmap reported an error, which is in stderr"

    def _on_hosts(self, attributes: Attributes) -> None:
        for key in ("up", "down", "total"):
            value = number(attributes.get(key), 0)
            if value is not None:
                self._reported[key] = value

    def _ports_tested(self) -> tuple[PortsTested, ...]:
        """Return the planned ports, or the ports that nmap reports if those differ."""
        if not self._scanned:
            return self._ports
        reported = sorted((tested.transport, tested.count) for tested in self._scanned)
        if reported == sorted((tested.transport, tested.count) for tested in self._ports):
            return self._ports
        return tuple(self._scanned)


def _names(targets: Targets) -> dict[Address, tuple[str, ...]]:
    """Map pinned addresses to the names that they were resolved from, because nmap gets only numbers."""
    names: dict[Address, tuple[str, ...]] = {}
    for item in targets.items:
        if item.name is not None:
            for network in item.networks:
                if network.num_addresses == 1:
                    known = names.get(network.network_address, ())
                    names[network.network_address] = (*known, item.name)
    return names


def _doctype(_name: str, system: str | None, public: str | None, has_internal_subset: bool) -> None:
    if has_internal_subset or system is not None or public is not None:
        raise _DocumentError("the XML has its own DTD, which nmap never writes")


def _entity(*_declaration: object) -> None:
    raise _DocumentError("the XML declares an entity, which nmap never does")
