"""What a policy means as a whole: its hash, and the sets of the packet guard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from mcp_server.model.target import Network
from mcp_server.scope.entries import Entries
from mcp_server.scope.guard_sets import GuardSets
from mcp_server.scope.radix import RadixTree
from mcp_server.scope.ranges import WIDTHS, Span, ipv4_networks, ipv6_networks, merged, span, without
from mcp_server.scope.refused import WELL_KNOWN
from mcp_server.scope.terms import PolicyLimits, Terms
from mcp_server.scope.windows import Window

_LOOPBACK: Final[dict[int, list[Span]]] = {network.version: [span(network)] for network in WELL_KNOWN["loopback"]}


def digest(
    allow: Entries,
    exclude: Entries,
    trees: Mapping[int, tuple[RadixTree, RadixTree, RadixTree]],
    limits: PolicyLimits,
    windows: Mapping[str, Window],
    resolvers: Iterable[IPv4Address | IPv6Address],
    refused: Iterable[tuple[Network, str]],
) -> str:
    """SHA-256 (hex) over everything that decides, in one form whatever the spelling.

    Allowed addresses are the ranges on which one set of terms holds. Resolvers keep their order, in which they are
    asked. The policy's title and the numbers of its lines decide nothing, and are left out.
    """
    canonical: dict[str, Any] = {
        "exclude": {v: _written(_spans(exclude, v)) for v in WIDTHS},
        "exclude_names": sorted(exclude.names),
        "limits": asdict(limits),
        "loopback": {v: _by_terms(trees[v][1].all_pieces(), allow) for v in WIDTHS},
        "names": {name: _terms(allow.terms[position]) for name, position in allow.names.items()},
        "networks": {v: _by_terms(_outside(allow, trees[v][0], v), allow) for v in WIDTHS},
        "refused": {v: _written(_refused(refused, v)) for v in WIDTHS},
        "resolvers": [str(address) for address in resolvers],
        "windows": {name: [sorted(w.days), w.start, w.end, w.zone_name] for name, w in windows.items()},
    }
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def guard_sets(
    allow: Entries,
    exclude: Entries,
    resolvers: tuple[IPv4Address | IPv6Address, ...],
    refused: Iterable[tuple[Network, str]],
) -> GuardSets:
    """The sets of the packet guard."""
    allowed = {v: _spans(allow, v) for v in WIDTHS}
    denied = {v: merged([*_spans(exclude, v), *_refused(refused, v)]) for v in WIDTHS}
    own = {
        v: [each for each in _raw_spans(allow, v) if _LOOPBACK[v][0][0] <= each[0] and each[1] <= _LOOPBACK[v][0][1]]
        for v in WIDTHS
    }
    return GuardSets(
        allow4=ipv4_networks(without(allowed[4], _LOOPBACK[4])),
        allow6=ipv6_networks(without(allowed[6], _LOOPBACK[6])),
        exclude4=ipv4_networks(denied[4]),
        exclude6=ipv6_networks(denied[6]),
        resolvers=resolvers,
        loopback=any(without(merged(own[v]), denied[v]) for v in WIDTHS),
    )


def _raw_spans(entries: Entries, version: int) -> Iterable[Span]:
    width = WIDTHS[version]
    return ((first, first | ((1 << (width - length)) - 1)) for first, length, _ in entries.networks[version])


def _spans(entries: Entries, version: int) -> list[Span]:
    return merged(_raw_spans(entries, version))


def _refused(refused: Iterable[tuple[Network, str]], version: int) -> list[Span]:
    return merged(span(network) for network, _ in refused if network.version == version)


def _written(spans: Iterable[Span]) -> list[str]:
    return [f"{first:x}-{last:x}" for first, last in spans]


def _outside(allow: Entries, tree: RadixTree, version: int) -> Iterable[tuple[int, int, int | None]]:
    """The ranges allowed outside of loopback, each with the position of an entry that has the terms there."""
    terms = {id(allow.terms[position]) for _, _, position in allow.networks[version]}
    if len(terms) != 1:
        return tree.all_pieces()
    # One set of terms everywhere, as in most policies: which of two nested networks decides does not matter.
    position = allow.networks[version][0][2]
    low, high = _LOOPBACK[version][0]
    return (
        (first, last, position) for first, last in _raw_spans(allow, version) if not (low <= first and last <= high)
    )


def _by_terms(pieces: Iterable[tuple[int, int, int | None]], allow: Entries) -> dict[str, list[str]]:
    by_terms: dict[Terms, list[Span]] = {}
    for first, last, position in pieces:
        if position is not None:
            by_terms.setdefault(allow.terms[position], []).append((first, last))
    return {_terms(terms): _written(merged(spans)) for terms, spans in by_terms.items()}


def _terms(terms: Terms) -> str:
    rate = "" if terms.packets_per_second is None else repr(float(terms.packets_per_second))
    return f"{terms.max_risk};{rate};{','.join(sorted(terms.windows))}"
