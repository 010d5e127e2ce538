"""A real DNS server on loopback whose answers a test writes as text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

MAX_CHAIN = 20


@dataclass
class Zone(asyncio.DatagramProtocol):
    """The records of the server.

    ``records`` maps a name to lines such as ``"A 10.0.0.5"`` or ``"CNAME other.lab.internal."``. ``changing`` maps
    ``(name, type)`` to the answers for successive questions. A ``(name, type)`` in ``silent`` gets no answer, one in
    ``broken`` gets SERVFAIL. ``questions`` is every question seen, in order.
    """

    records: dict[str, list[str]] = field(default_factory=dict)
    changing: dict[tuple[str, str], list[list[str]]] = field(default_factory=dict)
    silent: set[tuple[str, str]] = field(default_factory=set)
    broken: set[tuple[str, str]] = field(default_factory=set)
    questions: list[tuple[str, str]] = field(default_factory=list)
    port: int = 0
    transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)  # in Python 3.11 not a subclass at run time
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        name = query.question[0].name.to_text()
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        self.questions.append((name, kind))
        if (name, kind) in self.silent:
            return
        assert self.transport is not None
        self.transport.sendto(self._response(query, name, kind).to_wire(), addr)

    def _response(self, query: dns.message.Message, name: str, kind: str) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        if (name, kind) in self.broken:
            response.set_rcode(dns.rcode.SERVFAIL)
            return response
        for _ in range(MAX_CHAIN):
            lines = self._lines(name, kind)
            if lines is None:
                response.set_rcode(dns.rcode.NXDOMAIN)
                break
            for wanted in ("CNAME", kind):
                found = [line.split()[1] for line in lines if line.split()[0] == wanted]
                if found:
                    response.answer.append(dns.rrset.from_text(name, 60, "IN", wanted, *found))
            aliases = [line.split()[1] for line in lines if line.startswith("CNAME ")]
            if not aliases or not aliases[0].endswith(".lab.internal."):
                break
            name = aliases[0]
        return response

    def _lines(self, name: str, kind: str) -> list[str] | None:
        if (name, kind) in self.changing:
            script = self.changing[name, kind]
            return script.pop(0) if len(script) > 1 else script[0]
        return self.records.get(name.removesuffix("."))


@asynccontextmanager
async def serve() -> AsyncIterator[Zone]:
    """Serve an empty zone on a free loopback port for as long as the block runs."""
    zone = Zone()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: zone, local_addr=("127.0.0.1", 0))
    try:
        yield zone
    finally:
        transport.close()
