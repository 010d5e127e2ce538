"""Checks which files the server's user can read in the kernel tier, and that it cannot change those of the operator."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from mcp_server.errors import ConfigError, PlatformError
from mcp_server.netguard.account import Account, call_as


def check_can_serve(account: Account, files: Iterable[Path]) -> None:
    """Raise PlatformError ``guard_unavailable`` unless the user can run this program and read ``files``.

    A common reason is a virtual environment in a private home folder.
    """
    needed = [sys.executable, os.__file__, __file__]
    needed += [path for name in ("pydantic", "typer") if (path := getattr(sys.modules.get(name), "__file__", None))]
    configured = [str(path) for path in files]

    def unreachable() -> list[str]:
        found = [path for path in (*needed, *configured) if not os.access(path, os.R_OK)]
        return [*([] if os.access(sys.executable, os.X_OK) else [sys.executable]), *found]

    missing: list[str] = call_as(account, unreachable)
    if not missing:
        return
    first = missing[0]
    if first in configured:
        command = f"sudo chgrp {account.gid} {shlex.quote(first)} && sudo chmod 640 {shlex.quote(first)}"
        raise PlatformError(
            f"The server's user {account.name!r} cannot read {first}.",
            code="guard_unavailable",
            hint=f"Allow it with '{command}'. The user must also be able to pass the folders above the file.",
        )
    real = Path(first).resolve()
    raise PlatformError(
        f"The server's user {account.name!r} cannot run this installation, because it cannot read {first} ({real}).",
        code="guard_unavailable",
        hint="Install the program and its Python where every user can read them, for example in a virtual environment "
        "in /opt/mcp-network-tools that the system's python3 creates.",
    )


def check_cannot_change(account: Account, path: Path) -> None:
    """Raise ConfigError if the user could change the file ``path`` or replace it with another."""
    real = path.resolve()
    # The file and every folder above it; if there are links, also their targets. To change a link itself, the user
    # needs to change its folder.
    involved = [each for each in dict.fromkeys((path, *path.parents, real, *real.parents)) if not each.is_symlink()]
    writable = next((each for each in involved if _mode_allows_writing(account, each.lstat())), None)
    if writable is None:
        # Only the kernel can evaluate access control lists. In a sticky folder, only the owner can replace a file.
        asked = [str(each) for each in involved if not each.lstat().st_mode & stat.S_ISVTX]
        found: list[str] = call_as(account, lambda: [name for name in asked if os.access(name, os.W_OK)])
        writable = Path(found[0]) if found else None
    if writable is not None:
        quoted = shlex.quote(str(writable))
        raise ConfigError(
            f"{path} defines the scope, but the server's user {account.name!r} can change {writable}.",
            hint=f"Prevent it with 'sudo chown root:root {quoted} && sudo chmod go-w {quoted}'.",
        )


def _mode_allows_writing(account: Account, found: os.stat_result) -> bool:
    """Return whether owner, group and mode let the user write. In a sticky folder, others cannot replace files."""
    mode = found.st_mode
    shared = bool(mode & stat.S_IWOTH) and not (stat.S_ISDIR(mode) and mode & stat.S_ISVTX)
    return found.st_uid == account.uid or shared or bool(mode & stat.S_IWGRP and found.st_gid == account.gid)


def check_state_folder(account: Account, folder: Path) -> None:
    """Raise PlatformError ``permission_denied`` if the folder has files and belongs to another user."""
    if folder.is_dir() and folder.stat().st_uid != account.uid and any(folder.iterdir()):
        raise _foreign_folder(account, folder)


def give_state_folder(account: Account, folder: Path) -> None:
    """Create ``folder`` with mode 0700 if it is missing, and give it to the user if it is empty.

    Raises PlatformError ``permission_denied`` if it has files and belongs to another user, or is not a folder.
    """
    try:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir()
            each.chmod(0o700 if each == folder else 0o755)  # independent of the umask
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(handle).st_uid != account.uid:
                if os.listdir(handle):  # noqa: PTH208 - the folder that was opened, even if its path was changed since
                    raise _foreign_folder(account, folder)
                os.fchown(handle, account.uid, account.gid)
                os.fchmod(handle, 0o700)
        finally:
            os.close(handle)
    except OSError as error:
        raise PlatformError(
            f"The state folder {folder} cannot be created: {error.strerror}.", hint=_own_folder(account, folder)
        ) from error
    if not call_as(account, lambda: os.access(folder, os.R_OK | os.W_OK | os.X_OK)):
        raise PlatformError(
            f"The server's user {account.name!r} cannot reach the state folder {folder}.",
            hint="Choose a folder whose parent folders every user can pass, such as /var/lib/mcp-network-tools.",
        )


def _foreign_folder(account: Account, folder: Path) -> PlatformError:
    return PlatformError(
        f"The state folder {folder} has files in it and does not belong to the server's user {account.name!r}.",
        hint=_own_folder(account, folder),
    )


def _own_folder(account: Account, folder: Path) -> str:
    quoted = shlex.quote(str(folder))
    command = f"sudo chown -R {account.name}: {quoted} && sudo chmod 700 {quoted}"
    return f"Give it to that user with '{command}', or set MCP_STATE_DIR to another folder."
