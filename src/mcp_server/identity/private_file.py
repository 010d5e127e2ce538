"""Write a file that only the user of the server may read or write, and describe an error."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from mcp_server.errors import ERRORS, PlatformError


def write_private_file(path: Path, content: bytes, *, replace: bool) -> bool:
    """Write ``path`` with mode 0600, so that it appears whole or not at all.

    If ``replace`` is False and the file exists, it stays unchanged and the result is False. Raises OSError.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            draft.replace(path)
        else:
            os.link(draft, path)  # fails if the name exists, while a rename would replace the file
    except FileExistsError:
        return False
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()
    return True


def storage_error(path: Path, error: OSError, name: str) -> PlatformError:
    """Return the error for a file of the state folder that cannot be read or written. ``name`` describes the file."""
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    hint = "Make the state folder writable for the user of the server, or set MCP_STATE_DIR to another folder."
    return PlatformError(
        f"The {name} {path} cannot be read or written: {error.strerror}.",
        code="disk_full" if full else "permission_denied",
        hint=ERRORS["disk_full"].hint if full else hint,
    )
