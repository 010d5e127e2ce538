"""The hosts file, read for one name: a few strict lines instead of the C library's resolver."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from mcp_server.errors import RefusedError, TargetError
from mcp_server.scope.reading import read_target, shown


def addresses_of(name: str, path: Path) -> tuple[IPv4Address | IPv6Address, ...]:
    """Every address the hosts file gives a canonical name, in file order; empty where it has none.

    A file that is not there or not readable counts as empty. Lines are those of hosts(5). Raises TargetError
    (``target_unresolvable``) where a line for this name starts with something that is not a canonical address:
    leaving that line out would scan less than the owner wrote.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ()
    found: list[IPv4Address | IPv6Address] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if name not in (word.lower() for word in words[1:]):
            continue
        address = _read(words[0])
        if address is None:
            raise TargetError(
                f"{name} cannot be resolved: line {number} of {path} begins with {shown(words[0])}, "
                "which is not a canonical address",
                code="target_unresolvable",
                parameter="target",
            )
        found.append(address)
    return tuple(found)


def _read(word: str) -> IPv4Address | IPv6Address | None:
    """The address as a caller would have to write it: no zone id, no mapped or short form."""
    try:
        network = read_target(word).network
    except RefusedError:
        return None
    return None if network is None or "/" in word else network.network_address
