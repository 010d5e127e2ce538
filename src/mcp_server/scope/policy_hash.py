"""The hash of a policy: equal for two policies if and only if they make the same decisions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from mcp_server.scope.address_ranges import WIDTHS, Span, merged
from mcp_server.scope.entries import Entries, Terms
from mcp_server.scope.grant import PolicyLimits
from mcp_server.scope.radix import RadixTree
from mcp_server.scope.special_networks import LOOPBACK
from mcp_server.scope.windows import Window


def policy_hash(
    allow: Entries,
    exclude: Entries,
    trees: Mapping[int, tuple[RadixTree, RadixTree, RadixTree]],
    limits: PolicyLimits,
    windows: Mapping[str, Window],
    resolvers: Iterable[IPv4Address | IPv6Address],
    refused: Mapping[int, list[Span]],
) -> str:
    """SHA-256 (hex) of everything that affects a decision, independent of spelling.

    Allowed addresses are hashed as the ranges with equal terms. The order of resolvers counts, because they are asked
    in that order. The name of the policy and the line numbers affect no decision, so they are not part of the hash.
    """
    canonical: dict[str, Any] = {
        "exclude": {v: _written(merged(exclude.spans(v))) for v in WIDTHS},
        "exclude_names": sorted(exclude.names),
        "limits": asdict(limits),
        "loopback": {v: _by_terms(trees[v][1].all_pieces(), allow) for v in WIDTHS},
        "names": {name: _terms(allow.terms[position]) for name, position in allow.names.items()},
        "networks": {v: _by_terms(_outside_loopback(allow, trees[v][0], v), allow) for v in WIDTHS},
        "refused": {v: _written(refused[v]) for v in WIDTHS},
        "resolvers": [str(address) for address in resolvers],
        "windows": {name: [sorted(w.days), w.start, w.end, w.zone_name] for name, w in windows.items()},
    }
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _written(spans: Iterable[Span]) -> list[str]:
    return [f"{first:x}-{last:x}" for first, last in spans]


def _outside_loopback(allow: Entries, tree: RadixTree, version: int) -> Iterable[tuple[int, int, int | None]]:
    """Return the allowed ranges outside loopback, each with the position of an entry that has its terms."""
    if len({id(allow.terms[position]) for _, _, position in allow.networks[version]}) != 1:
        return tree.all_pieces()
    # Most policies have the same terms everywhere. Then it does not matter which of two nested networks decides.
    position = allow.networks[version][0][2]
    low, high = LOOPBACK[version]
    return ((first, last, position) for first, last in allow.spans(version) if not (low <= first and last <= high))


def _by_terms(pieces: Iterable[tuple[int, int, int | None]], allow: Entries) -> dict[str, list[str]]:
    by_terms: dict[Terms, list[Span]] = {}
    for first, last, position in pieces:
        if position is not None:
            by_terms.setdefault(allow.terms[position], []).append((first, last))
    return {_terms(terms): _written(merged(spans)) for terms, spans in by_terms.items()}


def _terms(terms: Terms) -> str:
    rate = "" if terms.packets_per_second is None else repr(float(terms.packets_per_second))
    return f"{terms.max_risk};{rate};{','.join(sorted(terms.windows))}"
