"""Policy entries: an address, a network, a well-known word or a name, kept in columns because there may be 100,000.

`reading.read_target` defines what an entry means, and takes 10 µs. Addresses and networks in canonical spelling
therefore have a faster path: `canonical_network` parses the text with inet_pton, writes the result as text again, and
accepts it only if both texts are equal.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from mcp_server.errors import ConfigError, RefusedError
from mcp_server.model.run import Risk
from mcp_server.model.target import Network
from mcp_server.model.untrusted import quoted
from mcp_server.scope.address_ranges import WIDTHS, Span, network_text
from mcp_server.scope.radix import Prefix
from mcp_server.scope.reading import MAPPED, read_target
from mcp_server.scope.special_networks import WELL_KNOWN

HINT: Final = "Use RFC1918, loopback, an address, a CIDR without host bits, or a name suffix such as .lab.internal."
FILE_HINT: Final = (
    "Use RFC1918, loopback, an address, a CIDR without host bits, .lab.internal for the names under it, or "
    "host.lab.internal for that name alone."
)

_WORDS: Final = {word.lower(): word for word in WELL_KNOWN}
_LENGTHS: Final = {version: {str(n): n for n in range(width + 1)} for version, width in WIDTHS.items()}
_MAPPED_HIGH: Final = int(MAPPED.network_address) >> 32


class RepeatedEntryError(ConfigError):
    """An entry allows or excludes the same networks or names as an earlier entry."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of an entry: the highest risk, packets per second (None: no limit), and windows (none: at any time)."""

    max_risk: Risk = Risk.INTRUSIVE
    packets_per_second: float | None = None
    windows: tuple[str, ...] = ()


class PolicyEntry(NamedTuple):
    """An entry of a policy: its canonical spelling, its terms, and its line in the policy file, if it is in one."""

    text: str
    terms: Terms
    line: int | None = None

    def __str__(self) -> str:
        return self.text if self.line is None else f"{self.text} (line {self.line})"


def canonical_network(text: str) -> tuple[int, int, int, str] | None:
    """Read an address or network in canonical spelling: IP version, first address, prefix length, spelling.

    None does not mean that the text is wrong. It means that `read_target` must read it.
    """
    address, slash, length_text = text.partition("/")
    version = 6 if ":" in address else 4
    family, width = (socket.AF_INET6, 128) if version == 6 else (socket.AF_INET, 32)
    length = _LENGTHS[version].get(length_text) if slash else width
    try:
        packed = socket.inet_pton(family, address)
    except (OSError, ValueError):  # ValueError: a NUL character, or a surrogate
        return None
    # Parsers accept different spellings. All of them agree on a spelling that is written back unchanged.
    if length is None or socket.inet_ntop(family, packed) != address or (version == 6 and "." in address):
        return None
    first = int.from_bytes(packed, "big")
    if first & ((1 << (width - length)) - 1) or (version == 6 and first >> 32 == _MAPPED_HIGH):
        return None
    return version, first, length, address if length == width else text


class Entries:
    """Entries in their order: spelling, line and terms of the entry at each position.

    ``networks`` holds, by IP version, the prefixes with the position of their entry. ``names`` maps a name
    (``host.lab.internal``) or a suffix (``.lab.internal``) to the position of its entry.

    If ``repeats`` are allowed, an entry with the spelling of an earlier one is dropped, and the first of equal networks
    counts. Otherwise two entries that mean the same are an error, also if one of them is a well-known word.
    """

    def __init__(self, *, repeats: bool = False) -> None:
        self._repeats = repeats
        self.spellings: list[str] = []
        self.lines: list[int | None] = []
        self.terms: list[Terms] = []
        self.networks: dict[int, list[Prefix]] = {4: [], 6: []}
        self.names: dict[str, int] = {}
        self._positions: dict[str, int] = {}

    def add(self, text: str, terms: Terms, line: int | None = None, *, exact_names: bool = True) -> None:
        """Read one entry and append it.

        ``exact_names`` allows a name without a leading dot, which stands for that name alone. Raises ConfigError for
        text that is not an entry, and RepeatedEntryError for a repetition.
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
            if not self._take(spelling, position, *map(network_text, networks)):
                return
            for network in networks:
                item = (int(network.network_address), network.prefixlen, position)
                self.networks[network.version].append(item)
            if not networks:
                self.names[spelling] = position
        self.spellings.append(spelling)
        self.lines.append(line)
        self.terms.append(terms)

    def at(self, position: int) -> PolicyEntry:
        """Return the entry at a position."""
        return PolicyEntry(self.spellings[position], self.terms[position], self.lines[position])

    def spans(self, version: int) -> Iterator[Span]:
        """Return the address ranges of all networks of one IP version, in their order."""
        width = WIDTHS[version]
        return ((first, first | ((1 << (width - length)) - 1)) for first, length, _ in self.networks[version])

    def _take(self, spelling: str, position: int, *parts: str) -> bool:
        if self._positions.setdefault(spelling, position) != position:
            if self._repeats:
                return False
            raise RepeatedEntryError(
                f"{spelling} repeats the entry {self.at(self._positions[spelling])}.", hint="Remove one of them."
            )
        if not self._repeats:
            for part in parts:
                earlier = self._positions.setdefault(part, position)
                if earlier != position:
                    raise RepeatedEntryError(
                        f"{spelling} contains {part}, which the entry {self.at(earlier)} contains too.",
                        hint="Remove one of them.",
                    )
        return True


def read_entry(text: str, *, exact_names: bool = False) -> tuple[str, tuple[Network, ...]]:
    """Return the canonical spelling of an entry and its networks (none for a name); raises ConfigError.

    A name of a single label is not an entry, because it is more likely a mistyped word.
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
    raise ConfigError(f"{quoted(text)} is not a scope entry.", hint=hint)
