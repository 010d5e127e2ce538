"""The guard helper of the rootless tier: a user namespace, its network namespace, and pasta to carry the traffic.

The guard helper enters both namespaces itself and holds their capabilities, which count for nothing outside. The device is
a tap that is made, ruled and proved first; only then is pasta, which was left outside, told to attach to it. What that
does with a frame is a socket of the user's own: connections are faithful, and what is below them is not.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.netguard import Enforcement
from mcp_server.netguard.canary import prove
from mcp_server.netguard.children import close_all_but, end, fork, silence
from mcp_server.netguard.filter import confine
from mcp_server.netguard.helper import GuardHelper
from mcp_server.netguard.net import DEVICE, ip
from mcp_server.netguard.nft import Nft
from mcp_server.netguard.rules import Link, ruleset
from mcp_server.sandbox import syscalls

if TYPE_CHECKING:
    from mcp_server.config import Config

_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_TUN: Final = Path("/dev/net/tun")
_INSTALL: Final = "sudo apt-get install -y passt"
_MAC: Final = "02:4d:43:50:00:02"
_ATTACH_SEC: Final = 10.0
_CAP_NET_ADMIN: Final = 12
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 1 << 18
_TUNSETIFF, _TUNSETPERSIST, _SIOCGIFFLAGS = 0x400454CA, 0x400454CB, 0x8913
_IFF_TAP_NO_PI, _IFF_RUNNING = 0x1002, 0x40

# Whoever answers there would start a program for this user outside of the guard.
_SERVICES: Final = (
    "/run/user",
    "/run/dbus",
    "/run/systemd/private",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/podman",
    "/run/containerd",
    "/run/docker.sock",
    "/run/snapd.socket",
    "/run/nscd",
    "/run/screen",
    "/run/tmux",
)


def _find_pasta() -> str:
    program = shutil.which("pasta", path=_PATH)
    if program is None:
        raise _unavailable("the program pasta is not installed", _INSTALL)
    return program


def _pasta_argv(pid: int, network: IPv4Network, uplink: str) -> list[str]:
    """Attach to the network namespace of a process; nothing of the host's own loopback is reached through it."""
    gateway, own = list(network.hosts())[:2]
    words = ["--foreground", "--quiet", "--ipv4-only", "--no-map-gw", "--no-dhcp", "--no-ra"]
    for option in ("-t", "-u", "-T", "-U"):  # no port leads in, and none to the host's loopback
        words += [option, "none"]
    words += ["-a", str(own), "-n", str(network.prefixlen), "-g", str(gateway), "-m", "1500", "-I", DEVICE]
    if uplink:
        words += ["-i", uplink]
    return [_find_pasta(), *words, str(pid)]


def rootless_available() -> str | None:
    """Why this process cannot set the rootless tier up, with the remedy; None where it can. About 15 ms."""
    if os.geteuid() == 0:
        return "it is for users other than root, who has the kernel tier"
    try:
        _find_pasta()
        _check_tun()
        _try_namespaces()
    except NetworkToolsError as error:
        return f"{error.message} ({error.hint})"
    return None


def enter_rootless(
    config: Config,
    command: Sequence[str],
    *,
    reload: Callable[[], Config],
    bind: Callable[[], socket.socket] | None = None,
) -> int:
    """Set the guard up around ``command`` and stay until it ends; its exit code. Errors as `GuardHelper.run`'s."""
    return RootlessGuardHelper(config, command, reload=reload, bind=bind).run()


class RootlessGuardHelper(GuardHelper):
    """The guard helper of the rootless tier. It has one thread, as entering a user namespace asks."""

    enforcement: ClassVar[Enforcement] = Enforcement.ROOTLESS

    _network: IPv4Network
    _outside: _Outside | None = None

    def prepare(self) -> None:
        """Check the host and read the policy; a PlatformError says what is missing."""
        if reason := rootless_available():
            raise _unavailable(f"the rootless tier cannot be set up: {reason}", "See docs/guard.md.")
        self.policy = self.config.scope_policy()
        self._network = IPv4Network(self.config.guard.link_network)
        gateway, own = list(self._network.hosts())[:2]
        self.link = Link(DEVICE, (own,), (gateway,), mac=_MAC)
        if self.bind is not None:
            self.listener = self.bind()

    def build(self) -> None:
        """Leave pasta outside, go in, and let it attach when the ruleset is proved."""
        self._outside = _Outside(_pasta_argv(self.pid, self._network, self.config.guard.uplink))
        _enter()
        _hide_services()
        # Also over exec: the program ip is one of this process's children.
        syscalls.keep_capabilities(1 << _CAP_NET_ADMIN | 1 << syscalls.CAP_NET_RAW | 1 << syscalls.CAP_SETPCAP)
        self._make_device()
        self.nft = Nft()
        self.nft.run(ruleset(self.policy.guard_sets(), self.link))
        prove(self.link, self.nft)
        self.note_counters()
        self._outside.attach()

    def _make_device(self) -> None:
        for folder in ("default", "all"):
            with suppress(FileNotFoundError):  # a kernel without IPv6
                Path(f"/proc/sys/net/ipv6/conf/{folder}/disable_ipv6").write_text("1")
        tun = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TAP_NO_PI))
            fcntl.ioctl(tun, _TUNSETPERSIST, 1)
        except OSError as error:
            raise _unavailable(f"a tap device cannot be made: {error.strerror}", "modprobe tun") from error
        finally:
            os.close(tun)
        ip(
            "link set lo up",
            f"link set dev {DEVICE} address {_MAC} mtu 1500",
            f"link set dev {DEVICE} up",
            f"addr add {self.link.own[0]}/{self._network.prefixlen} dev {DEVICE}",
            f"route add default via {self.link.gateways[0]} dev {DEVICE}",
        )

    def go_inside(self) -> dict[str, str]:
        """Give up everything but CAP_NET_RAW, and of that what the ruleset cannot see."""
        syscalls.bound_bounding_set(1 << syscalls.CAP_NET_RAW)
        syscalls.keep_capabilities(1 << syscalls.CAP_NET_RAW)
        syscalls.no_new_privileges()
        syscalls.die_with_parent(signal.SIGKILL)
        if os.getppid() != self.pid:
            os._exit(128 + signal.SIGKILL)
        confine()
        return dict(os.environ)

    def swap(self) -> None:
        """Refuse: whoever takes the server over could write the policy file and ask for this."""
        raise PlatformError(
            "the policy is not changed while the server runs in the rootless tier: the file belongs to the user the "
            "server runs as",
            hint="Restart the server to change the policy.",
        )

    def watched(self) -> dict[int, Callable[[], None]]:
        """Pasta: without it there is no network, and a scan would call everything filtered."""
        return {} if self._outside is None else {self._outside.handle: self._lost}

    def _lost(self) -> None:
        why = self._outside.why() if self._outside is not None else ""
        raise _unavailable(f"pasta, which carries the guarded traffic, has ended: {why}")

    def take_down(self) -> None:
        """End pasta; the namespaces end with the last process in them."""
        if self._outside is not None:
            self._outside.end()


