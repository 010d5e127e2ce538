"""The keys of an issuer: from a file that is read again when it changes, or from a URL that is fetched when needed.

A URL is fetched if no keys are known, if the known keys are older than `FRESH_SEC` (in the background, so requests do
not wait), and if a token names an unknown key, because the issuer may have a new one. It is never fetched twice within
`PAUSE_SEC`. A key that the issuer has removed is no longer accepted after the next fetch. If the
issuer does not answer, the last keys stay in use for `KEEP_SEC`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from mcp_server.config.sections import AuthConfig
from mcp_server.errors import ConfigError, NetworkToolsError, PlatformError
from mcp_server.identity.base import Rejected
from mcp_server.identity.fetching import fetch
from mcp_server.identity.jwk_set import MAX_BYTES, JwkSet
from mcp_server.logger import get_logger
from mcp_server.operator_files.file_state import FileState, file_state
from mcp_server.operator_files.reading import OTHERS_WRITE, FileRules, read_file

logger = get_logger(__name__)

FRESH_SEC: Final = 300.0
KEEP_SEC: Final = 24 * 3600.0
PAUSE_SEC: Final = 10.0
CLOCKS_SEC: Final = 1.0
"""A token that was made up to this long before a fetch may be signed with a key that was added after the fetch."""

_RULES: Final = FileRules(
    "JWK Set file",
    MAX_BYTES,
    setting="auth.jwks_file",
    forbidden_mode=OTHERS_WRITE,
    hint="Save the JWK Set of the issuer in the file that auth.jwks_file names.",
)


class IssuerKeys(Protocol):
    """The keys of one issuer."""

    problem: str | None
    """The reason why the last attempt to read the keys failed, as a sentence, or None if it succeeded."""

    @property
    def known(self) -> int:
        """The number of keys that can be used."""
        ...

    async def look(self) -> None:
        """Read the keys if that is due. A failure is kept in ``problem``."""
        ...

    async def find(self, key_id: str | None, algorithm: str, issued: float) -> Any:
        """Return the public key for a token that claims to be made at ``issued`` (seconds since 1970).

        Raises Rejected if there is no such key, and PlatformError ``identity_unavailable`` if that is not known.
        """
        ...


def issuer_keys(settings: AuthConfig) -> IssuerKeys:
    """Return the keys of the issuer in the configuration."""
    return FileKeys(settings.jwks_file) if settings.jwks_file is not None else UrlKeys(settings.jwks_url)


class FileKeys:
    """The keys in a file of the operator."""

    def __init__(self, path: Path) -> None:
        self.problem: str | None = None
        self._path = path
        self._read_state: FileState | None = None
        self._was_read = False
        self._set: JwkSet | None = None
        self._reading = asyncio.Lock()

    @property
    def known(self) -> int:
        """See `IssuerKeys`."""
        return 0 if self._set is None else len(self._set)

    async def look(self) -> None:
        """Read the file if it has changed. If it cannot be read, the known keys stay in use."""
        async with self._reading:  # a token that arrives during the first read must wait for the keys
            await self._look()

    async def _look(self) -> None:
        state = file_state(self._path)
        if self._was_read and state == self._read_state:
            return
        self._read_state, self._was_read = state, True
        try:
            self._set = await asyncio.to_thread(read_jwks_file, self._path)
        except ConfigError as error:
            self.problem = error.message
            logger.error("identity.issuer_keys_unreadable", message=error.message)  # noqa: TRY400 - the message says it all
        else:
            self.problem = None

    async def find(self, key_id: str | None, algorithm: str, issued: float) -> Any:  # noqa: ARG002 - part of the contract
        """See `IssuerKeys`."""
        await self.look()
        if self._set is not None and (key := self._set.find(key_id, algorithm)) is not None:
            return key
        if self.problem is not None:
            raise unavailable(PAUSE_SEC)
        raise Rejected("jwt", "unknown_key")


def read_jwks_file(path: Path) -> JwkSet:
    """Return the keys in a file; raises ConfigError that names the file."""
    content = read_file(path, _RULES)
    try:
        return JwkSet(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=_RULES.hint) from None


class UrlKeys:
    """The keys at a URL of the issuer."""

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
        self._read_at = self._fetched_at = -math.inf
        self._read_wall = -math.inf
        self._fetching: asyncio.Task[None] | None = None

    @property
    def known(self) -> int:
        """See `IssuerKeys`."""
        return 0 if (found := self._usable()) is None else len(found)

    async def look(self) -> None:
        """Fetch the keys if they are old or unknown, and the last fetch was not within the pause."""
        if self._clock() - self._read_at > FRESH_SEC:
            await self._fetch()

    async def find(self, key_id: str | None, algorithm: str, issued: float) -> Any:
        """See `IssuerKeys`."""
        usable = self._usable()
        if usable is not None and (key := usable.find(key_id, algorithm)) is not None:
            if self._clock() - self._read_at > FRESH_SEC:
                self._start_fetch()
            return key
        fetched = await self._fetch()
        usable = self._usable()
        if usable is not None and (key := usable.find(key_id, algorithm)) is not None:
            return key
        # Say "unknown" only if the keys were fetched after the token was made. Otherwise a valid token would get a 401.
        if self.problem is not None or usable is None or (not fetched and issued > self._read_wall - CLOCKS_SEC):
            raise unavailable(max(1.0, self._fetched_at + PAUSE_SEC - self._clock()))
        raise Rejected("jwt", "unknown_key")

    def _usable(self) -> JwkSet | None:
        return self._set if self._clock() - self._read_at <= KEEP_SEC else None

    async def _fetch(self) -> bool:
        """Fetch the keys and wait, unless the last fetch was within the pause; returns whether they were fetched."""
        task = self._start_fetch()
        if task is None:
            return False
        await asyncio.shield(task)  # a caller that disconnects must not cancel the fetch for the others
        return True

    def _start_fetch(self) -> asyncio.Task[None] | None:
        if self._fetching is not None and not self._fetching.done():
            return self._fetching
        if self._clock() - self._fetched_at < PAUSE_SEC:
            return None
        self._fetched_at = self._clock()
        self._fetching = asyncio.create_task(self._read(), name="issuer-keys")
        return self._fetching

    async def _read(self) -> None:
        wall = self._wall()
        try:
            content = await fetch(self._url, MAX_BYTES)
            found = await asyncio.to_thread(JwkSet, content)  # loading 100 keys takes long
        except NetworkToolsError as error:
            self._failed(error.message)
        except Exception as error:
            logger.exception("identity.issuer_keys_failed")
            self._failed(f"{type(error).__name__}.")
        else:
            if self.problem is not None:
                logger.info("identity.issuer_keys_read", keys=len(found))
            self._set, self.problem = found, None
            self._read_at, self._read_wall = self._clock(), wall

    def _failed(self, why: str) -> None:
        problem = f"The keys of the issuer at {self._url} cannot be fetched. {why}"
        if problem != self.problem:
            logger.error("identity.issuer_keys_unavailable", message=problem)
        self.problem = problem


def unavailable(after: float) -> PlatformError:
    """Return the error for a token that cannot be checked now; ``after`` is in seconds."""
    return PlatformError(
        "The keys of the issuer are not available, so access tokens cannot be checked.",
        code="identity_unavailable",
        retry_after=math.ceil(after),
    )
