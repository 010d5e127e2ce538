"""The record of the changes of a guard helper to the host, kept in /run.

Each change has a name that is known before it is made. All of them are written to one file first, so that a killed
guard helper leaves a list of what must be undone (`cleanup`).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from mcp_server.errors import PlatformError

RUN: Final = Path("/run/mcp-network-tools")
"""The folder of the guards, with mode 0700. Each guard has a file and the socket of ``guard status`` in it."""

_MAX_BYTES: Final = 1 << 20
_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO (linux/proc_ns.h)
# The names that a guard helper uses. Root removes nothing else.
_DEVICE: Final = re.compile(r"mcps[0-9]{1,10}")
_TABLE: Final = re.compile(r"mcp_scope_(nat|host)_[0-9]{1,10}")
_SYSCTL: Final = re.compile(r"/proc/sys/net/ipv4/conf/(?!\.\.?/)[^/\s]{1,15}/forwarding")


@dataclass(frozen=True, slots=True)
class GuardState:
    """The changes of one guard to the host.

    ``helper`` and ``server`` are PIDs. ``born`` is the start time of the guard helper in clock ticks, because PIDs are
    reused. ``host`` is the inode of the network namespace that was changed. ``tables`` are nftables tables (family and
    name). ``sysctls`` are files with their previous content. ``addresses`` are the guard's on the uplink.
    """

    helper: int
    born: int
    host: int
    enforcement: str
    user: str
    mode: str = ""
    uplink: str = ""
    server: int = 0
    device: str = ""
    tables: tuple[tuple[str, str], ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file of this record."""
        return RUN / f"guard-{self.helper}.json"

    @property
    def control(self) -> Path:
        """The socket on which the guard helper replies to ``guard status``."""
        return RUN / f"guard-{self.helper}.sock"

    @property
    def alive(self) -> bool:
        """Whether the guard helper is still running."""
        return start_time(self.helper) == self.born

    @property
    def here(self) -> bool:
        """Whether the guard belongs to the network namespace of this process."""
        return host_namespace() == self.host

    def save(self) -> None:
        """Write the file atomically. Raises PlatformError ``guard_unavailable`` if it cannot be written."""
        try:
            run_folder(make=True)
            draft = self.path.with_suffix(".new")
            draft.unlink(missing_ok=True)
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(json.dumps(asdict(self)))
            draft.replace(self.path)
        except OSError as error:
            raise PlatformError(
                f"{self.path} cannot be written: {error.strerror}.",
                code="guard_unavailable",
                hint="Make /run writable for root. A guard must record its changes before it makes them.",
            ) from error


def start_time(pid: int) -> int:
    """Return the start time of a process in clock ticks since boot (proc_pid_stat(5)), or 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in {"Z", "X"} else int(fields[19])


def host_namespace() -> int:
    """Return the inode of this process's network namespace."""
    return Path("/proc/self/ns/net").stat().st_ino


def run_folder(*, make: bool = False) -> bool:
    """Return whether the folder of the guards exists, and create it with ``make``.

    Raises PlatformError ``guard_unavailable`` if other users than root can change it.
    """
    if make:
        RUN.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        found = RUN.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise PlatformError(
            f"{RUN} is not a folder that only root can change, so its records of guards cannot be trusted.",
            code="guard_unavailable",
            hint=f"Find out who made it, then remove it with 'sudo rm -r {RUN}'.",
        )
    return True


def load(path: Path) -> GuardState | None:
    """Return the record in a file, or None if the file does not exist.

    Root acts on the record. So this raises PlatformError ``guard_unavailable`` if a guard helper cannot have written
    it.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _invalid(path, error.strerror) from error
    with os.fdopen(handle) as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
            raise _invalid(path, "other users than root can change it")
        try:
            document = json.loads(file.read(_MAX_BYTES))
            document["addresses"] = tuple(document.get("addresses", ()))
            document["tables"] = tuple((family, name) for family, name in document["tables"])
            state = GuardState(**document)
            fault = _fault(state)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _invalid(path, "it cannot be parsed") from None
    if fault or state.path != path:
        raise _invalid(path, f"it contains {fault or 'the PID of another guard helper'}")
    return state


def all_guards() -> list[GuardState]:
    """Return every recorded guard, even if its guard helper is gone. Raises as `run_folder` and `load` do."""
    if not run_folder():
        return []
    found = (load(path) for path in sorted(RUN.glob("guard-*.json")))
    return [state for state in found if state is not None]


@contextmanager
def lock() -> Iterator[None]:
    """Let only one process at a time change records: a guard can need a setting that a second guard restores."""
    run_folder(make=True)
    try:
        handle = os.open(RUN / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _invalid(RUN / "lock", error.strerror) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def record_server(state: GuardState, server: int) -> GuardState:
    """Record the PID of the server, and keep the entries that another guard added to the file in the meantime."""
    with lock():
        updated = replace(load(state.path) or state, server=server)
        updated.save()
    return updated


def check_addresses(addresses: Collection[str]) -> None:
    """Raise PlatformError ``guard_unavailable`` if another guard on this host has one of the addresses."""
    for state in all_guards():
        taken = sorted(set(addresses) & set(state.addresses))
        if taken and state.alive and state.here:
            raise PlatformError(
                f"guard.addresses: {', '.join(taken)} is in use by the guard with PID {state.helper}.",
                code="guard_unavailable",
                hint="Make the call through that server (HTTP), end it with 'mcp-network-tools guard down', or give "
                "this guard another address.",
            )


def _fault(state: GuardState) -> str:
    """Return the invalid part of a record, which no guard helper can have written, or an empty string."""
    numbers = (state.helper, state.born, state.host, state.server)
    words = (state.enforcement, state.user, state.mode, state.uplink, *state.addresses)
    # In a container, a guard helper can be process 1. On the host, that is init.
    lowest = 2 if Path("/proc/self/ns/pid").stat().st_ino == _FIRST_PID_NAMESPACE else 1
    if not all(type(number) is int and number >= 0 for number in numbers) or state.helper < lowest:
        return "an impossible PID"
    if not all(isinstance(word, str) and word.isprintable() for word in words):
        return "unprintable characters"
    if state.device and not _DEVICE.fullmatch(state.device):
        return "a device that is not a guard's"
    if not all(family in {"ip", "inet"} and _TABLE.fullmatch(name) for family, name in state.tables):
        return "a table that is not a guard's"
    if not all(_SYSCTL.fullmatch(name) and old.strip() in {"0", "1"} for name, old in state.sysctls.items()):
        return "a kernel setting that no guard changes"
    return ""


def _invalid(path: Path, why: str | None) -> PlatformError:
    return PlatformError(
        f"{path} is not a valid record of a guard: {why}.",
        code="guard_unavailable",
        hint="Inspect the file, then remove it.",
    )
