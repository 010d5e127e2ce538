"""What a guard helper changed on the host, how it is undone, and the reaper that undoes it when the guard helper is gone.

Every change has a name that is known before it is made, and all of them are written to one file below /run first: a
guard helper that is killed leaves a list of what to take away. The reaper, a process that only waits for the
guard helper's end, works it off; ``mcp-network-tools guard down`` does the same where even the reaper was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.logger import get_logger
from mcp_server.netguard.children import become_silent
from mcp_server.netguard.net import ip
from mcp_server.netguard.nft import Nft

logger = get_logger(__name__)

RUN: Final = Path("/run/mcp-network-tools")
"""Where guards are listed, mode 0700: one file each, and the socket that ``guard status`` asks."""

_SWEEPS: Final = 50
_LARGEST: Final = 1 << 20
_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO of the kernel's proc_ns.h
# What a guard helper writes down, and so all that root takes away again.
_DEVICE: Final = re.compile(r"mcps[0-9]{1,10}")
_TABLE: Final = re.compile(r"mcp_scope_(nat|host)_[0-9]{1,10}")
_SYSCTL: Final = re.compile(r"/proc/sys/net/ipv4/conf/(?!\.\.?/)[^/\s]{1,15}/forwarding")


@dataclass(frozen=True, slots=True)
class GuardState:
    """One guard's changes to the host: nftables tables (family and name), a device, sysctl files with their old text.

    ``born`` is the guard helper's start time in clock ticks, because process numbers are used again; ``host`` is the
    inode of the network namespace that was changed. ``addresses`` are those the guard's own device has on the segment.
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
        """Its file."""
        return RUN / f"guard-{self.helper}.json"

    @property
    def control(self) -> Path:
        """The socket its guard helper answers ``guard status`` on."""
        return RUN / f"guard-{self.helper}.sock"

    @property
    def alive(self) -> bool:
        """Whether its guard helper is still there."""
        return born(self.helper) == self.born

    def save(self) -> None:
        """Write the file, whole or not at all; PlatformError ``guard_unavailable`` where /run cannot be written."""
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
                f"{self.path} cannot be written: {error.strerror}",
                code="guard_unavailable",
                hint="A guard is only set up where what it changes can be written down first.",
            ) from error


def born(pid: int) -> int:
    """A process's start time in clock ticks since boot (proc(5), stat field 22); 0 for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in {"Z", "X"} else int(fields[19])


def host_namespace() -> int:
    """The inode of the network namespace this process is in."""
    return Path("/proc/self/ns/net").stat().st_ino


def run_folder(*, make: bool = False) -> bool:
    """Whether there is the folder of guards; PlatformError ``guard_unavailable`` unless it is root's alone."""
    if make:
        RUN.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        found = RUN.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise PlatformError(
            f"{RUN} is not a folder that root alone can change, and what it says about guards cannot be trusted",
            code="guard_unavailable",
            hint=f"See who made it, then remove it: sudo rm -r {RUN}",
        )
    return True


def load(path: Path) -> GuardState | None:
    """The guard a file describes; None where it is gone.

    PlatformError ``guard_unavailable`` where a guard helper cannot have written it: root acts on what it says.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _foreign(path, error.strerror) from error
    with os.fdopen(handle) as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
            raise _foreign(path, "others than root can change it")
        try:
            document = json.loads(file.read(_LARGEST))
            document["addresses"] = tuple(document.get("addresses", ()))
            document["tables"] = tuple((family, name) for family, name in document["tables"])
            state = GuardState(**document)
            fault = _fault(state)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _foreign(path, "it cannot be read") from None
    if fault or state.path != path:
        raise _foreign(path, f"it names {fault or 'another helper'}")
    return state


def _least() -> int:
    """The least process id a guard helper can have: 1 in a container, but not where that is the host's init."""
    return 2 if Path("/proc/self/ns/pid").stat().st_ino == _FIRST_PID_NAMESPACE else 1


def _fault(state: GuardState) -> str:
    """What in a state no guard helper writes; empty where there is nothing."""
    numbers = (state.helper, state.born, state.host, state.server)
    words = (state.enforcement, state.user, state.mode, state.uplink, *state.addresses)
    if not all(type(number) is int and number >= 0 for number in numbers) or state.helper < _least():
        return "a process that there cannot be"
    if not all(isinstance(word, str) and word.isprintable() for word in words):
        return "something that cannot be shown"
    if state.device and not _DEVICE.fullmatch(state.device):
        return "a device that is none of a guard's"
    if not all(family in {"ip", "inet"} and _TABLE.fullmatch(name) for family, name in state.tables):
        return "a table that is none of a guard's"
    if not all(_SYSCTL.fullmatch(name) and old.strip() in {"0", "1"} for name, old in state.sysctls.items()):
        return "a kernel setting that no guard changes"
    return ""


def _foreign(path: Path, why: str | None) -> PlatformError:
    return PlatformError(
        f"{path} is no record of a guard: {why}", code="guard_unavailable", hint="Look at it, then remove it."
    )


