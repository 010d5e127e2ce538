"""What a guardian changed on the host, how it is undone, and the undertaker that undoes it when the guardian is gone.

Every change has a name that is known before it is made, and all of them are written to one file below /run first: a
guardian that is killed leaves a list of what to take away. The undertaker, a process that only waits for the
guardian's end, works it off; ``mcp-network-tools guard down`` does the same where even the undertaker was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.execution.guard_children import become_silent
from mcp_server.execution.guard_net import ip
from mcp_server.execution.guard_nft import Nft

RUN: Final = Path("/run/mcp-network-tools")
"""Where guards are listed, mode 0700: one file each, and the socket that ``guard status`` asks."""

_SWEEPS: Final = 50


@dataclass(frozen=True, slots=True)
class GuardState:
    """One guard's changes to the host: nftables tables (family and name), a device, sysctl files with their old text.

    ``born`` is the guardian's start time in clock ticks, because process numbers are used again; ``host`` is the
    inode of the network namespace that was changed. ``addresses`` are those the guard's own device has on the segment.
    """

    guardian: int
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
        return RUN / f"guard-{self.guardian}.json"

    @property
    def control(self) -> Path:
        """The socket its guardian answers ``guard status`` on."""
        return RUN / f"guard-{self.guardian}.sock"

    @property
    def alive(self) -> bool:
        """Whether its guardian is still there."""
        return born(self.guardian) == self.born

    def save(self) -> None:
        """Write the file, whole or not at all; PlatformError ``guard_unavailable`` where /run cannot be written."""
        try:
            RUN.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = self.path.with_suffix(".new")
            draft.write_text(json.dumps(asdict(self)))
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


def load(path: Path) -> GuardState | None:
    """The guard a file describes; None where it is gone or unreadable."""
    try:
        document = json.loads(path.read_text())
        document["addresses"] = tuple(document.get("addresses", ()))
        document["tables"] = tuple((family, name) for family, name in document["tables"])
        return GuardState(**document)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def all_guards() -> list[GuardState]:
    """Every guard on record, also those whose guardian is gone."""
    found = (load(path) for path in sorted(RUN.glob("guard-*.json")))
    return [state for state in found if state is not None]


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time takes a guard apart: what one gives back another may still need."""
    RUN.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(RUN / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
        return [f"guard {state.guardian} belongs to another network namespace (inode {state.host}); run this there"]
    with _alone():
        current = load(state.path)
        problems = [*_drop_tables(state), *_drop_device(state), *_restore(current or state)]
        if not problems:
            state.path.unlink(missing_ok=True)
            state.control.unlink(missing_ok=True)
    return problems


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


class Undertaker:
    """The process that waits for the guardian's end and takes away what is left: processes first, then the rest.

    Fork it before anything is built, and let go of it (`finish`) when the guardian ends by itself.
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
    os.setsid()  # what ends the guardian's whole group or session must not end this
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
