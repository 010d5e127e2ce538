"""The token of the state folder: made once, kept private; whoever can read its file is the owner."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from mcp_server.config.redact import hide
from mcp_server.errors import ConfigError
from mcp_server.identity.base import TOKEN_NAME, Identity, Rejected
from mcp_server.identity.private_file import read_private, unwritable
from mcp_server.model.access import FULL_ACCESS

TOKEN_FILE: Final = "token"  # noqa: S105 - the name of a file, not a secret

_TOKEN_BYTES: Final = 32
_MAX_FILE_BYTES: Final = 4096
_TOKEN: Final = re.compile(r"[A-Za-z0-9\-._~+/]{32,}=*")
"""The b64token of RFC 6750 section 2.1, with at least 32 characters."""
_HINT: Final = "Delete it; a new token is made, and shown once, at the next start."


class LocalToken:
    """The credential that is the token itself."""

    def __init__(self, token: str) -> None:
        hide(token)
        self._token = token.encode("ascii")

    def claims(self, credential: str) -> bool:
        """Whether it is the token: it has no form of its own."""
        # As bytes, because text that is not ASCII cannot be compared in constant time.
        return hmac.compare_digest(credential.encode("latin-1", "replace"), self._token)

    async def check(self, credential: str) -> Identity:
        """The owner."""
        if not self.claims(credential):
            raise Rejected("token", "wrong")
        return Identity(TOKEN_NAME, FULL_ACCESS)


def load_or_create_token(state_dir: Path) -> tuple[str, bool]:
    """The token in ``state_dir``, and whether it was made just now (then show it to the owner, once).

    A new token is 32 random bytes in a file of mode 0600 that appears whole or not at all, so servers that
    start together agree on one. Raises `ConfigError` for a file that others may have read or written, a link,
    or one that holds no token; `PlatformError` where the folder cannot be written.
    """
    path = state_dir / TOKEN_FILE
    with _platform_errors(path):
        try:
            return _read(path), False
        except FileNotFoundError:
            pass
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        created = _create(path, secrets.token_urlsafe(_TOKEN_BYTES))
        return _read(path), created


def _create(path: Path, token: str) -> bool:
    """Write ``token`` beside ``path`` and link it into place; False where another process was first."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link, not a rename: it fails where the name is taken, so no token is ever replaced.
            os.link(draft, path)
        except FileExistsError:
            return False
        return True
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()


def _read(path: Path) -> str:
    content = read_private(path, _MAX_FILE_BYTES, what="token file", hint=_HINT).decode("latin-1").strip()
    if not _TOKEN.fullmatch(content):
        why = "is empty" if not content else "holds no token of 32 or more URL-safe characters"
        raise ConfigError(f"the token file {path} {why}", hint=_HINT)
    return content


@contextmanager
def _platform_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise unwritable(path, exc, what="token file") from exc