class _Outside:
    """The process left outside of the namespaces, which becomes pasta when it is told to."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._errors = os.memfd_create("pasta", 0)
        reading, self._go = os.pipe2(os.O_CLOEXEC)
        helper = os.getpid()

        def run() -> None:
            syscalls.die_with_parent(signal.SIGKILL)
            silence()
            os.dup2(self._errors, 2)
            close_all_but(reading)
            if os.getppid() != helper or not os.read(reading, 1):
                os._exit(0)
            os.chdir("/")
            os.execve(argv[0], list(argv), {"PATH": _PATH, "LC_ALL": "C"})  # noqa: S606 - argv, no shell

        self._pid = fork(run)
        self.handle = os.pidfd_open(self._pid)
        os.close(reading)

    def attach(self) -> None:
        """Let pasta attach, and wait until it has. PlatformError ``guard_unavailable`` in its own words."""
        os.write(self._go, b"!")
        deadline = time.monotonic() + _ATTACH_SEC
        while not _running():
            if time.monotonic() > deadline or os.waitid(os.P_PIDFD, self.handle, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise _unavailable(f"pasta did not attach to the guarded network: {self.why()}")
            time.sleep(0.005)

    def why(self) -> str:
        """What it said on standard error."""
        said = os.pread(self._errors, 4096, 0).decode(errors="replace")
        # pasta repeats to standard error that it has no syslog.
        lines = [line for line in said.splitlines() if line and not line.startswith("Failed to send")]
        return "; ".join(lines)[-500:] or "it said nothing"

    def end(self) -> None:
        """Kill it and wait for its end."""
        end(self._pid)
        for descriptor in (self.handle, self._go, self._errors):
            os.close(descriptor)


def _check_tun() -> None:
    try:
        os.close(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise _unavailable(f"there is no {_TUN}", "sudo modprobe tun") from None
    except OSError as error:
        raise _unavailable(f"{_TUN} cannot be opened: {error.strerror}", f"sudo chmod 0666 {_TUN}") from error


def _try_namespaces() -> None:
    """Do in a forked process what the guard will need: some systems allow the namespaces and then nothing in them."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        problem = {"message": "the namespaces cannot be tried", "hint": ""}
        try:
            _enter()
            nft = Nft()
            nft.run("table netdev t {\n chain c {\n  type filter hook egress device lo priority 0;\n }\n}\n")
            problem = {}
        except NetworkToolsError as error:
            problem = {"message": error.message, "hint": error.hint}
        finally:
            os.write(writing, json.dumps(problem).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = json.loads(pipe.read() or b"{}")
    os.waitpid(child, 0)
    if said:
        raise _unavailable(said["message"], said["hint"])


def _enter() -> None:
    """Enter a user namespace with this user and group as themselves, and network and mount namespaces that are its."""
    user, group = os.geteuid(), os.getegid()
    try:
        syscalls.call("unshare", syscalls.CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWNS)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    except OSError as error:
        raise _unavailable(
            f"this system does not let its users make namespaces: {error.strerror}",
            "sudo sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=15000, and where AppArmor "
            "restricts them kernel.apparmor_restrict_unprivileged_userns=0",
        ) from error


def _hide_services() -> None:
    """Put empty folders over the sockets of services that act for this user outside of the guard."""
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes | None) -> None:
        if libc.mount(source, target, kind, ctypes.c_ulong(flags), data):
            raise _unavailable(f"{target.decode()} cannot be hidden: {os.strerror(ctypes.get_errno())}")

    mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    for path in _SERVICES:
        if Path(path).is_dir():
            mount(b"tmpfs", path.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, b"size=4k,mode=555")
        elif os.access(path, os.F_OK):
            mount(b"/dev/null", path.encode(), None, 4096, None)  # MS_BIND


def _running() -> bool:
    """Whether somebody holds the other end of the tap."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        answer = fcntl.ioctl(asking, _SIOCGIFFLAGS, struct.pack("16sH22x", DEVICE.encode(), 0))
    return bool(struct.unpack_from("=H", answer, 16)[0] & _IFF_RUNNING)


def _unavailable(message: str, hint: str | None = None) -> PlatformError:
    return PlatformError(message, code="guard_unavailable", hint=hint)
