"""The short answer for an agent: the findings of a run, collected as they arrive and written within a budget.

If there are few hosts, each has a line, in which ports with the same service are grouped. If there are many, hosts with
the same open ports are grouped. Neither form leaves out an open port without saying so. Text that targets wrote
is never part of a line: each text is listed once in a list of texts, and a line refers to it with ``#N``.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from mcp_server.model.addresses import Address, addresses_text, ipv4_items, ipv6_items, joined
from mcp_server.model.host import Host
from mcp_server.model.summary import HostSummary, host_summary, open_ports_text
from mcp_server.model.untrusted import VERSION_PROBE

HOST_COUNTS: Final = ("hosts_up", "open_ports")
"""The names of the counts of a run that scans hosts."""
HOST_FIELDS: Final[dict[str, Any]] = {
    "up": {"type": "integer"},
    "open_ports": {"type": "integer"},
    "hosts": {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "description": "Address: open ports and services; #N is text N of from_target.version_probe",
    },
    "groups": {
        "type": "array",
        "items": {"type": "object"},
        "description": "Instead of hosts when there are many: addresses by the ports they have open",
    },
    "omitted": {"type": "integer", "description": "Hosts not shown here"},
}
"""The JSON Schema of `HostDigestView.fields`."""
LINE_HOSTS = 1000
"""The most hosts whose lines are kept. A run with more hosts is shown as groups."""
PORT_SETS_CHARS = 1_000_000
"""The most characters of all distinct port sets. Hosts with further port sets share the group `NOT_KEPT`."""

NOTHING_OPEN = "no open ports"
TIMED_OUT = "timed out"
NOT_KEPT = "open ports not kept here"
_NOTHING, _TIMED, _UNKEPT = range(3)
_ADDRESSES_CHARS_MIN = 24
_TEXTS_FRAME = len(',"from_target":{"version_probe":{}}')
"""Characters of the empty list of texts, as `mcp_server.api.views` writes it."""


@dataclass(frozen=True, slots=True)
class HostDigestView:
    """A digest within a budget. Either ``hosts`` or ``groups`` is set; the other is None.

    ``hosts`` maps an address to a line. Hosts without a line share one entry, whose key is in the notation of
    `mcp_server.model.addresses`. ``texts`` maps the N of every ``#N`` in ``hosts`` to text of a target. Each group has
    ``ports``, ``count`` and ``addresses`` in the same notation. ``omitted`` is the number of hosts that are in neither.
    ``up`` does not include the ``timed_out`` hosts.
    """

    hosts: dict[str, str] | None
    texts: dict[str, str]
    groups: list[dict[str, str]] | None
    omitted: int
    up: int
    open_ports: int
    timed_out: int

    @property
    def summary(self) -> str:
        """The counts in words: ``3 up, 5 open, 1 timed out``."""
        timed_out = f", {self.timed_out} timed out" if self.timed_out else ""
        return f"{self.up} up, {self.open_ports} open{timed_out}"

    def fields(self) -> dict[str, Any]:
        """Return the fields of a structured answer, without text of a target. Their schema is `HOST_FIELDS`."""
        fields: dict[str, Any] = {"up": self.up, "open_ports": self.open_ports}
        optional = {"hosts": self.hosts, "groups": self.groups, "omitted": self.omitted or None}
        return fields | {name: value for name, value in optional.items() if value is not None}

    def lines(self) -> list[str]:
        """Return the same content as lines of text."""
        if self.hosts is not None:
            lines = [f"{address} {ports}".rstrip() for address, ports in self.hosts.items()]
        else:
            lines = [f"{group['ports']}: {group['addresses']}" for group in self.groups or []]
        return [*lines, f"({self.omitted} more hosts)"] if self.omitted else lines

    def from_target(self) -> dict[str, dict[str, str]]:
        """Return text of targets by its source and its number."""
        return {VERSION_PROBE: self.texts} if self.texts else {}


class HostDigest:
    """Collects the hosts of one run in about 20 bytes each. Each host must be added once."""

    def __init__(self) -> None:
        self.up = 0
        self.open_ports = 0
        self.timed_out = 0
        self._v4, self._v4_set = array("I"), array("I")
        self._v6_high, self._v6_low, self._v6_set = array("Q"), array("Q"), array("I")
        self._sets: dict[str, int] = {NOTHING_OPEN: _NOTHING, TIMED_OUT: _TIMED, NOT_KEPT: _UNKEPT}
        self._remaining = PORT_SETS_CHARS
        self._lines: dict[Address, HostSummary] | None = {}

    @property
    def counts(self) -> dict[str, int]:
        """The counts of the run, named as in `HOST_COUNTS`."""
        return dict(zip(HOST_COUNTS, (self.up, self.open_ports), strict=True))

    @property
    def summary(self) -> str:
        """The count of hosts in words, for progress reports: ``3 up``."""
        return f"{self.up} up"

    def add(self, host: Host) -> None:
        """Count a host, and keep the data for its line and its group. A host that is not up is ignored."""
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

    def view(self, budget_chars: int) -> HostDigestView:
        """Return lines if they fit in ``budget_chars`` characters of JSON, otherwise groups, cut if necessary."""
        hosts, texts, omitted = self.lines(budget_chars)
        groups: list[dict[str, str]] | None = None
        if omitted:
            groups, omitted = self.groups(budget_chars)
        return HostDigestView(
            hosts=hosts if groups is None else None,
            texts=texts if groups is None else {},
            groups=groups,
            omitted=omitted,
            up=self.up,
            open_ports=self.open_ports,
            timed_out=self.timed_out,
        )

    def lines(self, budget_chars: int) -> tuple[dict[str, str], dict[str, str], int]:
        """Return the lines by address, the texts that they refer to, and how many hosts did not fit.

        Addresses are in numeric order, IPv4 first. If there are more than `LINE_HOSTS` hosts, there are no lines, and
        no host fits.
        """
        total = self.up + self.timed_out
        if self._lines is None:
            return {}, {}, total
        remaining = budget_chars - 2
        shown: dict[str, str] = {}
        texts = _Texts()
        hosts_shown = 0
        entries = [(str(address), self._lines[address], 1) for address in sorted(self._lines, key=_order)]
        for text, numbers in self._grouped().items():
            v4, v6 = self._without_line(numbers)
            if v4 or v6:
                entries.append((addresses_text(v4, v6), HostSummary(((text, ""),)), len(v4) + len(v6)))
        for key, line, hosts in entries:
            text, new = texts.refer(line)
            cost = _json_size(key) + _json_size(text) + 2 + texts.cost(new)
            if cost > remaining:
                break
            remaining -= cost
            shown[key] = text
            texts.keep(new)
            hosts_shown += hosts
        return shown, texts.by_number(), total - hosts_shown

    def groups(self, budget_chars: int) -> tuple[list[dict[str, str]], int]:
        """Return hosts grouped by their open ports, ordered by lowest address, and how many hosts did not fit.

        If not all fit, every port set is named first, and addresses are listed with the characters that are left. A
        list of addresses that is cut ends with ``+N``: N is the number of addresses left out.
        """
        groups = [_Group(text, *numbers) for text, numbers in self._grouped().items()]
        remaining = budget_chars - 2
        kept: list[_Group] = []
        for group in sorted(groups, key=lambda group: -group.count):
            if group.overhead > remaining:
                break
            remaining -= group.overhead
            kept.append(group)
        # The shortest list comes first, so that later lists share the characters that it does not use.
        for index, group in enumerate(sorted(kept, key=lambda group: group.size)):
            remaining -= group.fit(remaining // (len(kept) - index))
        chosen = {id(group) for group in kept}
        shown = [group for group in groups if id(group) in chosen]
        return [group.entry() for group in shown], self.up + self.timed_out - sum(group.shown for group in shown)

    def _port_set(self, host: Host) -> int:
        text = open_ports_text(host)
        if host.timed_out:
            text = f"{text} ({TIMED_OUT})" if text else TIMED_OUT
        known = self._sets.get(text or NOTHING_OPEN)
        if known is None:
            if len(text) > self._remaining:
                return _UNKEPT
            # The 100 characters stand for the memory of a dictionary entry.
            self._remaining -= len(text) + 100
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
        """Return sorted IPv4 and IPv6 numbers by port set: by lowest address, sets without ports last."""
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
    """Texts of targets, each once, numbered from 1 in the order of the lines that refer to them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def refer(self, line: HostSummary) -> tuple[str, list[str]]:
        """Return the line, with ``#N`` after each part that has text of a target, and the texts that are new."""
        new: list[str] = []
        parts = []
        for trusted, from_target in line.parts:
            if not from_target:
                parts.append(trusted)
                continue
            if from_target not in self._numbers and from_target not in new:
                new.append(from_target)
            number = self._numbers.get(from_target) or len(self._numbers) + 1 + new.index(from_target)
            parts.append(f"{trusted}#{number}")
        return "; ".join(parts), new

    def cost(self, new: list[str]) -> int:
        """Return how many characters of JSON the new texts add."""
        frame = _TEXTS_FRAME if new and not self._numbers else 0
        return frame + sum(len(str(len(self._numbers) + len(new))) + 4 + _json_size(text) for text in new)

    def keep(self, new: list[str]) -> None:
        """Number the new texts."""
        for text in new:
            self._numbers[text] = len(self._numbers) + 1

    def by_number(self) -> dict[str, str]:
        """Return the texts by number."""
        return {str(number): text for text, number in self._numbers.items()}


