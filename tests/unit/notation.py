"""Readers for the compact notation of ports and addresses, written from its description alone."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

_PREFIXED = re.compile(r"(?P<prefix>[^{]*)\{(?P<pieces>[^}]*)\}")


def read_numbers(text: str, base: int = 10) -> set[int]:
    """``1-3,9`` as numbers."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first, base), int(last or first, base) + 1))
    return found


def read_addresses(text: str) -> set[IPv4Address | IPv6Address]:
    """``10.78.{1.4-9 3.7}; fd77::{a-c}`` as addresses."""
    found: set[IPv4Address | IPv6Address] = set()
    for item in filter(None, text.split("; ")):
        match = _PREFIXED.fullmatch(item)
        if ":" in item:
            prefix, lasts = (match["prefix"], match["pieces"]) if match else ("", "")
            found |= {IPv6Address(f"{prefix}{low:x}") for low in read_numbers(lasts, 16)} or {IPv6Address(item)}
            continue
        for piece in match["pieces"].split(" ") if match else [item]:
            octets = ((match["prefix"] if match else "") + piece).split(".")
            found |= {
                IPv4Address(f"{octets[0]}.{octets[1]}.{third}.{fourth}")
                for third in read_numbers(octets[2])
                for fourth in read_numbers(octets[3])
            }
    return found


def read_ports(text: str) -> set[tuple[str, int]]:
    """``22,80/tcp 53/udp`` as (transport, number); nothing for words that are not ports."""
    found: set[tuple[str, int]] = set()
    for word in text.split(" "):
        numbers, slash, transport = word.partition("/")
        if slash and re.fullmatch(r"[\d,-]+", numbers):
            found |= {(transport, number) for number in read_numbers(numbers)}
    return found


def read_cut(text: str) -> tuple[set[IPv4Address | IPv6Address], int]:
    """A list of addresses that may end with ``+N``: the addresses, and N."""
    *items, last = text.split("; ")
    if last.startswith("+"):
        return read_addresses("; ".join(items)), int(last)
    return read_addresses(text), 0
