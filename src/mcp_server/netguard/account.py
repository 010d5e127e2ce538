"""The users of the kernel tier: finding them, and turning a process of root into one of them."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from mcp_server.config.keys import keys
from mcp_server.errors import ConfigError, PlatformError
from mcp_server.netguard import DEFAULT_USER
from mcp_server.netguard.children import call_in_child
from mcp_server.sandbox import syscalls

if TYPE_CHECKING:
    from mcp_server.config import Config

T = TypeVar("T")

_PR_SET_KEEPCAPS: Final = 8
_DYNAMIC: Final = range(61184, 65520)
"""User ids for services without an account (systemd.exec(5), DynamicUser=)."""
_OF_ROOT: Final = ("HOME", "USER", "LOGNAME", "SHELL", "MAIL")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this host."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class Accounts:
    """The user that the server becomes, and the user of the loopback runner (None if the policy has no loopback)."""

    server: Account
    loopback: Account | None

    @classmethod
    def find(cls, config: Config, *, loopback: bool) -> Self:
        """Look up both users. Raises PlatformError or ConfigError if one of them cannot be used."""
        server = server_account(config)
        other = _loopback_account(config) if loopback else None
        if other is not None and other.uid == server.uid:
            raise ConfigError("guard.loopback_user is the same user as guard.user.", hint="Set two different users.")
        return cls(server, other)


def server_account(config: Config) -> Account:
    """Return the user that the server becomes. Raises as `find_account` does."""
    return find_account(config.guard.user or DEFAULT_USER, "guard.user")


def _loopback_account(config: Config) -> Account:
    """Return the user of the loopback runner: the configured one, or one with an unused user id."""
    name = config.guard.loopback_user
    return find_account(name, "guard.loopback_user") if name else _unused_account()


def find_account(name: str, key: str) -> Account:
    """Return the unprivileged user ``name``, which is the value of the configuration key ``key``.

    Raises PlatformError ``guard_unavailable`` if it does not exist, and ConfigError if it is root.
    """
    import pwd

    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise PlatformError(
            f"{key}: the user {name!r} does not exist on this host.",
            code="guard_unavailable",
            hint="Create it with 'sudo useradd --system --user-group --no-create-home --shell /usr/sbin/nologin "
            f"{shlex.quote(name)}'.",
        ) from None
    if found.pw_uid == 0 or found.pw_gid == 0:
        raise ConfigError(
            f"{key}: {name!r} is root or in root's group. The guard does not accept this.",
            hint="Set an unprivileged user.",
        )
    return Account(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir)


def _unused_account() -> Account:
    """Return a user id that no user and no process has. Raises PlatformError ``guard_unavailable`` if there is none."""
    import pwd

    taken = {entry.pw_uid for entry in pwd.getpwall()}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                taken.add(process.stat().st_uid)
    for uid in _DYNAMIC:
        if uid not in taken:
            return Account(f"uid {uid}", uid, uid, "/nonexistent")
    raise PlatformError("All user ids for the loopback runner are in use.", code="guard_unavailable")


def become(account: Account, parent: int, *, raw_sockets: bool) -> None:
    """Turn this process, which root has just forked, into a process of ``account``. It ends with its parent.

    With ``raw_sockets`` it keeps CAP_NET_RAW, also after execve(2). It keeps no other capability. It has no group
    except the account's own, because membership in a group such as docker would give privileges back. Raises OSError.
    """
    kept = 1 << syscalls.CAP_NET_RAW if raw_sockets else 0
    syscalls.bound_bounding_set(kept)
    syscalls.prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    syscalls.keep_capabilities(kept)
    syscalls.no_new_privileges()
    end_with_parent(parent)


def end_with_parent(parent: int) -> None:
    """Have this process killed when the process ``parent`` ends. A change of user would undo this (prctl(2))."""
    syscalls.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def own_descriptors_by(account: Account, make: Callable[[], T]) -> T:
    """Call ``make`` so that the sockets it opens belong to ``account`` for packet filters (``meta skuid``).

    A socket's file records the file system user id. Changing that id affects no network capability.
    """
    _libc.setfsuid(account.uid)
    try:
        return make()
    finally:
        _libc.setfsuid(0)


def call_as(account: Account, function: Callable[[], Any]) -> Any:
    """Call ``function`` in a forked process of ``account``, and return its result, which must be valid JSON."""
    parent = os.getpid()

    def call() -> Any:
        become(account, parent, raw_sockets=False)
        return function()

    try:
        return call_in_child(call)
    except ChildProcessError:
        raise PlatformError(
            f"This process cannot become the user {account.name!r}.", code="guard_unavailable"
        ) from None


def server_environment(given: Mapping[str, str], account: Account, config: Config, state_dir: Path) -> dict[str, str]:
    """Return the environment of the server: the operator's settings with absolute paths, without root's variables."""
    kept = {
        name: value
        for name, value in given.items()
        if name not in _OF_ROOT and not name.startswith(("XDG_", "SUDO_", "LD_"))
    }
    own = {"HOME": account.home, "USER": account.name, "LOGNAME": account.name, "MCP_STATE_DIR": str(state_dir)}
    if config.file is not None:
        own["MCP_CONFIG_FILE"] = str(config.file)
    for key in keys().values():
        value = key.of(config)
        if isinstance(value, Path) and key.holder(config).source_of(key.name) == "env":
            own |= {name: str(value) for name in key.env if name in kept}
    return kept | own
