"""Undoes the changes of a guard helper to the host, also in a reaper process if the guard helper was killed.

The reaper only waits for the end of the guard helper. If the reaper was killed too, ``mcp-network-tools guard down``
and the next start of a guard do the same work.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from mcp_server.errors import NetworkToolsError
from mcp_server.logger import get_logger
from mcp_server.netguard.children import become_silent
from mcp_server.netguard.network import ip
from mcp_server.netguard.nft import Nft
from mcp_server.netguard.state import GuardState, all_guards, load, lock

logger = get_logger(__name__)

_ATTEMPTS: Final = 50


def undo(state: GuardState) -> list[str]:
    """Undo all changes of a guard to the host, and return sentences about those that could not be undone.

    It is safe to call this again. If another live guard needs a kernel setting, that guard restores it later.
    """
    if not state.here:
        namespace = f"network namespace (inode {state.host})"
        return [f"The guard with PID {state.helper} belongs to another {namespace}. Run this command there."]
    try:
        with lock():
            current = load(state.path)
            problems = [*_delete_tables(state), *_delete_device(state), *_restore_sysctls(current or state)]
            if not problems:
                state.path.unlink(missing_ok=True)
                state.control.unlink(missing_ok=True)
    except NetworkToolsError as error:  # the record cannot be trusted, but this guard's own device and tables are known
        return [*_delete_tables(state), *_delete_device(state), error.message]
    return problems


def undo_dead_guards() -> None:
    """Undo the changes of guards whose guard helper and reaper were both killed."""
    for state in all_guards():
        if not state.alive and state.here:
            for problem in undo(state):
                logger.warning("guard.not_undone", message=problem)


def _delete_tables(state: GuardState) -> list[str]:
    if not state.tables:
        return []
    # Because of "add", "delete" succeeds if the table does not exist. This is one transaction, so no
    # other program sees the table.
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


def _delete_device(state: GuardState) -> list[str]:
    try:
        if state.device:
            socket.if_nametoindex(state.device)
            ip(f"link delete dev {state.device}")
    except NetworkToolsError as error:
        # The device disappears with the namespace at its other end, which may have happened just now.
        with suppress(OSError):
            socket.if_nametoindex(state.device)
            return [error.message]
    except OSError:
        pass
    return []


def _restore_sysctls(state: GuardState) -> list[str]:
    others = [other for other in all_guards() if other != state and other.host == state.host and other.alive]
    problems = []
    for name, old in state.sysctls.items():
        user = next((other for other in others if other.uplink == state.uplink and other.mode == state.mode), None)
        if user is not None:
            replace(user, sysctls={name: old} | user.sysctls).save()
            continue
        try:
            if Path(name).read_text() != old:
                Path(name).write_text(old)
        except FileNotFoundError:
            pass  # the device does not exist any more
        except OSError as error:
            problems.append(f"{name} cannot be set back to {old.strip()}: {error.strerror}.")
    return problems


def kill_processes(namespace: int) -> bool:
    """Kill every process in the network namespace of the descriptor ``namespace``. Return whether none is left."""
    inode = os.fstat(namespace).st_ino
    for _ in range(_ATTEMPTS):
        processes = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        inside = [pid for pid in processes if pid != os.getpid() and _namespace_of(pid) == inode]
        if not inside:
            return True
        for pid in inside:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return False


def _namespace_of(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:  # it has ended, or is a zombie
        return 0


class Reaper:
    """A process that waits for the end of the guard helper, kills the guarded processes, and undoes all changes.

    Create it before anything is changed. Call `finish` at a normal end of the guard helper.
    """

    def __init__(self, state: GuardState) -> None:
        self._pipe, reaper_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self._pipe.close()
                status = _reap(reaper_end, state)
            finally:
                os._exit(status)
        reaper_end.close()

    def hold(self, namespace: int) -> None:
        """Pass the descriptor of the namespace to the reaper. While it is open, no other namespace gets its inode."""
        socket.send_fds(self._pipe, [b"namespace"], [namespace])

    def finish(self, seconds: float = 10.0) -> bool:
        """Make the reaper do its work now, and wait for it. Return whether everything was undone."""
        self._pipe.close()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                return status == 0
            time.sleep(0.005)
        return False


def _reap(pipe: socket.socket, state: GuardState) -> int:
    os.setsid()  # a signal to the guard helper's process group or session must not end the reaper
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
    done = namespace < 0 or kill_processes(namespace)
    return int(bool(undo(state)) or not done)
