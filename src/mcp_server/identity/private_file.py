"""Reading a file that only its owner may have read or written: the token, and the API keys."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from mcp_server.errors import ERRORS, ConfigError, PlatformError


def unwritable(path: Path, error: OSError, *, what: str) -> PlatformError:
    """What to tell of a file that could not be read or replaced; ``what`` is what the message calls it."""
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    mode = "Make the state folder writable for the user that runs the server, or set MCP_STATE_DIR to another."
    return PlatformError(
        f"the {what} {path} cannot be read or written: {error.strerror}",
        code="disk_full" if full else "permission_denied",
        hint=ERRORS["disk_full"].hint if full else mode,
    )


def read_private(path: Path, limit: int, *, what: str, hint: str) -> bytes:
    """The content of ``path``.

    Raises FileNotFoundError, other OSErrors, and ConfigError with ``hint`` for a link, a file of another user, one that
    is open to others, or one of more than ``limit`` bytes; ``what`` is what the message calls it.
    """

    def unusable(why: str) -> ConfigError:
        return ConfigError(f"the {what} {path} {why}", hint=hint)

    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise unusable("is a symbolic link") from exc
        raise
    with os.fdopen(fd, "rb") as file:
        # The checks are made on the open file: the name could lead elsewhere a moment later.
        status = os.fstat(file.fileno())
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            raise unusable("is not a regular file")
        if status.st_uid != os.geteuid():
            raise unusable(f"belongs to user id {status.st_uid}, and this process runs as {os.geteuid()}")
        if mode & 0o077:
            raise unusable(f"is open to other users (mode {mode:04o})")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise unusable(f"has more than {limit} bytes")
    return content


def identity_of(path: Path) -> tuple[int, ...]:
    """What tells that a file was replaced or written to; (errno,) where it cannot be looked at."""
    try:
        found = path.stat(follow_symlinks=False)
    except OSError as error:
        return (error.errno or 0,)
    return (
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_mode,
        found.st_uid,
    )
