"""Lock-out after wrong credentials: new credentials from the same source are refused for a while.

A source is the address of the peer (for IPv6 its /64, because a subscriber has a whole /64, RFC 6177), or an API key
whose secret is wrong. A credential that was valid recently is still accepted, so a caller who shares the address of an
attacker can continue. The credentials have 256 random bits or a signature, so they cannot be guessed: a lock-out limits
the load and the number of log records.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final, TypeVar

from mcp_server.config.sections import AuthConfig
from mcp_server.errors import BusyError

MOST_SOURCES: Final = 4096
"""Sources that are counted. When the limit is reached, the one with the oldest failure is dropped."""
MOST_KNOWN: Final = 1024
KNOWN_SEC: Final = 3600.0
"""The number of credentials that count as valid recently, and the seconds after their last use."""

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(slots=True)
class _Failures:
    since: float
    count: int = 0
    until: float = -math.inf


class Lockout:
    """Counts failures; used from one event loop. ``settings`` is read at each use, ``clock`` returns seconds."""

    def __init__(self, settings: Callable[[], AuthConfig], clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._sources: OrderedDict[str, _Failures] = OrderedDict()
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self._salt = secrets.token_bytes(16)

    def check(self, credential: str, *sources: str) -> None:
        """Raise BusyError ``locked_out`` if a source is locked and the credential was not valid recently."""
        if not self._settings().lockout_failures:
            return
        now = self._clock()
        left = max((self._sources[source].until - now for source in sources if source in self._sources), default=0.0)
        if left <= 0 or self._known.get(self._digest(credential), -math.inf) > now - KNOWN_SEC:
            return
        raise BusyError(
            "Too many wrong credentials came from this address or for this key.",
            code="locked_out",
            retry_after=math.ceil(left),
        )

    def failed(self, *sources: str) -> bool:
        """Count a wrong credential; returns whether that locks one of the sources."""
        settings, now = self._settings(), self._clock()
        if not settings.lockout_failures:
            return False
        locks = False
        for source in sources:
            entry = self._sources.get(source)
            # The count starts again after a lock, and if the first failure was long ago.
            over = entry is not None and entry.until <= now
            if entry is None or (over and (entry.until > -math.inf or now - entry.since > settings.lockout_sec)):
                entry = self._sources[source] = _Failures(now)
            entry.count += 1
            self._sources.move_to_end(source)
            if entry.count >= settings.lockout_failures and entry.until == -math.inf:
                entry.until = now + settings.lockout_sec
                locks = True
        _drop_oldest(self._sources, MOST_SOURCES)
        return locks

    def succeeded(self, credential: str) -> None:
        """Record a valid credential. It does not reset the failures: an attacker may have a weak credential too."""
        digest = self._digest(credential)
        self._known[digest] = self._clock()
        self._known.move_to_end(digest)
        _drop_oldest(self._known, MOST_KNOWN)

    def _digest(self, credential: str) -> bytes:
        return hashlib.blake2b(credential.encode(), digest_size=16, key=self._salt).digest()


def source_of(peer: str) -> str:
    """Return the source of a peer: its IPv4 address, the /64 of its IPv6 address, or the text of another peer."""
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return f"peer {peer[:64]}"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ip_network((address, 64), strict=False))
    return str(address)


def _drop_oldest(table: OrderedDict[_K, _V], most: int) -> None:
    while len(table) > most:
        table.popitem(last=False)
