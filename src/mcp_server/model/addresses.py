"""Sets of addresses, and a short notation for addresses and ports.

IPv4 uses nmap's notation: each octet is a list of numbers and ranges (``10.78.1,5.4-9,12``). Braces factor out a
common /16: ``10.78.{1.4-9,12 3.7}``. IPv6 factors out all but the last group, with hexadecimal ranges:
``fd77:1::{a-14,20}``. Items are separated by ``; ``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from mcp_server.model.target import Network

Address = IPv4Address | IPv6Address

_FULL_BLOCK = (1 << 256) - 1


class AddressSet:
    """A set of addresses that takes about one bit for each address if they are dense.

    It keeps one 256-bit mask for each /24 (IPv4) or /120 (IPv6) that has an address in the set.
    """

    def __init__(self) -> None:
        self._blocks: dict[tuple[int, int], int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, address: Address) -> bool:
        number = int(address)
        return bool(self._blocks.get((address.version, number >> 8), 0) >> (number & 0xFF) & 1)

    def __iter__(self) -> Iterator[Address]:
        for (version, block), mask in sorted(self._blocks.items()):
            for low in range(256):
                if mask >> low & 1:
                    yield _address(version, block << 8 | low)

    def add(self, address: Address) -> bool:
        """Add an address and return whether it is new."""
        number = int(address)
        key = (address.version, number >> 8)
        mask = self._blocks.get(key, 0)
        bit = 1 << (number & 0xFF)
        if mask & bit:
            return False
        self._blocks[key] = mask | bit
        self._count += 1
        return True

    def missing(self, networks: Iterable[Network]) -> Iterator[Address]:
        """Yield the addresses of ``networks`` that are not in the set, in order. A full block takes one step."""
        for network in networks:
            first, last = int(network.network_address), int(network.broadcast_address)
            block = first >> 8
            while block <= last >> 8:
                mask = self._blocks.get((network.version, block), 0)
                if mask != _FULL_BLOCK:
                    low, high = max(first, block << 8), min(last, block << 8 | 0xFF)
                    for number in range(low, high + 1):
                        if not mask >> (number & 0xFF) & 1:
                            yield _address(network.version, number)
                block += 1


def _address(version: int, number: int) -> Address:
    return IPv4Address(number) if version == 4 else IPv6Address(number)


def spans(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return sorted numbers without duplicates as (first, last) pairs of consecutive numbers, both inclusive."""
    found: list[tuple[int, int]] = []
    first = last = -2
    for number in numbers:
        if number == last + 1:
            last = number
            continue
        if last >= 0:
            found.append((first, last))
        first = last = number
    if last >= 0:
        found.append((first, last))
    return found


def ranges(numbers: Iterable[int]) -> str:
    """Return sorted numbers as ``1-1024,3389``. Two consecutive numbers stay a list."""
    return ",".join(_span(first, last) for first, last in spans(numbers))


def _span(first: int, last: int) -> str:
    if last - first >= 2:
        return f"{first}-{last}"
    return str(first) if first == last else f"{first},{last}"


def ipv4_items(numbers: Iterable[int]) -> list[tuple[str, list[str], list[int]]]:
    """Group sorted IPv4 addresses by /16: the prefix, its ``third.fourth`` pieces, and the addresses in each piece."""
    by_block: dict[int, list[int]] = {}
    for number in numbers:
        by_block.setdefault(number >> 8, []).append(number & 0xFF)
    # Blocks of one /16 with the same last octets share a piece: 1,5.7 means 1.7 and 5.7.
    by_prefix: dict[int, dict[str, list[int]]] = {}
    sizes: dict[tuple[int, str], int] = {}
    for block, octets in by_block.items():
        text = str(octets[0]) if len(octets) == 1 else ranges(octets)
        prefix = block >> 8
        by_prefix.setdefault(prefix, {}).setdefault(text, []).append(block & 0xFF)
        sizes[prefix, text] = len(octets)
    return [
        (
            f"{prefix >> 8}.{prefix & 0xFF}.",
            [f"{ranges(thirds)}.{text}" for text, thirds in by_last.items()],
            [sizes[prefix, text] * len(thirds) for text, thirds in by_last.items()],
        )
        for prefix, by_last in by_prefix.items()
    ]


def ipv6_items(numbers: Iterable[int]) -> list[tuple[str, list[str], list[int]]]:
    """Group sorted IPv6 addresses by /112: the prefix, pieces of the last group, and addresses in each piece."""
    by_prefix: dict[int, list[int]] = {}
    for number in numbers:
        by_prefix.setdefault(number >> 16, []).append(number & 0xFFFF)
    items = []
    for prefix, lasts in by_prefix.items():
        # With a last group of ffff, the zero compression never reaches that group.
        text = str(IPv6Address(prefix << 16 | 0xFFFF))
        head = text.removesuffix("ffff") if text.endswith(":ffff") else IPv6Address(prefix << 16).exploded[:-4]
        found = spans(lasts)
        pieces = [f"{first:x}" if first == last else f"{first:x}-{last:x}" for first, last in found]
        items.append((head, pieces, [last - first + 1 for first, last in found]))
    return items


def joined(prefix: str, pieces: list[str]) -> str:
    """Return one prefix with its pieces, in braces if the prefix applies to more than one piece."""
    separator = "," if ":" in prefix else " "
    if len(pieces) == 1 and not (":" in prefix and "-" in pieces[0]):
        return prefix + pieces[0]
    return f"{prefix}{{{separator.join(pieces)}}}"


def addresses_text(ipv4: Iterable[int], ipv6: Iterable[int] = ()) -> str:
    """Return sorted addresses in the notation that this module describes, IPv4 before IPv6."""
    items = [*ipv4_items(ipv4), *ipv6_items(ipv6)]
    return "; ".join(joined(prefix, pieces) for prefix, pieces, _ in items)
