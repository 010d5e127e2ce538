"""A radix tree of networks: which of very many holds an address most closely, and which lie inside a network.

Path-compressed (Morrison's PATRICIA): a node stands for a network, and has children only where networks below it part.
A look-up takes one step for each bit at which they do, at most 32 or 128, however many there are. Why not a library:
docs/decisions/0006-policy.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

Prefix = tuple[int, int, int]
"""First address, prefix length, and the number the network goes by."""

# A node is a list, because very many of them are made at once: its first and last address, the first address of its
# upper half, its number (None where it only joins two others), and the nodes in its lower and upper half.
_FIRST, _LAST, _HALF, _NUMBER, _LOWER, _UPPER = range(6)


class RadixTree:
    """Networks of one IP version, each with a number; of equal networks the first is kept.

    ``width`` is the number of bits of an address. Addresses are integers, ranges are inclusive.
    """

    def __init__(self, width: int, networks: Iterable[Prefix]) -> None:
        self._last: Final = (1 << width) - 1
        self._root: Final[list[Any]] = [0, self._last, 1 << (width - 1), None, None, None]
        self._build(width, sorted(networks))

    def _build(self, width: int, networks: list[Prefix]) -> None:
        # In order of address, and wider before narrower, each network belongs on the path that ends in the one before.
        path = [self._root]
        for first, length, number in networks:
            last = first | ((1 << (width - length)) - 1)
            below = None
            while path[-1][_LAST] < last:
                below = path.pop()
            parent = path[-1]
            if parent[_FIRST] == first and parent[_LAST] == last:
                if parent[_NUMBER] is None:
                    parent[_NUMBER] = number
                continue
            node = [first, last, (first + last + 1) >> 1, number, None, None]
            side = _LOWER if first < parent[_HALF] else _UPPER
            if parent[side] is not None and below is not None:
                # Both lie in one half of the parent: they part further down, at the first bit in which they differ.
                bits = (below[_FIRST] ^ first).bit_length()
                start = first >> bits << bits
                joint = [start, start | ((1 << bits) - 1), start | (1 << (bits - 1)), None, below, node]
                parent[side] = joint
                path += (joint, node)
            else:
                parent[side] = node
                path.append(node)

    def holding(self, first: int, last: int) -> int | None:
        """The number of the narrowest network that holds the whole range, or None."""
        found: int | None = None
        node: list[Any] | None = self._root
        while node is not None:
            low, high, half, number, lower, upper = node
            if first < low or high < last:
                break
            if number is not None:
                found = number
            node = lower if first < half else upper
        return found

    def touching(self, first: int, last: int) -> tuple[int | None, list[Prefix]]:
        """What decides on a range that is a network: the narrowest one that holds it, and all those inside it.

        The latter are ``(first, last, number)``, in order of address, wider before narrower.
        """
        holder: int | None = None
        stack: list[list[Any]] = []
        node: list[Any] | None = self._root
        while node is not None:
            low, high, half, number, lower, upper = node
            if first < low or high < last:
                if first <= low and high <= last:
                    stack = [node]
                break
            if number is not None:
                holder = number
            if low == first and high == last:
                stack = [child for child in (upper, lower) if child is not None]
                break
            node = lower if first < half else upper
        inside: list[Prefix] = []
        while stack:
            low, high, _, number, lower, upper = stack.pop()
            if number is not None:
                inside.append((low, high, number))
            if upper is not None:
                stack.append(upper)
            if lower is not None:
                stack.append(lower)
        return holder, inside

    def pieces(self, first: int, last: int) -> list[tuple[int, int, int | None]]:
        """A range that is a network, cut where another network decides: first, last, and its number or None.

        Every address is in one piece, and the narrowest network that holds it is that piece's.
        """
        return cut(first, last, *self.touching(first, last))

    def all_pieces(self) -> list[tuple[int, int, int | None]]:
        """The whole address space, cut as in `pieces`."""
        return self.pieces(0, self._last)


def cut(first: int, last: int, holder: int | None, inside: list[Prefix]) -> list[tuple[int, int, int | None]]:
    """The pieces of a range, from what `RadixTree.touching` found for it."""
    if not inside:
        return [(first, last, holder)]
    found: list[tuple[int, int, int | None]] = []
    open_: list[tuple[int, int | None]] = [(last, holder)]
    at = first
    for start, end, number in inside:
        while open_[-1][0] < start:
            at = _close(open_, at, found)
        if at < start:
            found.append((at, start - 1, open_[-1][1]))
            at = start
        open_.append((end, number))
    while open_:
        at = _close(open_, at, found)
    return found


def _close(open_: list[tuple[int, int | None]], at: int, found: list[tuple[int, int, int | None]]) -> int:
    end, number = open_.pop()
    if at <= end:
        found.append((at, end, number))
        return end + 1
    return at
