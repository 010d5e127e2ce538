"""What a server looks at before it starts. Each refusal is a typed error; nothing is made before the last of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mcp_server.errors import PlatformError

if TYPE_CHECKING:
    from mcp_server.config import Config

LEAST_FREE: Final = 256 * 1024
"""Bytes without which neither log nor store can take a run."""


def prepare_state_dir(config: Config) -> None:
    """Make the state folder, mode 0700; raises PlatformError ``permission_denied`` where that fails."""
    try:
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PlatformError(
            f"the state folder {config.state_dir} cannot be made: {error.strerror}",
            hint="Set MCP_STATE_DIR to a folder that this user can write.",
        ) from error
    found = config.state_dir.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        whose = "belongs to another user" if found.st_uid != os.geteuid() else "can be written by others"
        raise PlatformError(
            f"the state folder {config.state_dir} {whose}, who could put links and logs of their own into it",
            hint=_owner_hint(config.state_dir, found.st_uid),
        )


def _owner_hint(folder: Path, uid: int) -> str:
    if uid == os.geteuid():
        return f"chmod 700 {folder}"
    # Taking it over would lock out a server that runs as its owner, as a guarded one does.
    return f"Run it as the folder's owner (sudo -u '#{uid}' env MCP_STATE_DIR={folder} ...), or set MCP_STATE_DIR."


def check_free_space(state_dir: Path) -> None:
    """Raise PlatformError ``disk_full`` where the state folder's file system has less than `LEAST_FREE` bytes."""
    found = os.statvfs(state_dir)
    free = found.f_bavail * found.f_frsize
    if free < LEAST_FREE:
        raise PlatformError(
            f"{free} bytes are free for the state folder {state_dir}; neither log nor store can take a run",
            code="disk_full",
        )


def opens_store_later(config: Config) -> bool:
    """Whether the store is opened by the first call that needs it: over stdio, where a client waits for the start.

    A database elsewhere is opened at the start all the same: that its schema is newer shows nowhere else.
    """
    from mcp_server.store.revision import sqlite_file

    return config.server.transport == "stdio" and sqlite_file(config.database.url, config.state_dir) is not None


def check_schema(config: Config) -> None:
    """Raise SchemaError where the SQLite store was written by a later version, without opening it as a store."""
    from mcp_server.store.revision import check_sqlite, sqlite_file

    path = sqlite_file(config.database.url, config.state_dir)
    if path is not None:
        check_sqlite(path)
