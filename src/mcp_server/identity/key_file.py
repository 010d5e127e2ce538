"""The file of API keys in the state folder: what is kept of a key, and how the file is read and replaced.

A key is ``mnt_ID_SECRET``: 12 hexadecimal digits by which it is found, and 32 random bytes in base64url. The file keeps
the SHA-256 of the whole. A slow hash, as for passwords, would gain nothing: 256 random bits cannot be guessed, whatever
one guess costs (NIST SP 800-63B section 5.1.2, look-up secrets of 112 bits or more). It is replaced whole, under the
lock of the state folder's log.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from mcp_server.audit.files import locked
from mcp_server.errors import ArgumentError, ConfigError, NotFoundError
from mcp_server.identity.private_file import read_private, unwritable
from mcp_server.model.access import Role

KEY_FILE: Final = "keys.json"
MOST_KEYS: Final = 1000
"""Keys that the file holds; those that are revoked or expired make room for new ones."""
KEY: Final = re.compile(r"mnt_(?P<id>[0-9a-f]{12})_[A-Za-z0-9_-]{43}")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_MAX_FILE_BYTES: Final = 1024 * 1024
_HINT: Final = (
    "Mend it, or take it away: without the file there are no API keys, and 'mcp-network-tools keys create' begins a "
    "new one."
)


class ApiKey(BaseModel):
    """What is kept of a key: everything but the key. Times are UTC."""

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


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[int, Field(ge=1, le=1)] = 1
    keys: Annotated[tuple[ApiKey, ...], Field(max_length=MOST_KEYS)] = ()

    @field_validator("keys")
    @classmethod
    def _ids_differ(cls, keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        if len({key.id for key in keys}) != len(keys):
            raise ValueError("two keys have one id")
        return keys


class NewKey(NamedTuple):
    """A key that is to be made: what the file will keep, and the key itself, which is shown once."""

    kept: ApiKey
    key: str


def new_key(name: str, role: Role, expires: datetime | None) -> NewKey:
    """Think of a key; nothing is written. Raises ArgumentError for a name that will not do."""
    if not _NAME.fullmatch(name):
        raise ArgumentError(
            f"{name[:80]!r} is no name of a key", hint="Letters, digits and ._@- up to 64, as in ci-east."
        )
    identity = secrets.token_hex(6)
    key = f"mnt_{identity}_{secrets.token_urlsafe(32)}"
    kept = ApiKey(id=identity, name=name, role=role, sha256=hash_of(key), created=datetime.now(UTC), expires=expires)
    return NewKey(kept, key)


def hash_of(key: str) -> str:
    """What the file keeps of a key."""
    return hashlib.sha256(key.encode("ascii")).hexdigest()


def read_keys(state_dir: Path) -> tuple[ApiKey, ...]:
    """Every key, oldest first; none where there is no file.

    Raises ConfigError for a file that others may have read or written, or that is not whole.
    """
    path = state_dir / KEY_FILE
    try:
        content = read_private(path, _MAX_FILE_BYTES, what="file of API keys", hint=_HINT)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise unwritable(path, error, what="file of API keys") from error
    try:
        return _Content.model_validate_json(content).keys
    except ValidationError as error:
        # Where, but not what: it may be anything.
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ConfigError(
            f"the file of API keys {path} cannot be read{f' at {where[:100]}' if where else ''}", hint=_HINT
        ) from None


def find_key(state_dir: Path, identity: str) -> ApiKey:
    """The key of this id; raises NotFoundError."""
    return _find(read_keys(state_dir), identity)


def add_key(state_dir: Path, key: ApiKey) -> None:
    """Put a key into the file.

    Raises ArgumentError where `MOST_KEYS` valid ones are there, ConfigError, PlatformError.
    """

    def add(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        if len(keys) >= MOST_KEYS:
            now = datetime.now(UTC)
            keys = tuple(each for each in keys if each.state(now) == "valid")
        if len(keys) >= MOST_KEYS:
            raise ArgumentError(f"{len(keys)} API keys are valid", hint="Revoke those that nobody needs.")
        return (*keys, key)

    _change(state_dir, add)


def revoke_key(state_dir: Path, identity: str) -> ApiKey:
    """End a key, which a running server sees at its next request; returns it. Safe to repeat.

    Raises NotFoundError, ConfigError, PlatformError.
    """

    def revoke(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        found = _find(keys, identity)
        if found.revoked is not None:
            return keys
        ended = found.model_copy(update={"revoked": datetime.now(UTC)})
        return tuple(ended if key.id == identity else key for key in keys)

    return _find(_change(state_dir, revoke), identity)


def _find(keys: tuple[ApiKey, ...], identity: str) -> ApiKey:
    for key in keys:
        if key.id == identity:
            return key
    raise NotFoundError(
        f"there is no API key with the id {identity[:80]!r}", hint="'mcp-network-tools keys list' shows the ids."
    )


def _change(state_dir: Path, change: Callable[[tuple[ApiKey, ...]], tuple[ApiKey, ...]]) -> tuple[ApiKey, ...]:
    path = state_dir / KEY_FILE
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with locked(state_dir) as folder:
            keys = change(read_keys(state_dir))
            try:
                fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                with os.fdopen(fd, "wb") as file:
                    file.write(_Content(keys=keys).model_dump_json(indent=1).encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
                os.fsync(folder)
            finally:
                with suppress(FileNotFoundError):
                    draft.unlink()
    except OSError as error:
        raise unwritable(path, error, what="file of API keys") from error
    return keys
