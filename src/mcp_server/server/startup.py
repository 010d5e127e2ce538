"""Checks before a server starts. Each failure is a typed error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mcp_server.errors import PlatformError

if TYPE_CHECKING:
    from mcp_server.config import Config

MIN_FREE_BYTES: Final = 256 * 1024
"""With fewer free bytes, the audit log and the store cannot record a run."""


def prepare_state_dir(config: Config) -> None:
    """Create the state folder with mode 0700.

    Raises PlatformError if it cannot be created, belongs to another user, or can be written by others.
    """
    try:
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PlatformError(
            f"The state folder {config.state_dir} cannot be created: {error.strerror}.",
            hint="Set MCP_STATE_DIR to a folder that this user can write.",
        ) from error
    found = config.state_dir.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        problem = "belongs to another user" if found.st_uid != os.geteuid() else "can be written by others"
        raise PlatformError(
            f"The state folder {config.state_dir} {problem}, who could place forged logs and links in it.",
            hint=_owner_hint(config.state_dir, found.st_uid),
        )


def _owner_hint(folder: Path, uid: int) -> str:
    if uid == os.geteuid():
        return f"Run chmod 700 {folder}."
    # The hint does not suggest to change the owner: a server that runs as that user inside a guard would lose access.
    return f"Run it as the folder's owner (sudo -u '#{uid}' env MCP_STATE_DIR={folder} ...), or set MCP_STATE_DIR."


def check_free_space(state_dir: Path) -> None:
    """Raise PlatformError ``disk_full`` if the file system of the state folder has less than `MIN_FREE_BYTES` free."""
    found = os.statvfs(state_dir)
    free = found.f_bavail * found.f_frsize
    if free < MIN_FREE_BYTES:
        raise PlatformError(
            f"Only {free} bytes are free for the state folder {state_dir}. The audit log and the store cannot record "
            "a run.",
            code="disk_full",
        )


def opens_store_later(config: Config) -> bool:
    """Return whether the first call opens the store. This is so over stdio, because the client waits for the start.

    A Postgres database is always opened at the start, because a schema of a later version is only noticed then.
    """
    from mcp_server.store.revision import sqlite_file

    return config.server.transport == "stdio" and sqlite_file(config.database.url, config.state_dir) is not None


def check_schema(config: Config) -> None:
    """Raise SchemaError if a later version wrote the SQLite store. Does not open it as a store."""
    from mcp_server.store.revision import check_sqlite, sqlite_file

    path = sqlite_file(config.database.url, config.state_dir)
    if path is not None:
        check_sqlite(path)
