"""The scope policy: which networks and names may be touched, as the owner's configuration lists them.

Membership is tested against the policy's own networks. ``ipaddress.is_private`` and its kin are not used: they
admit 169.254.169.254, 0.0.0.0 and 240.0.0.0/4, and they change between Python versions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_network
from typing import Final

from mcp_server.errors import ConfigError, RefusedError, TargetError
from mcp_server.model.target import Network
from mcp_server.scope.ranges import Ranges
from mcp_server.scope.reading import MAPPED, read_target, shown

WELL_KNOWN: Final[dict[str, tuple[Network, ...]]] = {
    "RFC1918": (IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"), IPv4Network("192.168.0.0/16")),
    "loopback": (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
}
"""Entries that stand for networks; read without regard to case."""

# The deprecated IPv4-compatible addresses (RFC 4291 section 2.5.5.1) without ::1, which loopback may name.
_COMPATIBLE = tuple(IPv6Network("::/96").address_exclude(IPv6Network("::1/128")))

ALWAYS_REFUSED: Final[tuple[tuple[Network, str], ...]] = (
    (IPv4Network("0.0.0.0/8"), "0.0.0.0/8 (this host, RFC 1122)"),
    (IPv4Network("169.254.0.0/16"), "169.254.0.0/16 (link-local and cloud metadata, RFC 3927)"),
    (IPv4Network("224.0.0.0/4"), "224.0.0.0/4 (multicast)"),
    (IPv4Network("240.0.0.0/4"), "240.0.0.0/4 (reserved and limited broadcast, RFC 1112)"),
    *((network, "::/96 (unspecified and IPv4-compatible, RFC 4291)") for network in _COMPATIBLE),
    (MAPPED, "::ffff:0:0/96 (IPv4-mapped, RFC 4291)"),
    (IPv6Network("::ffff:0:0:0/96"), "::ffff:0:0:0/96 (IPv4-translated, RFC 2765)"),
    (IPv6Network("64:ff9b::/96"), "64:ff9b::/96 (NAT64, RFC 6052)"),
    (IPv6Network("64:ff9b:1::/48"), "64:ff9b:1::/48 (NAT64, RFC 8215)"),
    (IPv6Network("2001::/32"), "2001::/32 (Teredo, RFC 4380)"),
    (IPv6Network("2002::/16"), "2002::/16 (6to4, RFC 3056)"),
    (IPv6Network("fe80::/10"), "fe80::/10 (link-local, RFC 4291)"),
    (IPv6Network("ff00::/8"), "ff00::/8 (multicast)"),
)
"""Ranges no entry can lift, each with the words a refusal uses. IPv6 forms that carry an IPv4 address are among
them because a gateway would deliver to the address inside."""

_REFUSED = Ranges(ALWAYS_REFUSED)
_LOOPBACK = Ranges((network, "loopback") for network in WELL_KNOWN["loopback"])
_ENTRIES_SHOWN = 12
_ENTRY_HINT = "Use RFC1918, loopback, an address, a CIDR without host bits, or a name suffix such as .lab.internal."


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a network or name may be touched; ``entry`` is the line that allows it, ``code`` the refusal's code."""

    allowed: bool
    reason: str
    entry: str | None = None
    code: str | None = None

    def require(self) -> None:
        """Raise TargetError with the verdict's code and reason unless it allows."""
        if not self.allowed:
            raise TargetError(self.reason, code=self.code, parameter="target")


