"""API keys as a credential: the file of keys is read again whenever it changes, so that a revocation holds at once."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.identity.base import Directory, Identity, Rejected
from mcp_server.identity.key_file import KEY, KEY_FILE, ApiKey, hash_of, read_keys
from mcp_server.identity.private_file import identity_of
from mcp_server.logger import get_logger

logger = get_logger(__name__)

_NOBODYS: Final = "0" * 64
"""What an unknown key is compared with, so that it takes as long as a known one."""


class ApiKeys:
    """The keys of a state folder. ``directory`` gives the bounds of ``key:NAME``."""

    def __init__(self, state_dir: Path, directory: Callable[[], Directory]) -> None:
        self.problem: str | None = None
        """Why the file cannot be read, for health; None while it can, or where there is none."""
        self._folder = state_dir
        self._directory = directory
        self._seen: tuple[int, ...] = ()
        self._keys: dict[str, ApiKey] = {}

    @property
    def count(self) -> int:
        """How many keys are valid now; 0 where the file cannot be read."""
        self._follow()
        now = datetime.now(UTC)
        return sum(key.state(now) == "valid" for key in self._keys.values())

    def claims(self, credential: str) -> bool:
        """Whether it has the form of a key."""
        return KEY.fullmatch(credential) is not None

    async def check(self, credential: str) -> Identity:
        """The actor ``key:NAME``; PlatformError ``identity_unavailable`` while the file cannot be read."""
        self._follow()
        if self.problem is not None:
            raise PlatformError(
                "the file of API keys cannot be read, and no key is taken until it can",
                code="identity_unavailable",
                hint="The owner finds the reason in the server's log, and with 'mcp-network-tools doctor'.",
                retry_after=10,
            )
        found = KEY.fullmatch(credential)
        key = self._keys.get(found["id"]) if found else None
        same = hmac.compare_digest(hash_of(credential) if found else _NOBODYS, key.sha256 if key else _NOBODYS)
        if key is None:
            raise Rejected("key", "unknown")
        if not same:
            raise Rejected("key", "wrong", key_id=key.id)
        state = key.state(datetime.now(UTC))
        if state != "valid":
            raise Rejected("key", state, guess=False, key_id=key.id)
        name = f"key:{key.name}"
        return Identity(name, self._directory().find(name, key.role))

    def _follow(self) -> None:
        """Read the file again if it is another one: it is replaced whole, so a look at it tells."""
        seen = identity_of(self._folder / KEY_FILE)
        if seen == self._seen:
            return
        try:
            self._keys = {key.id: key for key in read_keys(self._folder)}
            self.problem = None
        except NetworkToolsError as error:
            # Whatever was changed in it may have been a revocation.
            self._keys, self.problem = {}, error.message
            logger.error("identity.keys_unreadable", message=error.message)  # noqa: TRY400 - no traceback: the failure is a file
        self._seen = seen
