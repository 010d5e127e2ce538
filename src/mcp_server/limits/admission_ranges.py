"""The addresses of a call as ranges, and whether two calls meet on one: a /16 costs what one address does."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from mcp_server.model.target import Network
from mcp_server.scope.address_ranges import Span, merged, span


@dataclass(frozen=True, slots=True)
class Ranges:
    """Merged spans of addresses, IPv4 and IPv6 apart."""

    v4: tuple[Span, ...] = ()
    v6: tuple[Span, ...] = ()

    @classmethod
    def of(cls, networks: Iterable[Network]) -> Self:
        """The ranges of networks in any order, which may overlap."""
        spans: dict[int, list[Span]] = {4: [], 6: []}
        for network in networks:
            spans[network.version].append(span(network))
        return cls(tuple(merged(spans[4])), tuple(merged(spans[6])))

    def overlaps(self, other: Ranges) -> bool:
        """Whether any address lies in both."""
        return _meet(self.v4, other.v4) or _meet(self.v6, other.v6)

    def crowded(self, others: Sequence[Ranges], limit: int) -> bool:
        """Whether any address of these lies in ``limit`` of the others or more."""
        return _deep(self.v4, [other.v4 for other in others], limit) or _deep(
            self.v6, [other.v6 for other in others], limit
        )


def _meet(one: Sequence[Span], other: Sequence[Span]) -> bool:
    if not one or not other or one[0][0] > other[-1][1] or other[0][0] > one[-1][1]:
        return False
    return next(_common(one, other), None) is not None


def _common(one: Sequence[Span], other: Sequence[Span]) -> Iterator[Span]:
    """What two lists of merged spans share: each span of the shorter list is looked for in the longer."""
    few, many = sorted((one, other), key=len)
    for first, last in few:
        # Merged spans are sorted by their first and by their last address at once.
        at = max(bisect_right(many, first, key=_first) - 1, 0)
        while at < len(many) and many[at][0] <= last:
            if many[at][1] >= first:
                yield max(first, many[at][0]), min(last, many[at][1])
            at += 1


def _first(each: Span) -> int:
    return each[0]


def _deep(mine: Sequence[Span], others: Sequence[Sequence[Span]], limit: int) -> bool:
    # An end is put at the address after it, and sorts before a beginning there: touching spans do not add up.
    steps = sorted(
        step for other in others for first, last in _common(mine, other) for step in ((first, 1), (last + 1, -1))
    )
    depth = 0
    for _, step in steps:
        depth += step
        if depth >= limit:
            return True
    return False
