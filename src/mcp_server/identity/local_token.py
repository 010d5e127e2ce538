"""The token of the state folder. It is made once, and a user who can read its file has full access."""

from __future__ import annotations

import hmac
import re
import secrets
from pathlib import Path
from typing import Final

from mcp_server.config.redact import hide
from mcp_server.identity.base import TOKEN_NAME, Identity, Rejected
from mcp_server.identity.private_file import storage_error, write_private_file
from mcp_server.model.access import FULL_ACCESS
from mcp_server.operator_files.reading import OTHERS_ACCESS, FileRules, read_checked

TOKEN_FILE: Final = "token"  # noqa: S105 - the name of a file, not a secret

_TOKEN_BYTES: Final = 32
_TOKEN: Final = re.compile(r"[A-Za-z0-9\-._~+/]{32,}=*")
"""The b64token of RFC 6750 section 2.1, with at least 32 characters."""
_RULES: Final = FileRules(
    "token file",
    4096,
    forbidden_mode=OTHERS_ACCESS,
    own_only=True,
    hint="Delete the file. The next start makes a new token and shows it once.",
)


class LocalToken:
    """Accepts the token of the state folder as a credential."""

    def __init__(self, token: str) -> None:
        hide(token)
        self._token = token.encode("ascii")

    def claims(self, credential: str) -> bool:
        """Return whether ``credential`` is the token. The text of a token has no recognizable form."""
        # Compare bytes, because text that is not ASCII cannot be compared in constant time.
        return hmac.compare_digest(credential.encode("latin-1", "replace"), self._token)

    async def check(self, credential: str) -> Identity:
        """Return the actor ``token``, with full access."""
        if not self.claims(credential):
            raise Rejected("token", "wrong")
        return Identity(TOKEN_NAME, FULL_ACCESS)


def load_or_create_token(state_dir: Path) -> tuple[str, bool]:
    """Return the token in ``state_dir``, and whether it is new (then the caller shows it to the operator, once).

    A new token is 32 random bytes in a file of mode 0600 that appears whole or not at all, so servers that start
    together use the same token. Raises ConfigError for a file that is a link, that others can read or write, or that
    holds no token, and PlatformError if the folder cannot be written.
    """
    path = state_dir / TOKEN_FILE
    try:
        try:
            return _read(path), False
        except FileNotFoundError:
            pass
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        created = write_private_file(path, f"{token}\n".encode("ascii"), replace=False)
        return _read(path), created
    except OSError as error:
        raise storage_error(path, error, _RULES.name) from error


def _read(path: Path) -> str:
    content = read_checked(path, _RULES).decode("latin-1").strip()
    if not _TOKEN.fullmatch(content):
        problem = "is empty" if not content else "holds no token of 32 or more URL-safe characters"
        raise _RULES.error(path, problem)
    return content