class _Group:
    """The hosts with one port set, and as much of the list of their addresses as fits."""

    def __init__(self, ports: str, v4: list[int], v6: list[int]) -> None:
        self.ports = ports
        self.count = len(v4) + len(v6)
        self.items = [*ipv4_items(v4), *ipv6_items(v6)]
        self.text = "; ".join(joined(prefix, pieces) for prefix, pieces, _ in self.items)
        self.size = len(self.text)
        self.shown = self.count
        self.mark = f"; +{self.count}"
        # The fewest characters for a group that is shown: a few addresses, or at least the number of its hosts.
        self.reserved = max(len(self.mark), min(self.size, _ADDRESSES_CHARS_MIN))
        rest = {"ports": ports, "count": str(self.count), "addresses": "x" * self.reserved}
        self.overhead = len(json.dumps(rest, ensure_ascii=False)) + 2

    def fit(self, extra: int) -> int:
        """Cut the list to the reserved characters plus ``extra`` if necessary; return how many of ``extra`` it uses."""
        allowed = self.reserved + extra
        if self.size > allowed:
            self._cut(allowed - len(self.mark))
        return max(0, len(self.text) - self.reserved)

    def _cut(self, remaining: int) -> None:
        kept: list[str] = []
        self.shown = 0
        for prefix, pieces, sizes in self.items:
            remaining -= len(prefix) + 4
            taken = 0
            for piece in pieces:
                if len(piece) + 1 > remaining:
                    break
                remaining -= len(piece) + 1
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


def _json_size(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False))
