"""API keys as a credential. The file of keys is read again when it changes, so a revocation takes effect at once."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.identity.base import Directory, Identity, Rejected
from mcp_server.identity.key_file import KEY, KEY_FILE, ApiKey, hash_of, read_keys
from mcp_server.logger import get_logger
from mcp_server.operator_files.file_state import FileState, file_state

logger = get_logger(__name__)

_NO_HASH: Final = "0" * 64
"""An unknown key is compared with this, so that the comparison takes as long as for a known one."""


class ApiKeys:
    """The keys of a state folder. ``directory`` says what the actor ``key:NAME`` may do."""

    def __init__(self, state_dir: Path, directory: Directory) -> None:
        self.problem: str | None = None
        """The reason why the file cannot be read, or None if it can be read or does not exist."""
        self._path = state_dir / KEY_FILE
        self._directory = directory
        self._read_state: FileState | None = None
        self._was_read = False
        self._keys: dict[str, ApiKey] = {}

    @property
    def count(self) -> int:
        """The number of valid keys; 0 if the file cannot be read."""
        self._read_if_changed()
        now = datetime.now(UTC)
        return sum(key.state(now) == "valid" for key in self._keys.values())

    def claims(self, credential: str) -> bool:
        """Return whether ``credential`` has the form of a key."""
        return KEY.fullmatch(credential) is not None

    async def check(self, credential: str) -> Identity:
        """Return the actor ``key:NAME``. Raises Rejected, or PlatformError if the file cannot be read."""
        self._read_if_changed()
        if self.problem is not None:
            raise PlatformError(
                "The file of API keys cannot be read, so no key is accepted.",
                code="identity_unavailable",
                hint="The operator finds the reason in the server's log, and with 'mcp-network-tools doctor'.",
                retry_after=10,
            )
        found = KEY.fullmatch(credential)
        key = self._keys.get(found["id"]) if found else None
        same = hmac.compare_digest(hash_of(credential) if found else _NO_HASH, key.sha256 if key else _NO_HASH)
        if key is None:
            raise Rejected("key", "unknown")
        if not same:
            raise Rejected("key", "wrong", key_id=key.id)
        state = key.state(datetime.now(UTC))
        if state != "valid":
            raise Rejected("key", state, guess=False, key_id=key.id)
        name = f"key:{key.name}"
        return Identity(name, self._directory.find(name, key.role))

    def _read_if_changed(self) -> None:
        state = file_state(self._path)
        if self._was_read and state == self._read_state:
            return
        try:
            self._keys = {key.id: key for key in read_keys(self._path.parent)}
            self.problem = None
        except NetworkToolsError as error:
            # Accept no key: the change that cannot be read may be a revocation.
            self._keys, self.problem = {}, error.message
            logger.error("identity.keys_unreadable", message=error.message)  # noqa: TRY400 - the message says it all
        self._read_state, self._was_read = state, True
