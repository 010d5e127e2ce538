"""How a program is started so that all of it can be ended: containment tiers, and the argv in front of it.

Every tier runs the program under rlimits, and ends it with everything it forked, also what called setsid(2)
or forked twice. `docs/decisions/0002-processes.md` holds the measurements behind the choice.

Limits are set by a program that then turns into the tool, never by ``preexec_fn``: that copies the server's page
tables at every spawn, 30 ms in a server of 1 GB.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH every tool gets; the server's own is not handed on."""

_CAP_NET_RAW: Final = 13
_RLIMITS: Final = {
    "cpu": resource.RLIMIT_CPU,
    "as": resource.RLIMIT_AS,
    "nofile": resource.RLIMIT_NOFILE,
    "core": resource.RLIMIT_CORE,
    "fsize": resource.RLIMIT_FSIZE,
}


class Tier(StrEnum):
    """What ends the process tree of a run, strongest first."""

    PID_NAMESPACE = "pid-namespace"
    USER_NAMESPACE = "user-namespace"
    SUPERVISOR = "supervisor"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class Containment:
    """What the active tier promises, for `doctor` and the audit log.

    ``ends_detached``: a descendant that left the session dies with its run. ``ends_with_server``: and when the
    server is killed with SIGKILL. ``remedy`` says what would give a stronger tier, or is empty.
    """

    tier: Tier
    ends_detached: bool
    ends_with_server: bool
    detail: str
    remedy: str = ""