def all_guards() -> list[GuardState]:
    """Every guard on record, also those whose guard helper is gone; errors as `run_folder`'s and `load`'s."""
    if not run_folder():
        return []
    found = (load(path) for path in sorted(RUN.glob("guard-*.json")))
    return [state for state in found if state is not None]


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time takes a guard apart: what one gives back another may still need."""
    run_folder(make=True)
    try:
        handle = os.open(RUN / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _foreign(RUN / "lock", error.strerror) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def note_server(state: GuardState, server: int) -> GuardState:
    """Write down the server's process number; what another guard handed over meanwhile is kept."""
    with _alone():
        noted = replace(load(state.path) or state, server=server)
        noted.save()
    return noted


def dismantle(state: GuardState) -> list[str]:
    """Undo everything a guard changed on the host, in the host's namespace; what could not be undone, in words.

    Safe to call again. A kernel setting that another live guard of the same host needs is left to that one.
    """
    if host_namespace() != state.host:
        return [f"guard {state.helper} belongs to another network namespace (inode {state.host}); run this there"]
    try:
        with _alone():
            current = load(state.path)
            problems = [*_drop_tables(state), *_drop_device(state), *_restore(current or state)]
            if not problems:
                state.path.unlink(missing_ok=True)
                state.control.unlink(missing_ok=True)
    except NetworkToolsError as error:  # what is written down cannot be trusted; what this one made, it knows
        return [*_drop_tables(state), *_drop_device(state), error.message]
    return problems


def clear_dead_guards() -> list[int]:
    """Take down what guards left whose guard helper and reaper were both killed; the guard helpers' numbers."""
    cleared = []
    for state in all_guards():
        if not state.alive and state.host == host_namespace():
            problems = dismantle(state)
            for problem in problems:
                logger.warning("guard.left_behind", message=problem)
            if not problems:
                cleared.append(state.helper)
    return cleared


def check_addresses(addresses: Collection[str]) -> None:
    """Refuse an address that another guard on this host has: two devices would answer for it."""
    for state in all_guards():
        taken = sorted(set(addresses) & set(state.addresses))
        if taken and state.alive and state.host == host_namespace():
            raise PlatformError(
                f"guard.addresses: {', '.join(taken)} belongs to the guard of process {state.helper}",
                code="guard_unavailable",
                hint="Call through that server (HTTP), end it with 'mcp-network-tools guard down', or give this one "
                "an address of its own.",
            )


def _drop_tables(state: GuardState) -> list[str]:
    if not state.tables:
        return []
    # "add" first makes "delete" succeed where there is none; one transaction, so nothing is ever seen of it.
    script = "".join(f"add table {family} {name}\ndelete table {family} {name}\n" for family, name in state.tables)
    try:
        nft = Nft()
        try:
            nft.run(script)
        finally:
            nft.close()
    except NetworkToolsError as error:
        return [error.message]
    return []


def _drop_device(state: GuardState) -> list[str]:
    try:
        if state.device:
            socket.if_nametoindex(state.device)
            ip(f"link delete dev {state.device}")
    except NetworkToolsError as error:
        # It goes by itself with the namespace at its other end, and may have done so in this moment.
        with suppress(OSError):
            socket.if_nametoindex(state.device)
            return [error.message]
    except OSError:
        pass
    return []


def _restore(state: GuardState) -> list[str]:
    others = [other for other in all_guards() if other != state and other.host == state.host and other.alive]
    problems = []
    for name, old in state.sysctls.items():
        heir = next((other for other in others if other.uplink == state.uplink and other.mode == state.mode), None)
        if heir is not None:
            replace(heir, sysctls={name: old} | heir.sysctls).save()
            continue
        try:
            if Path(name).read_text() != old:
                Path(name).write_text(old)
        except FileNotFoundError:
            pass  # the device it belonged to is gone
        except OSError as error:
            problems.append(f"{name} cannot be set back to {old.strip()}: {error.strerror}")
    return problems


def sweep(namespace: int) -> bool:
    """Kill every process in the network namespace that descriptor ``namespace`` holds; True once there is none."""
    inode = os.fstat(namespace).st_ino
    for _ in range(_SWEEPS):
        inside = [pid for pid in _processes() if pid != os.getpid() and _namespace_of(pid) == inode]
        if not inside:
            return True
        for pid in inside:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return False


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _namespace_of(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:  # it ended, or is a zombie
        return 0


class Reaper:
    """The process that waits for the guard helper's end and takes away what is left: processes first, then the rest.

    Fork it before anything is built, and let go of it (`finish`) when the guard helper ends by itself.
    """

    def __init__(self, state: GuardState) -> None:
        self._pipe, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self._pipe.close()
                status = _undertake(theirs, state)
            finally:
                os._exit(status)
        theirs.close()

    def hold(self, namespace: int) -> None:
        """Give it the namespace that descriptor ``namespace`` holds, so that no other can get its inode meanwhile."""
        socket.send_fds(self._pipe, [b"namespace"], [namespace])

    def finish(self, seconds: float = 10.0) -> bool:
        """Have it do its work now and wait for it; True where everything was undone."""
        self._pipe.close()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                return status == 0
            time.sleep(0.005)
        return False


def _undertake(pipe: socket.socket, state: GuardState) -> int:
    os.setsid()  # what ends the guard helper's whole group or session must not end this
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    become_silent(pipe.fileno())
    namespace = -1
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(pipe, 64, 1)
        except InterruptedError:
            continue
        if descriptors:
            namespace = descriptors[0]
        if not data:
            break
    done = namespace < 0 or sweep(namespace)
    return int(bool(dismantle(state)) or not done)
