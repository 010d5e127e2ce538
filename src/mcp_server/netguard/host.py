"""The guard's own tables in the host's namespace: loaded, and looked at again with every reading.

A host's firewall that is loaded again ("flush ruleset") takes every table away, the guard's along with its own.
"""

from __future__ import annotations

from typing import Final

from mcp_server.errors import PlatformError
from mcp_server.netguard.nft import Nft

_FLUSHED: Final = (
    "Reload the server (SIGHUP to its guard helper): the rules are loaded again. A firewall of this host should delete its "
    "own tables and not say 'flush ruleset'."
)


class HostRules:
    """Tables of ours in the network namespace the calling thread is in; other people's may change as they like.

    PlatformError ``guard_unavailable`` where nftables is missing or may not be administered.
    """

    def __init__(self) -> None:
        self._nft = Nft()
        self._kept: dict[tuple[str, str], str] = {}
        self._generation = -1

    def load(self, family: str, name: str, rules: str) -> None:
        """Load a table in place of one of its name; PlatformError in nft's own words."""
        loading = Nft()  # not the one that looks: it takes all of a namespace with a guard in it for the guard's
        try:
            loading.run(f"add table {family} {name}\ndelete table {family} {name}\n{rules}")
        finally:
            loading.close()
        self._kept[family, name] = self._nft.table(family, name)
        self._generation = -1

    def check(self) -> None:
        """Raise PlatformError ``guard_unavailable`` unless each table is as it was loaded.

        One question to the kernel; after a change of anything in the host's nftables our tables are listed.
        """
        generation = self._nft.generation()
        if generation == self._generation:
            return
        for (family, name), loaded in self._kept.items():
            now = self._nft.table(family, name)
            if now != loaded:
                what = "are not the ones that were loaded" if now else "are gone"
                raise PlatformError(
                    f"the host's rules for the guard (table {family} {name}) {what}",
                    code="guard_unavailable",
                    hint=_FLUSHED,
                )
        self._generation = generation

    def close(self) -> None:
        """Close the sockets; the tables stay."""
        self._nft.close()
