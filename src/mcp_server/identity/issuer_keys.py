"""Where the issuer's keys come from: a file that is read again when it changes, or a URL that is asked now and then.

A URL is asked when nothing is known, when what is known is older than `FRESH_SEC` (beside the requests, which do not
wait for it), and when a token names a key that is not known (its issuer may have begun to use a new one); never twice
within `PAUSE_SEC`, whatever strangers send. Keys that the issuer has taken out of its set are not honoured after the
next reading. An issuer that does not answer is no reason to turn its tokens away: the last set goes on for `KEEP_SEC`.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from mcp_server.config.auth import AuthConfig
from mcp_server.errors import ConfigError, NetworkToolsError, PlatformError
from mcp_server.identity.base import Rejected
from mcp_server.identity.fetching import fetch
from mcp_server.identity.jwk_set import MAX_BYTES, JwkSet
from mcp_server.identity.private_file import identity_of
from mcp_server.logger import get_logger

logger = get_logger(__name__)

FRESH_SEC: Final = 300.0
KEEP_SEC: Final = 24 * 3600.0
PAUSE_SEC: Final = 10.0
CLOCKS_SEC: Final = 1.0
"""A token that was made this shortly before a reading may be signed with a key that came after it."""


class IssuerKeys(Protocol):
    """The keys of one issuer."""

    problem: str | None
    """Why they could not be read the last time, for health; None while all is well."""

    @property
    def known(self) -> int:
        """How many keys are there to verify with."""
        ...

    async def look(self) -> None:
        """Read them if that is due; a failure stands in ``problem``."""
        ...

    async def find(self, identity: str | None, algorithm: str, issued: float) -> Any:
        """The public key for a token that says it was made at ``issued`` (seconds since 1970).

        Raises Rejected where there is no such key, PlatformError ``identity_unavailable`` where that is not known.
        """
        ...


def issuer_keys(settings: AuthConfig) -> IssuerKeys:
    """The keys of the issuer that the configuration names."""
    return FileKeys(settings.jwks_file) if settings.jwks_file is not None else UrlKeys(settings.jwks_url)


class FileKeys:
    """Keys in a file of the owner's."""

    def __init__(self, path: Path) -> None:
        self.problem: str | None = None
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._set: JwkSet | None = None
        self._reading = asyncio.Lock()

    @property
    def known(self) -> int:
        """How many keys are there to verify with."""
        return 0 if self._set is None else len(self._set)

    async def look(self) -> None:
        """Read the file if it is another one; one that cannot be read leaves what was known."""
        async with self._reading:  # a token that comes meanwhile must not be told that its key is unknown
            await self._look()

    async def _look(self) -> None:
        seen = identity_of(Path(os.path.realpath(self._path)))  # noqa: ASYNC240 - a look at one file, for every token
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._set = await asyncio.to_thread(read_file, self._path)
        except ConfigError as error:
            self.problem = error.message
            logger.error("identity.issuer_keys_unreadable", message=error.message)  # noqa: TRY400 - no traceback: the failure is a file
        else:
            self.problem = None

    async def find(self, identity: str | None, algorithm: str, issued: float) -> Any:  # noqa: ARG002 - a file is as new as it is
        """See `IssuerKeys`."""
        await self.look()
        if self._set is not None and (key := self._set.find(identity, algorithm)) is not None:
            return key
        if self.problem is not None:
            raise unavailable(PAUSE_SEC)
        raise Rejected("jwt", "unknown_key")


def read_file(path: Path) -> JwkSet:
    """The keys in a file; raises ConfigError that names it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"auth.jwks_file {path} cannot be read: {error.strerror}") from error
    if mode & 0o022:
        raise ConfigError(
            f"auth.jwks_file {path} can be written by others (mode {mode & 0o7777:04o}), who could make tokens",
            hint="chmod go-w it.",
        )
    if len(text) > MAX_BYTES:
        raise ConfigError(f"auth.jwks_file {path} has more than {MAX_BYTES} bytes")
    try:
        return JwkSet(text)
    except ConfigError as error:
        raise ConfigError(f"auth.jwks_file {path}: {error.message}") from None


class UrlKeys:
    """Keys that the issuer gives out itself."""

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.problem: str | None = None
        self._url = url
        self._clock = clock
        self._wall = wall
        self._set: JwkSet | None = None
        self._read_at = self._asked_at = -math.inf
        self._read_wall = -math.inf
        self._asking: asyncio.Task[None] | None = None

    @property
    def known(self) -> int:
        """How many keys are there to verify with."""
        return 0 if (found := self._present()) is None else len(found)

    async def look(self) -> None:
        """Ask the issuer if what is known is old, or nothing is, and it was not asked just now."""
        if self._clock() - self._read_at > FRESH_SEC:
            await self._ask()

    async def find(self, identity: str | None, algorithm: str, issued: float) -> Any:
        """See `IssuerKeys`."""
        present = self._present()
        if present is not None and (key := present.find(identity, algorithm)) is not None:
            if self._clock() - self._read_at > FRESH_SEC:
                self._begin()
            return key
        asked = await self._ask()
        present = self._present()
        if present is not None and (key := present.find(identity, algorithm)) is not None:
            return key
        # "Unknown" is only said on the issuer's word, given after the token was made: a 401 must not lie.
        if self.problem is not None or present is None or (not asked and issued > self._read_wall - CLOCKS_SEC):
            raise unavailable(max(1.0, self._asked_at + PAUSE_SEC - self._clock()))
        raise Rejected("jwt", "unknown_key")

    def _present(self) -> JwkSet | None:
        return self._set if self._clock() - self._read_at <= KEEP_SEC else None

    async def _ask(self) -> bool:
        """Have the issuer asked, unless it was within the pause; whether it was."""
        task = self._begin()
        if task is None:
            return False
        await asyncio.shield(task)  # one caller that goes away must not end it for the others
        return True

    def _begin(self) -> asyncio.Task[None] | None:
        if self._asking is not None and not self._asking.done():
            return self._asking
        if self._clock() - self._asked_at < PAUSE_SEC:
            return None
        self._asked_at = self._clock()
        self._asking = asyncio.create_task(self._read(), name="issuer-keys")
        return self._asking

    async def _read(self) -> None:
        wall = self._wall()
        try:
            text = await fetch(self._url, MAX_BYTES)
            # Up to 100 keys, of which each is a piece of work.
            found = await asyncio.to_thread(JwkSet, text)
        except NetworkToolsError as error:
            self._failed(error.message)
        except Exception as error:
            logger.exception("identity.issuer_keys_failed")
            self._failed(type(error).__name__)
        else:
            if self.problem is not None:
                logger.info("identity.issuer_keys_read", keys=len(found))
            self._set, self.problem = found, None
            self._read_at, self._read_wall = self._clock(), wall

    def _failed(self, why: str) -> None:
        problem = f"the issuer's keys at {self._url} could not be read: {why}"
        if problem != self.problem:
            logger.error("identity.issuer_keys_unavailable", message=problem)
        self.problem = problem


def unavailable(after: float) -> PlatformError:
    """The answer to a token that cannot be checked at present."""
    return PlatformError(
        "the issuer's keys cannot be had at present, so access tokens cannot be checked",
        code="identity_unavailable",
        retry_after=math.ceil(after),
    )