_CONTAINMENT: Final = {
    Tier.PID_NAMESPACE: Containment(
        Tier.PID_NAMESPACE, True, True, "each run has its own PID namespace; the kernel ends it whole"
    ),
    Tier.USER_NAMESPACE: Containment(
        Tier.USER_NAMESPACE,
        True,
        True,
        "each run has its own user and PID namespace; the kernel ends it whole, and raw sockets are not to be had",
    ),
    Tier.SUPERVISOR: Containment(
        Tier.SUPERVISOR,
        True,
        True,
        "a supervisor process ends each run with all it forked; a spawn takes about 12 ms longer",
        "Run as root, or as a user who may create user namespaces, with util-linux and coreutils installed.",
    ),
    Tier.SESSION: Containment(
        Tier.SESSION,
        False,
        False,
        "a run's session is ended; a descendant that left it survives, and a dead server is noticed after a second",
        "Run on Linux.",
    ),
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a launcher enforces. ``rlimits`` has prlimit(1)'s long options as keys; ``seconds`` is a last resort.

    The rlimits are ``cpu`` (seconds), ``as``, ``core``, ``fsize`` (bytes) and ``nofile``. None is set above this
    process's own hard limit: raising one needs a privilege the server may lack.
    """

    rlimits: Mapping[str, int]
    seconds: int

    @classmethod
    def below_own(cls, rlimits: Mapping[str, int], seconds: int) -> Bounds:
        """The bounds, lowered to the hard limits of this process."""
        lowered = {}
        for name, value in rlimits.items():
            hard = resource.getrlimit(_RLIMITS[name])[1]
            lowered[name] = value if hard == resource.RLIM_INFINITY else min(value, hard)
        return cls(lowered, seconds)


class Launcher(Protocol):
    """One way of starting a program and of ending its whole tree."""

    @property
    def tier(self) -> Tier:
        """The tier this launcher gives."""
        ...

    @property
    def refusal(self) -> bytes:
        """How stderr begins where the launcher could not execute the tool; its exit code is then 126 or 127."""
        ...

    @property
    def farewell(self) -> bytes:
        """What the launcher itself writes at the end of stderr after `kill`."""
        ...

    def wrap(self, argv: tuple[str, ...], limits: Bounds, folder: str) -> tuple[str, ...]:
        """The words to execute, by this very thread, so that ``argv`` runs contained in ``folder``."""
        ...

    def ask(self, pid: int) -> bool:
        """Send SIGTERM to the tool whose launcher is ``pid``; False where the tool would not notice it."""
        ...

    def kill(self, pid: int) -> None:
        """Kill the tree. The process ``pid``, an unreaped child of the caller, is the last of it to end."""
        ...


@dataclass(frozen=True, slots=True)
class NamespaceLauncher:
    """The tool runs in its own PID namespace; the end of process 1 in there is the end of all.

    setpriv(1) comes first: from there on the death of the server (strictly, of the thread that runs the event
    loop) kills unshare(1), and ``--kill-child`` carries that on to process 1. That is timeout(1) and not the
    tool, because the kernel shields process 1 from every signal it has no handler for: a tool in its place
    would neither heed SIGTERM nor die of its own abort. It passes SIGTERM on, reports death by signal N as
    128 + N, and ends the tool should nobody else be left to do it.

    With ``user`` the namespace belongs to a user namespace, for a server that is not root.
    """

    setpriv: str
    prlimit: str
    unshare: str
    timeout: str
    user: bool = False

    @property
    def tier(self) -> Tier:
        """PID_NAMESPACE, or USER_NAMESPACE where ``user`` is set."""
        return Tier.USER_NAMESPACE if self.user else Tier.PID_NAMESPACE

    @property
    def refusal(self) -> bytes:
        """The complaint of timeout(1)."""
        return f"{self.timeout}: failed to run command ".encode()

    @property
    def farewell(self) -> bytes:
        """A slip of unshare(1) 2.38, which tries to reset the handler of SIGKILL."""
        return b"unshare: sigprocmask unblock failed: Invalid argument\n"

    def wrap(self, argv: tuple[str, ...], limits: Bounds, folder: str) -> tuple[str, ...]:
        """Prefix ``argv`` with setpriv, prlimit, unshare and timeout."""
        user = ("--map-current-user",) if self.user else ()
        bounds = (f"--{name}={value}" for name, value in limits.rlimits.items())
        # all but unshare stop reading options at the first word of another kind
        return (
            *(self.setpriv, "--pdeathsig", "KILL"),
            *(self.prlimit, *bounds),
            *(self.unshare, *user, "--pid", "--fork", "--kill-child", f"--wd={_while_alive(folder)}", "--"),
            *(self.timeout, "--foreground", "--signal=KILL", str(limits.seconds)),
            *argv,
        )

    def ask(self, pid: int) -> bool:
        """Send SIGTERM to process 1, which passes it on once it is ready to."""
        init = _only_child(pid)
        if init is None or not _catches(init, signal.SIGTERM):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(init, signal.SIGTERM)
        return True

    def kill(self, pid: int) -> None:
        """Kill process 1: unshare sees it end only after the kernel has reaped the whole namespace."""
        init = _only_child(pid)
        with contextlib.suppress(ProcessLookupError):
            if init is None:  # unshare has not forked yet; one signal to the group leaves no gap to fork in
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(init, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class SupervisorLauncher:
    """The tool is the child of `supervisor.py`, a Python process per run."""

    tier: Tier = Tier.SUPERVISOR
    refusal: bytes = b"supervisor: failed to execute "
    farewell: bytes = b""

    def wrap(self, argv: tuple[str, ...], limits: Bounds, folder: str) -> tuple[str, ...]:  # noqa: ARG002 - a child inherits its folder
        """Prefix ``argv`` with this interpreter, without site and user packages, and the script."""
        script = str(Path(__file__).with_name("supervisor.py"))
        bounds = (f"{name}={value}" for name, value in limits.rlimits.items())
        return (sys.executable, "-I", "-S", script, str(os.getpid()), *bounds, "--", *argv)

    def ask(self, pid: int) -> bool:
        """Send SIGTERM to the supervisor, which passes it on."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        return True

    def kill(self, pid: int) -> None:
        """Send SIGHUP: the supervisor kills and reaps everything, then ends."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGHUP)


@functools.cache
def default_launcher() -> Launcher:
    """The strongest launcher that works here, found by trying each once (about 5 ms)."""
    if sys.platform != "linux":
        return SupervisorLauncher(tier=Tier.SESSION)
    found = [shutil.which(name, path=SYSTEM_PATH) for name in ("setpriv", "prlimit", "unshare", "timeout")]
    paths = [path for path in found if path is not None]
    if len(paths) == len(found):
        setpriv, prlimit, unshare, timeout = paths
        plain = NamespaceLauncher(setpriv, prlimit, unshare, timeout)
        if _works(plain):
            return plain
        user = dataclasses.replace(plain, user=True)
        # In a user namespace CAP_NET_RAW no longer counts for the network outside: SYN scans would fail.
        if not _has_net_raw() and _works(user):
            return user
    return SupervisorLauncher()


def launcher_for(path: str) -> Launcher:
    """The launcher for one program: `default_launcher`, unless its user namespace would take away its privilege.

    fping and ping, for instance, carry CAP_NET_RAW as a file capability on Debian.
    """
    launcher = default_launcher()
    if launcher.tier is Tier.USER_NAMESPACE and _gains_privilege(path):
        return SupervisorLauncher()
    return launcher


def containment() -> Containment:
    """What ends a run's process tree on this machine."""
    return _CONTAINMENT[default_launcher().tier]


def _works(launcher: Launcher) -> bool:
    """Whether ``true`` runs under the launcher: kernels, containers and AppArmor refuse in different places."""
    true = shutil.which("true", path=SYSTEM_PATH)
    if true is None:
        return False
    try:
        done = subprocess.run(
            launcher.wrap((true,), Bounds({"core": 0}, seconds=5), "/"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": SYSTEM_PATH, "LC_ALL": "C"},
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _while_alive(folder: str) -> str:
    """A path to an absolute folder that leads nowhere once this thread is dying.

    A death signal asked for after its sender's death never comes. unshare(1) changes folder in the forked child,
    when both signals have been asked for, and gives up where it cannot; so a server killed earlier starts no tool.
    What is inside "net" cannot be found as soon as the thread exits, also while it is a zombie, and unlike "cwd" or
    "fd" it needs no permission to trace the server, which a user namespace takes away.
    """
    return f"/proc/{os.getpid()}/task/{threading.get_native_id()}/net/stat/../../../../../..{folder}"


def _status_mask(pid: int | str, field: str) -> int:
    """A hexadecimal mask of /proc/PID/status; 0 where the process or the field is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith(f"{field}:")), 0)


def _has_net_raw() -> bool:
    return bool(_status_mask("self", "CapEff") >> _CAP_NET_RAW & 1)


def _catches(pid: int, number: signal.Signals) -> bool:
    return bool(_status_mask(pid, "SigCgt") >> (number - 1) & 1)


def _only_child(pid: int) -> int | None:
    """The child of a single-threaded process that has at most one, or None."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return None
    return int(children[0]) if children else None


def _gains_privilege(path: str) -> bool:
    """Whether executing the file changes user or capabilities (set-uid, set-gid, file capabilities)."""
    try:
        if os.stat(path).st_mode & 0o6000:  # noqa: PTH116 - beside os.getxattr, which pathlib lacks
            return True
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False
