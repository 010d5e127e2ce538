"""The bearer token of the HTTP doors: made once, kept private, asked for everywhere (RFC 6750)."""

from __future__ import annotations

import errno
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from mcp_server.doors.guards import CLOSE
from mcp_server.doors.principals import Principal, with_principal
from mcp_server.doors.problems import ASGIApp, Receive, Scope, Send, header_values, send_problem
from mcp_server.errors import AccessError, ConfigError, PlatformError
from mcp_server.model.access import OWNER

TOKEN_FILE: Final = "token"  # noqa: S105 - the name of a file, not a secret

HOLDER: Final = Principal("token", OWNER)
"""Whoever holds the token."""

_TOKEN_BYTES: Final = 32
_MAX_FILE_BYTES: Final = 4096
_TOKEN: Final = re.compile(r"[A-Za-z0-9\-._~+/]{32,}=*")
"""The b64token of RFC 6750 section 2.1, with at least 32 characters."""


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
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise _unusable(path, "is a symbolic link") from exc
        raise
    with os.fdopen(fd, "rb") as file:
        # The checks are made on the open file: the name could lead elsewhere a moment later.
        status = os.fstat(file.fileno())
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            raise _unusable(path, "is not a regular file")
        if status.st_uid != os.geteuid():
            raise _unusable(path, f"belongs to user id {status.st_uid}, and the server runs as {os.geteuid()}")
        if mode & 0o077:
            raise _unusable(path, f"is open to other users (mode {mode:04o})")
        content = file.read(_MAX_FILE_BYTES).decode("latin-1").strip()
    if not _TOKEN.fullmatch(content):
        raise _unusable(path, "is empty" if not content else "holds no token of 32 or more URL-safe characters")
    return content


def _unusable(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"the token file {path} {why}", hint="Delete it; a new token is made, and shown once, at the next start."
    )


@contextmanager
def _platform_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        full = exc.errno in {errno.ENOSPC, errno.EDQUOT}
        raise PlatformError(
            f"the token file {path} cannot be read or made: {exc.strerror}",
            code="disk_full" if full else "permission_denied",
            hint="Make the state folder writable for the user that runs the server, or set MCP_STATE_DIR to another.",
        ) from exc


class BearerAuth:
    """ASGI guard that answers 401 to every request without ``Authorization: Bearer TOKEN``.

    The token is compared in constant time and only ever read from that header (RFC 6750 section 2.3 warns of
    query strings: they end up in logs). It stands in front of the body: nothing of an unknown caller is kept.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a problem body and a ``WWW-Authenticate`` challenge."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        values = header_values(scope, b"authorization")
        if not values:
            await _challenge(scope, receive, send, "no Authorization header was sent", b"Bearer")
        elif not self._accepts(values):
            # One answer for every wrong credential: it tells nothing about how wrong it was.
            message = "the Authorization header holds no valid bearer token"
            await _challenge(scope, receive, send, message, b'Bearer error="invalid_token"')
        else:
            await self._app(with_principal(scope, HOLDER), receive, send)

    def _accepts(self, values: list[bytes]) -> bool:
        scheme, _, credential = values[0].partition(b" ")
        known = hmac.compare_digest(credential.strip(b" "), self._token)
        return known and len(values) == 1 and scheme.lower() == b"bearer"


async def _challenge(scope: Scope, receive: Receive, send: Send, message: str, challenge: bytes) -> None:
    error = AccessError(message, code="unauthorized")
    await send_problem(scope, receive, send, error, [(b"www-authenticate", challenge), CLOSE])


def everybody(app: ASGIApp) -> ASGIApp:
    """``app`` without authentication: whoever comes is taken for the holder of the token."""

    async def known(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope if scope["type"] == "lifespan" else with_principal(scope, HOLDER), receive, send)

    return known
