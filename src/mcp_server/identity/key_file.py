"""The file of API keys in the state folder: the record of each key, and how the file is read and replaced.

A key is ``mnt_ID_SECRET``: 12 hexadecimal digits that identify it, and 32 random bytes in base64url. The file keeps the
SHA-256 of the whole key. A slow hash, as for passwords, would add nothing: 256 random bits cannot be guessed (NIST SP
800-63B section 5.1.2 asks for 112 bits for look-up secrets). The file is replaced as a whole, under the lock of the
state folder's log.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from mcp_server.audit.files import locked
from mcp_server.errors import ArgumentError, NotFoundError
from mcp_server.identity.private_file import storage_error, write_private_file
from mcp_server.model.access import Role
from mcp_server.model.untrusted import quoted
from mcp_server.operator_files.reading import OTHERS_ACCESS, FileRules, read_checked

KEY_FILE: Final = "keys.json"
MOST_KEYS: Final = 1000
"""Keys in the file. Revoked and expired keys are removed when the limit is reached."""
KEY: Final = re.compile(r"mnt_(?P<id>[0-9a-f]{12})_[A-Za-z0-9_-]{43}")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_RULES: Final = FileRules(
    "file of API keys",
    1024 * 1024,
    forbidden_mode=OTHERS_ACCESS,
    own_only=True,
    hint="Repair the file, or delete it: without it there are no API keys, and 'mcp-network-tools keys create' makes "
    "a new one.",
)


class ApiKey(BaseModel):
    """The record of one key. It has the hash of the key, not the key itself. Times are UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    name: Annotated[str, Field(pattern=rf"^{_NAME.pattern}$")]
    role: Role
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None

    def state(self, now: datetime) -> str:
        """``revoked``, ``expired`` or ``valid``."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"


class _KeyFileContent(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[int, Field(ge=1, le=1)] = 1
    keys: Annotated[tuple[ApiKey, ...], Field(max_length=MOST_KEYS)] = ()

    @field_validator("keys")
    @classmethod
    def _ids_differ(cls, keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        if len({key.id for key in keys}) != len(keys):
            raise ValueError("two keys have the same id")
        return keys


class NewKey(NamedTuple):
    """A new key: its record in the file, and the key itself, which is shown once."""

    kept: ApiKey
    key: str


def new_key(name: str, role: Role, expires: datetime | None) -> NewKey:
    """Make a key without writing it; raises ArgumentError for a wrong name."""
    if not _NAME.fullmatch(name):
        raise ArgumentError(
            f"{quoted(name, 80)} is not a name for an API key.",
            hint="Use up to 64 letters, digits and the characters ._@-, for example ci-east.",
        )
    key_id = secrets.token_hex(6)
    key = f"mnt_{key_id}_{secrets.token_urlsafe(32)}"
    kept = ApiKey(id=key_id, name=name, role=role, sha256=hash_of(key), created=datetime.now(UTC), expires=expires)
    return NewKey(kept, key)


def hash_of(key: str) -> str:
    """Return the SHA-256 of a key, as the file keeps it."""
    return hashlib.sha256(key.encode("ascii")).hexdigest()


def read_keys(state_dir: Path) -> tuple[ApiKey, ...]:
    """Return every key, the oldest first; () if there is no file.

    Raises ConfigError if others can read or write the file or if its content is wrong, and PlatformError if it cannot
    be read.
    """
    path = state_dir / KEY_FILE
    try:
        content = read_checked(path, _RULES)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise storage_error(path, error, _RULES.name) from error
    try:
        return _KeyFileContent.model_validate_json(content).keys
    except ValidationError as error:
        # Name the position but not the content, which may be anything.
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise _RULES.error(path, f"is not valid{f' at {where[:100]}' if where else ''}") from None


def find_key(state_dir: Path, key_id: str) -> ApiKey:
    """Return the key with this id; raises NotFoundError."""
    return _find(read_keys(state_dir), key_id)


def add_key(state_dir: Path, key: ApiKey) -> None:
    """Add a key to the file.

    Raises ArgumentError if the file holds `MOST_KEYS` valid keys, ConfigError, and PlatformError.
    """

    def add(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        if len(keys) >= MOST_KEYS:
            now = datetime.now(UTC)
            keys = tuple(each for each in keys if each.state(now) == "valid")
        if len(keys) >= MOST_KEYS:
            raise ArgumentError(
                f"There are {len(keys)} valid API keys, and no more are allowed.",
                hint="Revoke keys that are not needed.",
            )
        return (*keys, key)

    _change(state_dir, add)


def revoke_key(state_dir: Path, key_id: str) -> ApiKey:
    """Revoke a key and return it. A running server notices at its next request. Revoking twice changes nothing.

    Raises NotFoundError, ConfigError and PlatformError.
    """

    def revoke(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        found = _find(keys, key_id)
        if found.revoked is not None:
            return keys
        revoked = found.model_copy(update={"revoked": datetime.now(UTC)})
        return tuple(revoked if key.id == key_id else key for key in keys)

    return _find(_change(state_dir, revoke), key_id)


def _find(keys: tuple[ApiKey, ...], key_id: str) -> ApiKey:
    for key in keys:
        if key.id == key_id:
            return key
    raise NotFoundError(
        f"There is no API key with the id {quoted(key_id, 80)}.", hint="'mcp-network-tools keys list' shows the ids."
    )


def _change(state_dir: Path, change: Callable[[tuple[ApiKey, ...]], tuple[ApiKey, ...]]) -> tuple[ApiKey, ...]:
    path = state_dir / KEY_FILE
    try:
        with locked(state_dir) as folder:
            keys = change(read_keys(state_dir))
            content = _KeyFileContent(keys=keys).model_dump_json(indent=1).encode() + b"\n"
            write_private_file(path, content, replace=True)
            os.fsync(folder)
    except OSError as error:
        raise storage_error(path, error, _RULES.name) from error
    return keys
