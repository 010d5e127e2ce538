"""The small answer for an agent: what a run found, counted as it arrives and written within a budget.

For few hosts there is a line each, ports with the same service factored together; for many there are groups
of hosts with the same open ports. Neither loses an open port without saying so. Lines and groups are in our words
only: what targets said of their services stands in a list of its own, each text once, and a line points to it
with ``#N``.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from mcp_server.model.addresses import Address, addresses_text, ipv4_items, ipv6_items, joined
from mcp_server.model.host import Host
from mcp_server.model.summary import HostSummary, host_summary, open_ports_text

HOST_COUNTS: Final = ("hosts_up", "open_ports")
"""Names of the counts that a run of a host scanner has."""
LINE_HOSTS = 1000
"""Hosts whose line is kept; a run with more of them is shown as groups."""
PORT_SETS_CHARS = 1_000_000
"""Characters kept of all distinct port sets; hosts with further ones share a group that says so."""

NOTHING_OPEN = "no open ports"
TIMED_OUT = "timed out"
NOT_KEPT = "open ports not kept here"
_NOTHING, _TIMED, _UNKEPT = range(3)
_LEAST = 24
_TEXTS_FRAME = len(',"from_target":{"version_probe":{}}')
"""What the list of texts costs besides its entries, as `mcp_server.api.views` writes it."""


@dataclass(frozen=True, slots=True)
class DigestView:
    """One rendering of a digest: ``hosts`` or ``groups``, whichever ``kind`` says; the other is None.

    ``hosts`` maps an address to what is open on it; hosts with nothing to tell share one entry, whose key is
    written in the notation of `mcp_server.model.addresses`. ``texts`` maps the N of every ``#N`` in ``hosts`` to what
    a target said. Each group has ``ports``, ``count`` and ``addresses`` in that notation. ``omitted`` hosts are in
    neither; ``up`` leaves out the ``timed_out`` ones.
    """

    kind: str
    hosts: dict[str, str] | None
    texts: dict[str, str]
    groups: list[dict[str, str]] | None
    omitted: int
    up: int
    open_ports: int
    timed_out: int


class HostDigest:
    """Collects the hosts of one run, each added once, in about 20 bytes a host."""

    def __init__(self) -> None:
        self.up = 0
        self.open_ports = 0
        self.timed_out = 0
        self._v4, self._v4_set = array("I"), array("I")
        self._v6_high, self._v6_low, self._v6_set = array("Q"), array("Q"), array("I")
        self._sets: dict[str, int] = {NOTHING_OPEN: _NOTHING, TIMED_OUT: _TIMED, NOT_KEPT: _UNKEPT}
        self._room = PORT_SETS_CHARS
        self._lines: dict[Address, HostSummary] | None = {}

    @property
    def counts(self) -> dict[str, int]:
        """The counts of a run, named as in `HOST_COUNTS`."""
        return dict(zip(HOST_COUNTS, (self.up, self.open_ports), strict=True))

    def add(self, host: Host) -> None:
        """Count one host, and keep what its line and its group need; a host that is not up is passed over."""
        if host.state != "up":
            return
        self.open_ports += sum(port.state == "open" for port in host.ports)
        if host.timed_out:
            self.timed_out += 1
        else:
            self.up += 1
        address = IPv6Address(host.address) if ":" in host.address else IPv4Address(host.address)
        self._keep(address, self._port_set(host))
        if self._lines is None:
            return
        line = host_summary(host)
        if line.parts:
            self._lines[address] = line
        if len(self._lines) > LINE_HOSTS:
            self._lines = None

    def view(self, budget_chars: int) -> DigestView:
        """Return lines if they fit ``budget_chars`` characters of JSON, else groups, cut where even they do not."""
        hosts, texts, omitted = self.lines(budget_chars)
        groups: list[dict[str, str]] | None = None
        if omitted:
            groups, omitted = self.groups(budget_chars)
        return DigestView(
            kind="hosts" if groups is None else "groups",
            hosts=hosts if groups is None else None,
            texts=texts if groups is None else {},
            groups=groups,
            omitted=omitted,
            up=self.up,
            open_ports=self.open_ports,
            timed_out=self.timed_out,
        )

    def lines(self, budget_chars: int) -> tuple[dict[str, str], dict[str, str], int]:
        """Return address to line in numeric order, IPv4 first, the texts they point to, and how many hosts did not fit.

        Past `LINE_HOSTS` hosts no lines are kept, and all hosts are among those that did not fit.
        """
        total = self.up + self.timed_out
        if self._lines is None:
            return {}, {}, total
        room = budget_chars - 2
        shown: dict[str, str] = {}
        texts = _Texts()
        told = 0
        entries = [(str(address), self._lines[address], 1) for address in sorted(self._lines, key=_order)]
        for text, numbers in self._grouped().items():
            v4, v6 = self._without_line(numbers)
            if v4 or v6:
                entries.append((addresses_text(v4, v6), HostSummary(((text, ""),)), len(v4) + len(v6)))
        for key, line, hosts in entries:
            text, new = texts.point(line)
            cost = _quoted(key) + _quoted(text) + 2 + texts.cost(new)
            if cost > room:
                break
            room -= cost
            shown[key] = text
            texts.keep(new)
            told += hosts
        return shown, texts.listed(), total - told

    def groups(self, budget_chars: int) -> tuple[list[dict[str, str]], int]:
        """Return hosts grouped by their open ports, by lowest address, and how many hosts did not fit.

        Where not all fit, every port set is named before any list of addresses is written out, and a list
        that is cut ends with ``+N`` for the addresses it leaves out.
        """
        groups = [_Group(text, *numbers) for text, numbers in self._grouped().items()]
        room = budget_chars - 2
        kept: list[_Group] = []
        for group in sorted(groups, key=lambda group: -group.count):
            if group.overhead > room:
                break
            room -= group.overhead
            kept.append(group)
        # The shortest lists first: each gets an equal share of what the ones before it left.
        for index, group in enumerate(sorted(kept, key=lambda group: group.size)):
            room -= group.fit(room // (len(kept) - index))
        chosen = {id(group) for group in kept}
        shown = [group for group in groups if id(group) in chosen]
        return [group.entry() for group in shown], self.up + self.timed_out - sum(group.shown for group in shown)

    def _port_set(self, host: Host) -> int:
        text = open_ports_text(host)
        if host.timed_out:
            text = f"{text} ({TIMED_OUT})" if text else TIMED_OUT
        known = self._sets.get(text or NOTHING_OPEN)
        if known is None:
            if len(text) > self._room:
                return _UNKEPT
            # What the dictionary costs for each text is counted with it.
            self._room -= len(text) + 100
            known = self._sets[text] = len(self._sets)
        return known

    def _keep(self, address: Address, port_set: int) -> None:
        number = int(address)
        if address.version == 4:
            self._v4.append(number)
            self._v4_set.append(port_set)
        else:
            self._v6_high.append(number >> 64)
            self._v6_low.append(number & 0xFFFFFFFFFFFFFFFF)
            self._v6_set.append(port_set)

    def _grouped(self) -> dict[str, tuple[list[int], list[int]]]:
        """Return port set to sorted IPv4 and IPv6 numbers; by lowest address, the sets without ports last."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for number, port_set in sorted(zip(self._v4, self._v4_set, strict=True)):
            found.setdefault(port_set, ([], []))[0].append(number)
        for number, port_set in sorted(zip(self._v6_numbers(), self._v6_set, strict=True)):
            found.setdefault(port_set, ([], []))[1].append(number)
        texts = list(self._sets)
        last = (_UNKEPT, _NOTHING, _TIMED)
        order = [port_set for port_set in found if port_set not in last] + [one for one in last if one in found]
        return {texts[port_set]: found[port_set] for port_set in order}

    def _v6_numbers(self) -> Iterator[int]:
        return (high << 64 | low for high, low in zip(self._v6_high, self._v6_low, strict=True))

    def _without_line(self, numbers: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
        lines = self._lines or {}
        v4, v6 = numbers
        return (
            [number for number in v4 if IPv4Address(number) not in lines],
            [number for number in v6 if IPv6Address(number) not in lines],
        )


class _Texts:
    """What targets said, each text once, numbered from 1 in the order of the lines that point to it."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def point(self, line: HostSummary) -> tuple[str, list[str]]:
        """Return the line, with ``#N`` after each part of which a target said something, and the texts that are new."""
        new: list[str] = []
        parts = []
        for ours, theirs in line.parts:
            if not theirs:
                parts.append(ours)
                continue
            if theirs not in self._numbers and theirs not in new:
                new.append(theirs)
            number = self._numbers.get(theirs) or len(self._numbers) + 1 + new.index(theirs)
            parts.append(f"{ours}#{number}")
        return "; ".join(parts), new

    def cost(self, new: list[str]) -> int:
        """Return the characters of JSON that further texts take."""
        frame = _TEXTS_FRAME if new and not self._numbers else 0
        return frame + sum(len(str(len(self._numbers) + len(new))) + 4 + _quoted(text) for text in new)

    def keep(self, new: list[str]) -> None:
        """Give further texts their numbers."""
        for text in new:
            self._numbers[text] = len(self._numbers) + 1

    def listed(self) -> dict[str, str]:
        """Return number to text."""
        return {str(number): text for text, number in self._numbers.items()}


class _Group:
    """The hosts with one port set, and as much of their list as fits."""

    def __init__(self, ports: str, v4: list[int], v6: list[int]) -> None:
        self.ports = ports
        self.count = len(v4) + len(v6)
        self.items = [*ipv4_items(v4), *ipv6_items(v6)]
        self.text = "; ".join(joined(prefix, pieces) for prefix, pieces, _ in self.items)
        self.size = len(self.text)
        self.shown = self.count
        self.mark = f"; +{self.count}"
        # Naming a group is of use only with room for an address, or for saying how many there are.
        self.reserve = max(len(self.mark), min(self.size, _LEAST))
        rest = {"ports": ports, "count": str(self.count), "addresses": "x" * self.reserve}
        self.overhead = len(json.dumps(rest, ensure_ascii=False)) + 2

    def fit(self, room: int) -> int:
        """Cut the list to ``room`` characters beside the reserve, if need be; return how many of them it takes."""
        allowed = self.reserve + room
        if self.size > allowed:
            self._cut(allowed - len(self.mark))
        return max(0, len(self.text) - self.reserve)

    def _cut(self, room: int) -> None:
        kept: list[str] = []
        self.shown = 0
        for prefix, pieces, sizes in self.items:
            room -= len(prefix) + 4
            taken = 0
            for piece in pieces:
                if len(piece) + 1 > room:
                    break
                room -= len(piece) + 1
                taken += 1
            if taken:
                kept.append(joined(prefix, pieces[:taken]))
                self.shown += sum(sizes[:taken])
            if taken < len(pieces):
                break
        self.text = "; ".join([*kept, f"+{self.count - self.shown}"])

    def entry(self) -> dict[str, str]:
        return {"ports": self.ports, "count": str(self.count), "addresses": self.text}


def _order(address: Address) -> tuple[int, int]:
    return address.version, int(address)


def _quoted(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False))