class ScopePolicy:
    """An immutable set of allowed networks and name suffixes.

    ``entries`` are the configured lines in canonical spelling, in their order. Make one with `from_entries`.
    """

    def __init__(
        self, entries: tuple[str, ...], networks: tuple[tuple[Network, str], ...], suffixes: frozenset[str]
    ) -> None:
        self.entries = entries
        self._networks = networks
        self._suffixes = suffixes
        self._allowed = Ranges(networks)
        self._loopback = Ranges(pair for pair in networks if _LOOPBACK.covering(pair[0]))

    @classmethod
    def from_entries(cls, entries: Iterable[str]) -> ScopePolicy:
        """Build a policy from ``security.allowed_targets``; raise ConfigError naming the first bad entry.

        An empty list is a policy that allows nothing.
        """
        lines: dict[str, tuple[Network, ...]] = {}
        for text in entries:
            canonical, networks = read_entry(text)
            lines[canonical] = networks
        return cls(
            entries=tuple(lines),
            networks=tuple((network, line) for line, networks in lines.items() for network in networks),
            suffixes=frozenset(line for line in lines if line.startswith(".")),
        )

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of what the policy means: order, case, repetition and splitting of entries do not matter.

        The always-refused ranges are part of it, so a version that changes them changes the hash.
        """
        canonical = {
            "loopback": _collapsed(network for network, _ in self._networks if _LOOPBACK.covering(network)),
            "networks": _collapsed(network for network, _ in self._networks),
            "refused": _collapsed(network for network, _ in ALWAYS_REFUSED),
            "suffixes": sorted(self._suffixes),
        }
        text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Entries that allow nothing because an always-refused range holds all of them."""
        dead = {line for network, line in self._networks if _REFUSED.covering(network)}
        return tuple(line for line in self.entries if line in dead)

    def summary(self) -> str:
        """The allowed entries as a refusal lists them; long lists are cut and the rest counted."""
        if not self.entries:
            return "nothing"
        rest = len(self.entries) - _ENTRIES_SHOWN
        return ", ".join(self.entries[:_ENTRIES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")

    def check_network(self, network: Network) -> Verdict:
        """Judge a network as a whole: every address allowed, none always refused."""
        text = _text(network)
        if "%" in text:
            return _out(f"{text} has a zone id, which is always refused")
        refused = _REFUSED.overlapping(network)
        if refused is not None:
            verb = "overlaps" if _REFUSED.covering(network) is None else "lies in"
            return _out(f"{text} {verb} {refused}, which is refused whatever the scope says")
        # This host's own services are not part of "any network": only an entry inside loopback allows loopback.
        allowed = self._allowed if _LOOPBACK.overlapping(network) is None else self._loopback
        entries = allowed.covering(network)
        if entries is not None:
            entry = ", ".join(entries)
            return Verdict(allowed=True, reason=f"{text} is allowed by {entry}", entry=entry)
        where = "outside" if allowed.overlapping(network) is None else "only partly in"
        return _out(f"{text} is {where} the scope; allowed: {self.summary()}")

    def check_address(self, address: IPv4Address | IPv6Address) -> Verdict:
        """Judge one address, such as a resolver's answer."""
        return self.check_network(ip_network(address))

    def check_name(self, name: str) -> Verdict:
        """Judge a canonical name by its suffix; it must lie *under* one: ``.lab.internal`` is not ``lab.internal``.

        An allowed name is only worth looking up: every address it resolves to is judged as well.
        """
        labels = name.split(".")
        for index in range(1, len(labels)):
            suffix = "." + ".".join(labels[index:])
            if suffix in self._suffixes:
                return Verdict(allowed=True, reason=f"{name} is allowed by {suffix}", entry=suffix)
        return _out(f"name {shown(name)} is under no allowed suffix; allowed: {self.summary()}")


def _out(reason: str) -> Verdict:
    return Verdict(allowed=False, reason=reason, code="target_out_of_scope")


def _text(network: Network) -> str:
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _collapsed(networks: Iterable[Network]) -> list[str]:
    v4: list[IPv4Network] = []
    v6: list[IPv6Network] = []
    for network in networks:
        if isinstance(network, IPv4Network):
            v4.append(network)
        else:
            v6.append(network)
    return [*map(str, collapse_addresses(v4)), *map(str, collapse_addresses(v6))]


def read_entry(text: str) -> tuple[str, tuple[Network, ...]]:
    """Return an entry's canonical spelling and its networks (none for a name suffix); raises ConfigError."""
    for word, networks in WELL_KNOWN.items():
        if text.lower() == word.lower():
            return word, networks
    try:
        if text.startswith("."):
            suffix = read_target(text[1:])
            if suffix.name is not None:
                return f".{suffix.name}", ()
        else:
            parsed = read_target(text)
            if parsed.network is not None:
                return parsed.canonical, (parsed.network,)
    except RefusedError as error:
        raise ConfigError(f"security.allowed_targets: {error.message}", hint=_ENTRY_HINT) from None
    raise ConfigError(f"security.allowed_targets: {shown(text)} is not a scope entry", hint=_ENTRY_HINT)
