"""The users a guard helper makes processes for: finding them, becoming them, and what they must and must not reach."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import stat
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from mcp_server.errors import ConfigError, PlatformError
from mcp_server.sandbox import syscalls

T = TypeVar("T")

_PR_SET_KEEPCAPS: Final = 8
_DYNAMIC: Final = range(61184, 65520)
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this host, by name and numbers."""

    name: str
    uid: int
    gid: int
    home: str


def find_account(name: str, key: str) -> Account:
    """The unprivileged user called ``name``, which ``key`` of the configuration asks for.

    Raises PlatformError ``guard_unavailable`` with the command that makes it where there is none, ConfigError for root.
    """
    import pwd

    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise PlatformError(
            f"{key}: there is no user {name!r} on this host",
            code="guard_unavailable",
            hint=f"sudo useradd --system --user-group --no-create-home --shell /usr/sbin/nologin {shlex.quote(name)}",
        ) from None
    if found.pw_uid == 0 or found.pw_gid == 0:
        raise ConfigError(
            f"{key}: {name!r} is root or of root's group, and the server must not be", hint="Name another user."
        )
    return Account(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir)


def unused_account() -> Account:
    """A user id that no user has and no process runs as, of the range that is kept for such (systemd.exec(5)).

    Raises PlatformError ``guard_unavailable`` where there is none.
    """
    import pwd

    taken = {entry.pw_uid for entry in pwd.getpwall()}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                taken.add(process.stat().st_uid)
    for uid in _DYNAMIC:
        if uid not in taken:
            return Account(f"uid {uid}", uid, uid, "/nonexistent")
    raise PlatformError("every user id for loopback targets is in use", code="guard_unavailable")


def become(account: Account, parent: int, *, raw_sockets: bool) -> None:
    """Turn this freshly forked root process into ``account`` for good, to be killed when its parent ends.

    Of the capabilities CAP_NET_RAW alone is kept, also over exec, and only with ``raw_sockets``; groups are the
    account's own and no other, so that membership in one such as docker gives nothing back. Raises OSError.
    """
    kept = 1 << syscalls.CAP_NET_RAW if raw_sockets else 0
    syscalls.bound_bounding_set(kept)
    syscalls.prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    syscalls.keep_capabilities(kept)
    syscalls.no_new_privileges()
    syscalls.die_with_parent(signal.SIGKILL)  # last, because a change of user clears it (prctl(2))
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def own_descriptors_by(account: Account, make: Callable[[], T]) -> T:
    """Call ``make`` so that the sockets it opens count as ``account``'s in packet filters (``meta skuid``).

    The file system user id is what a socket's file remembers; it takes no capability for the network away.
    """
    _libc.setfsuid(account.uid)
    try:
        return make()
    finally:
        _libc.setfsuid(0)


