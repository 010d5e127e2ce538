"""A radix tree of networks: finds the narrowest network that contains an address, and the networks inside a network.

The tree is path-compressed (Morrison's PATRICIA): a node stands for a network, and a node without a network exists only
where two networks below it separate. A look-up takes at most 32 or 128 steps, however many networks there are.
docs/decisions/0006-policy.md says why this is not a library.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

Prefix = tuple[int, int, int]
"""First address, prefix length, and the number of the network."""

# A node is a list, because 100,000 of them are made at once: first and last address, first address of the upper half,
# the number of the network (None for a node without one), and the nodes in the lower and in the upper half.
_FIRST, _LAST, _HALF, _NUMBER, _LOWER, _UPPER = range(6)


class RadixTree:
    """Networks of one IP version, each with a number. Of equal networks, the first is kept.

    ``width`` is the number of bits of an address. Addresses are integers, and ranges are inclusive.
    """

    def __init__(self, width: int, networks: Iterable[Prefix]) -> None:
        self._last: Final = (1 << width) - 1
        self._root: Final[list[Any]] = [0, self._last, 1 << (width - 1), None, None, None]
        self._build(width, sorted(networks))

    def _build(self, width: int, networks: list[Prefix]) -> None:
        # Sorted by address, and wider before narrower: the parent of each network is on the path to the previous one.
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
                # Both are in one half of the parent: they separate at the first bit in which they differ.
                bits = (below[_FIRST] ^ first).bit_length()
                start = first >> bits << bits
                joint = [start, start | ((1 << bits) - 1), start | (1 << (bits - 1)), None, below, node]
                parent[side] = joint
                path += (joint, node)
            else:
                parent[side] = node
                path.append(node)

    def holding(self, first: int, last: int) -> int | None:
        """Return the number of the narrowest network that contains the whole range, or None."""
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
        """Return the networks that decide about a range, which must be a network itself.

        Returns the number of the narrowest network that contains the range (or None), and the networks inside the range
        as ``(first, last, number)``, in order of address, wider before narrower.
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
        """Cut a range, which must be a network itself, into pieces with one deciding network each.

        A piece is its first address, its last address, and the number of the narrowest network that contains it, or
        None. The pieces cover the range.
        """
        return cut(first, last, *self.touching(first, last))

    def all_pieces(self) -> list[tuple[int, int, int | None]]:
        """Return the whole address space, cut as in `pieces`."""
        return self.pieces(0, self._last)


def cut(first: int, last: int, holder: int | None, inside: list[Prefix]) -> list[tuple[int, int, int | None]]:
    """Return the pieces of a range, from the result of `RadixTree.touching` for it."""
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
