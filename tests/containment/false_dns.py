"""A name server with false records: names of the allowed suffix have addresses outside the scope.

This is a program: ``false_dns.py ADDRESS`` prints "ready" and answers over UDP and TCP until it is killed. Other names
than those in its tables get NXDOMAIN. A reverse lookup gets a name of the allowed suffix.
"""

from __future__ import annotations

import socket
import sys
import threading
from typing import Final

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

RECORDS: Final[dict[str, tuple[str, ...]]] = {
    "in": ("A 10.77.1.10",),
    "in6": ("AAAA fd77:1::a",),
    "out": ("A 10.77.2.10",),
    "out6": ("AAAA fd77:2::a",),
    "excluded": ("A 10.77.1.12",),
    "gateway": ("A 10.77.1.1",),
    "mixed": ("A 10.77.1.10", "A 10.77.2.10"),
    "mixed-many": ("A 10.77.1.10", "A 10.77.1.11", "A 10.77.1.12"),
    "mixed6": ("A 10.77.1.10", "AAAA fd77:2::a"),
    "mapped": ("AAAA ::ffff:10.77.2.10",),
    "nat64": ("AAAA 64:ff9b::a4d:20a",),
    "sixtofour": ("AAAA 2002:a4d:20a::1",),
    "compatible": ("AAAA ::10.77.2.10",),
    "loopback": ("A 127.0.0.1",),
    "loopback6": ("AAAA ::1",),
    "zero": ("A 0.0.0.0",),
    "metadata": ("A 169.254.169.254",),
    "multicast": ("A 224.0.0.1",),
    "broadcast": ("A 255.255.255.255",),
    "linklocal": ("AAAA fe80::1",),
    "alias-out": ("CNAME web2.elsewhere.example.",),
    "alias-chain": ("CNAME alias-out.lab.internal.",),
    "alias-excluded": ("CNAME excluded.lab.internal.",),
    "alias-in": ("CNAME in.lab.internal.",),
    "alias-other-suffix": ("CNAME web1.elsewhere.example.",),
    "alias-loop": ("CNAME alias-loop.lab.internal.",),
    "xn--bcher-kva": ("A 10.77.2.10",),
}
"""Records below lab.internal, by their first labels."""
ELSEWHERE: Final[dict[str, tuple[str, ...]]] = {
    "web2.elsewhere.example.": ("A 10.77.2.10",),
    "web1.elsewhere.example.": ("A 10.77.1.10",),
}
REBINDING: Final[dict[str, tuple[str, str]]] = {
    "rebind.lab.internal.": ("10.77.1.10", "10.77.2.10"),
    "rebind-link.lab.internal.": ("10.77.1.11", "10.77.1.12"),
}
"""Names that have the first address in one answer and the second in the next."""

_MAX_CHAIN = 8


class FalseRecords:
    """The records, and how often each rebinding name was queried."""

    def __init__(self) -> None:
        self.queried: dict[str, int] = {}
        self.lock = threading.Lock()

    def answer(self, wire: bytes) -> bytes:
        """Return the response to one query."""
        query = dns.message.from_wire(wire)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        name, kind = query.question[0].name.to_text().lower(), dns.rdatatype.to_text(query.question[0].rdtype)
        for _ in range(_MAX_CHAIN):
            records = self._records(name, kind)
            if records is None:
                response.set_rcode(dns.rcode.NXDOMAIN)
                break
            for wanted in ("CNAME", kind):
                found = [record.split()[1] for record in records if record.split()[0] == wanted]
                if found:
                    response.answer.append(dns.rrset.from_text(name, 0, "IN", wanted, *found))
            aliases = [record.split()[1] for record in records if record.startswith("CNAME ")]
            if not aliases:
                break
            name = aliases[0]
        return response.to_wire()

    def _records(self, name: str, kind: str) -> tuple[str, ...] | None:
        if name in REBINDING:
            if kind != "A":
                return ()
            with self.lock:
                turn = self.queried[name] = self.queried.get(name, -1) + 1
            return (f"A {REBINDING[name][turn % 2]}",)
        if name.endswith((".in-addr.arpa.", ".ip6.arpa.")):
            return ("PTR in.lab.internal.",)
        return ELSEWHERE.get(name) or RECORDS.get(name.removesuffix(".lab.internal."))


def main() -> None:
    """Serve UDP in this thread, and TCP in another, one connection at a time."""
    records, address = FalseRecords(), (sys.argv[1], 53)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(address)
    listener = socket.create_server(address)

    def streams() -> None:
        while True:
            peer, _ = listener.accept()
            with peer:
                size = peer.recv(2)
                if len(size) == 2:
                    response = records.answer(peer.recv(int.from_bytes(size)))
                    peer.sendall(len(response).to_bytes(2) + response)

    threading.Thread(target=streams, daemon=True).start()
    print("ready", flush=True)  # noqa: T201 - read by the test
    while True:
        query, sender = datagrams.recvfrom(4096)
        datagrams.sendto(records.answer(query), sender)


if __name__ == "__main__":
    main()