def ask_as(account: Account, question: Callable[[], Any]) -> Any:
    """The JSON-ready answer to ``question`` asked in a forked process that is ``account``."""
    reading, writing = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            become(account, parent, raw_sockets=False)
            with os.fdopen(writing, "w") as pipe:
                json.dump(question(), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, ended = os.waitpid(child, 0)
    if ended:
        raise PlatformError(f"this process cannot become the user {account.name!r}", code="guard_unavailable")
    return json.loads(text)


def check_can_serve(account: Account, files: Iterable[Path]) -> None:
    """Raise PlatformError ``guard_unavailable`` unless the user can run this program and read ``files``.

    A virtual environment below a private home folder is the usual reason.
    """
    needed = [sys.executable, os.__file__, __file__]
    needed += [path for name in ("pydantic", "typer") if (path := getattr(sys.modules.get(name), "__file__", None))]
    owners = [str(path) for path in files]

    def unreachable() -> list[str]:
        found = [path for path in (*needed, *owners) if not os.access(path, os.R_OK)]
        return [*([] if os.access(sys.executable, os.X_OK) else [sys.executable]), *found]

    missing: list[str] = ask_as(account, unreachable)
    if not missing:
        return
    first = missing[0]
    if first in owners:
        mend = f"sudo chgrp {account.gid} {shlex.quote(first)} && sudo chmod 640 {shlex.quote(first)}"
        raise PlatformError(
            f"the user {account.name!r}, which the server becomes, cannot read {first}",
            code="guard_unavailable",
            hint=f"{mend}; the folders above it must let the user pass.",
        )
    real = Path(first).resolve()
    raise PlatformError(
        f"the user {account.name!r}, which the server becomes, cannot run this installation: {first} ({real})",
        code="guard_unavailable",
        hint="Install the program and its Python where every user can read them, such as a virtual environment in "
        "/opt/mcp-network-tools made by the system's python3.",
    )


def check_out_of_reach(account: Account, path: Path) -> None:
    """Raise ConfigError where the user could change the file ``path``, or put another in its place."""
    real = path.resolve()
    # The file, every folder above it, and the same of what it leads to where links are on the way. What a link says
    # can only be changed in its folder.
    executors = [each for each in dict.fromkeys((path, *path.parents, real, *real.parents)) if not each.is_symlink()]
    executor = next((each for each in executors if _mode_lets(account, each.lstat())), None)
    if executor is None:
        # Access control lists are seen by asking the kernel only; what is in a sticky folder is its owner's to replace.
        asked = [str(each) for each in executors if not each.lstat().st_mode & stat.S_ISVTX]
        writable: list[str] = ask_as(account, lambda: [name for name in asked if os.access(name, os.W_OK)])
        executor = Path(writable[0]) if writable else None
    if executor is not None:
        quoted = shlex.quote(str(executor))
        raise ConfigError(
            f"{path} draws the scope, and the user {account.name!r}, which the server becomes, can change {executor}",
            hint=f"sudo chown root:root {quoted} && sudo chmod go-w {quoted}",
        )


def _mode_lets(account: Account, found: os.stat_result) -> bool:
    """Whether owner, group and mode let the user write; in a sticky folder others cannot replace what is there."""
    mode = found.st_mode
    shared = bool(mode & stat.S_IWOTH) and not (stat.S_ISDIR(mode) and mode & stat.S_ISVTX)
    return found.st_uid == account.uid or shared or bool(mode & stat.S_IWGRP and found.st_gid == account.gid)


def check_state_folder(account: Account, folder: Path) -> None:
    """Raise PlatformError ``permission_denied`` where `give_state_folder` would for what is in the folder."""
    if folder.is_dir() and folder.stat().st_uid != account.uid and any(folder.iterdir()):
        raise _foreign_folder(account, folder)


def _foreign_folder(account: Account, folder: Path) -> PlatformError:
    return PlatformError(
        f"the state folder {folder} holds something and does not belong to {account.name!r}, which the server becomes",
        hint=_mend(account, folder),
    )


def _mend(account: Account, folder: Path) -> str:
    quoted = shlex.quote(str(folder))
    return f"sudo chown -R {account.name}: {quoted} && sudo chmod 700 {quoted}, or set MCP_STATE_DIR."


def give_state_folder(account: Account, folder: Path) -> None:
    """Make ``folder`` (mode 0700) where it is missing, and give it to the user where it is new or empty.

    Raises PlatformError ``permission_denied`` where it holds something and belongs to another user, or is no folder.
    """
    try:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir()
            each.chmod(0o700 if each == folder else 0o755)  # whatever the umask is
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(handle).st_uid != account.uid:
                if os.listdir(handle):  # noqa: PTH208 - of the folder that was opened, whatever its name leads to now
                    raise _foreign_folder(account, folder)
                os.fchown(handle, account.uid, account.gid)
                os.fchmod(handle, 0o700)
        finally:
            os.close(handle)
    except OSError as error:
        raise PlatformError(
            f"the state folder {folder} cannot be made: {error.strerror}", hint=_mend(account, folder)
        ) from error
    if not ask_as(account, lambda: os.access(folder, os.R_OK | os.W_OK | os.X_OK)):
        raise PlatformError(
            f"the user {account.name!r} cannot reach the state folder {folder}",
            hint="Choose a folder below ones that every user may pass, such as /var/lib/mcp-network-tools.",
        )
