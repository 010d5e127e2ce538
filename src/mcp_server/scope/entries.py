"""Entries of a policy: an address, a network, a well-known word or a name, read into columns that hold very many.

What an entry means is what `reading.read_target` says. It takes 10 µs, so plain addresses and networks take a shorter
way first: one that accepts nothing but canonical text, because what it read is written again and compared.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from mcp_server.errors import ConfigError, RefusedError
from mcp_server.model.target import Network
from mcp_server.scope.radix import Prefix
from mcp_server.scope.ranges import WIDTHS
from mcp_server.scope.reading import MAPPED, read_target, shown
from mcp_server.scope.refused import WELL_KNOWN
from mcp_server.scope.terms import PolicyEntry, Terms

HINT: Final = "Use RFC1918, loopback, an address, a CIDR without host bits, or a name suffix such as .lab.internal."
FILE_HINT: Final = (
    "Use RFC1918, loopback, an address, a CIDR without host bits, .lab.internal for the names under it, or "
    "host.lab.internal for that name alone."
)

_WORDS: Final = {word.lower(): word for word in WELL_KNOWN}
_LENGTHS: Final = {version: {str(n): n for n in range(width + 1)} for version, width in WIDTHS.items()}
_MAPPED_HIGH: Final = int(MAPPED.network_address) >> 32


class RepeatedEntryError(ConfigError):
    """An entry says again what an earlier one said."""


def canonical_network(text: str) -> tuple[int, int, int, str] | None:
    """Read an address or network that is spelled canonically: IP version, first address, prefix length, spelling.

    None is no refusal: it says that `read_target` has to look.
    """
    address, slash, length_text = text.partition("/")
    version = 6 if ":" in address else 4
    family, width = (socket.AF_INET6, 128) if version == 6 else (socket.AF_INET, 32)
    length = _LENGTHS[version].get(length_text) if slash else width
    try:
        packed = socket.inet_pton(family, address)
    except (OSError, ValueError):  # ValueError: a NUL, or what is no text at all
        return None
    # Parsers differ in what they let pass, and in nothing that is written back as it was.
    if length is None or socket.inet_ntop(family, packed) != address or (version == 6 and "." in address):
        return None
    first = int.from_bytes(packed, "big")
    if first & ((1 << (width - length)) - 1) or (version == 6 and first >> 32 == _MAPPED_HIGH):
        return None
    return version, first, length, address if length == width else text


class Entries:
    """Entries in their order, by position: canonical spelling, line number and terms, and where each one stands.

    ``networks`` holds, by IP version, the prefixes with the position of their entry; ``names`` maps a name
    (``host.lab.internal``) or suffix (``.lab.internal``) to the position of its entry. Where ``repeats`` are
    allowed, an entry that is spelled as an earlier one is dropped, and of equal networks the first one counts;
    otherwise two entries that say the same are an error, also where one of them says it by a well-known word.
    """

    def __init__(self, *, repeats: bool = False) -> None:
        self._repeats = repeats
        self.spellings: list[str] = []
        self.numbers: list[int | None] = []
        self.terms: list[Terms] = []
        self.networks: dict[int, list[Prefix]] = {4: [], 6: []}
        self.names: dict[str, int] = {}
        self._positions: dict[str, int] = {}

    def add(self, text: str, terms: Terms, number: int | None = None, *, exact_names: bool = True) -> None:
        """Read one entry; raises ConfigError where it is none, RepeatedEntryError where it was there before.

        ``exact_names`` says whether a name without a leading dot is an entry, which stands for that name alone.
        """
        position = len(self.spellings)
        plain = canonical_network(text)
        if plain is not None:
            version, first, length, spelling = plain
            if spelling not in self._positions:
                self._positions[spelling] = position
            elif not self._take(spelling, position):
                return
            self.networks[version].append((first, length, position))
        else:
            spelling, networks = read_entry(text, exact_names=exact_names)
            if not self._take(spelling, position, *(_spelling(network) for network in networks)):
                return
            for network in networks:
                item = (int(network.network_address), network.prefixlen, position)
                self.networks[network.version].append(item)
            if not networks:
                self.names[spelling] = position
        self.spellings.append(spelling)
        self.numbers.append(number)
        self.terms.append(terms)

    def line(self, position: int) -> PolicyEntry:
        """The entry at a position, as a verdict names it."""
        return PolicyEntry(self.spellings[position], self.terms[position], self.numbers[position])

    def _take(self, spelling: str, position: int, *parts: str) -> bool:
        if self._positions.setdefault(spelling, position) != position:
            if self._repeats:
                return False
            raise RepeatedEntryError(f"{spelling} repeats {self.line(self._positions[spelling])}")
        if not self._repeats:
            for part in parts:
                earlier = self._positions.setdefault(part, position)
                if earlier != position:
                    raise RepeatedEntryError(f"{spelling} holds {part}, and so does {self.line(earlier)}")
        return True


def read_entry(text: str, *, exact_names: bool = False) -> tuple[str, tuple[Network, ...]]:
    """Return an entry's canonical spelling and its networks (none for a name); raises ConfigError.

    A name of a single label is never an entry: it is more likely a mistyped word.
    """
    hint = FILE_HINT if exact_names else HINT
    word = _WORDS.get(text.lower())
    if word is not None:
        return word, WELL_KNOWN[word]
    try:
        if text in {"", "."}:
            pass
        elif text.startswith("."):
            suffix = read_target(text[1:])
            if suffix.name is not None:
                return f".{suffix.name}", ()
        else:
            parsed = read_target(text)
            if parsed.network is not None:
                return parsed.canonical, (parsed.network,)
            if exact_names and "." in parsed.canonical:
                return parsed.canonical, ()
    except RefusedError as error:
        raise ConfigError(error.message, hint=hint) from None
    raise ConfigError(f"{shown(text)} is not a scope entry", hint=hint)


def network_of(version: int, first: int, length: int) -> Network:
    """A prefix as the network it is."""
    return IPv4Network((first, length)) if version == 4 else IPv6Network((first, length))


def _spelling(network: Network) -> str:
    return str(network.network_address) if network.num_addresses == 1 else str(network)
