"""Lock-out on guessing: where too many wrong credentials come from, new ones are not looked at for a while.

Counted are the peer's address, of IPv6 its /64, because a subscriber has all of one (RFC 6177); and an API key whose
secret somebody tries. A credential that was good lately is looked at all the same, so that whoever shares the address
of a guesser goes on. Secrets here have 256 bits or a signature, and no number of tries finds one: what a lock-out saves
is the log, the processor, and the owner's sleep.
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

from mcp_server.config.auth import AuthConfig
from mcp_server.errors import BusyError

MOST_SOURCES: Final = 4096
"""Addresses and keys that are counted; the one that failed the longest ago makes room."""
MOST_KNOWN: Final = 1024
KNOWN_SEC: Final = 3600.0
"""How many credentials count as good lately, and for how long after their last use."""

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(slots=True)
class _Failures:
    since: float
    count: int = 0
    until: float = -math.inf


class Lockout:
    """Counts failures; used from one event loop. ``settings`` is asked each time, ``clock`` gives seconds."""

    def __init__(self, settings: Callable[[], AuthConfig], clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._sources: OrderedDict[str, _Failures] = OrderedDict()
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self._salt = secrets.token_bytes(16)

    def check(self, credential: str, *sources: str) -> None:
        """Raise BusyError ``locked_out`` where one of the places is locked and the credential is a new one."""
        if not self._settings().lockout_failures:
            return
        now = self._clock()
        left = max((self._sources[source].until - now for source in sources if source in self._sources), default=0.0)
        if left <= 0 or self._known.get(self._digest(credential), -math.inf) > now - KNOWN_SEC:
            return
        raise BusyError(
            "too many wrong credentials came from here, or for this key", code="locked_out", retry_after=math.ceil(left)
        )

    def failed(self, *sources: str) -> bool:
        """Count a wrong credential; whether that locks one of the places."""
        settings, now = self._settings(), self._clock()
        if not settings.lockout_failures:
            return False
        locks = False
        for source in sources:
            entry = self._sources.get(source)
            # A lock that is over starts the count again, and so does a failure long after the first.
            over = entry is not None and entry.until <= now
            if entry is None or (over and (entry.until > -math.inf or now - entry.since > settings.lockout_sec)):
                entry = self._sources[source] = _Failures(now)
            entry.count += 1
            self._sources.move_to_end(source)
            if entry.count >= settings.lockout_failures and entry.until == -math.inf:
                entry.until = now + settings.lockout_sec
                locks = True
        _keep(self._sources, MOST_SOURCES)
        return locks

    def succeeded(self, credential: str) -> None:
        """Remember a good credential. It takes nothing off the failures: a guesser may hold one of little worth."""
        digest = self._digest(credential)
        self._known[digest] = self._clock()
        self._known.move_to_end(digest)
        _keep(self._known, MOST_KNOWN)

    def _digest(self, credential: str) -> bytes:
        return hashlib.blake2b(credential.encode(), digest_size=16, key=self._salt).digest()


def source_of(peer: str) -> str:
    """What is counted of a peer's address: an IPv4 address, the /64 of an IPv6 address, or the word as it is."""
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return f"peer {peer[:64]}"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ip_network((address, 64), strict=False))
    return str(address)


def _keep(table: OrderedDict[_K, _V], most: int) -> None:
    while len(table) > most:
        table.popitem(last=False)
