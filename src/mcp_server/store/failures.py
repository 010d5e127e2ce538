"""How the failure of a file or a disk becomes a typed error."""

from __future__ import annotations

import errno

from mcp_server.errors import PlatformError

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def unavailable(message: str, hint: str | None = None) -> PlatformError:
    """The error for a store that cannot be used now."""
    return PlatformError(message, code="store_unavailable", hint=hint)


def closed() -> PlatformError:
    """The error for a store that was not opened or is closed already."""
    return unavailable("the store is closed", "Call open() first.")


def disk_full(where: str) -> PlatformError:
    """The error for a medium without room."""
    return PlatformError(f"no space left for {where}", code="disk_full")


def explain_os_error(error: OSError, where: str) -> PlatformError:
    """The error for a file operation that failed on ``where``."""
    if error.errno in _NO_SPACE:
        return disk_full(where)
    return unavailable(f"{where} cannot be used: {error.strerror or error}")
