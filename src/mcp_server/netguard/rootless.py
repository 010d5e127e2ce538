"""The guard helper of the rootless tier: a user namespace, its network namespace, and pasta for the traffic.

The guard helper itself enters both namespaces. Its capabilities there have no effect outside. The device is a tap. It
is created first, and the ruleset is loaded and tested on it. Only then does pasta, a process outside the namespaces,
attach to it. pasta translates frames to ordinary sockets of the user. So connections work as usual, but the lower
layers are not passed through unchanged.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path
from typing import ClassVar, Final

from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.netguard import Enforcement
from mcp_server.netguard.account import end_with_parent
from mcp_server.netguard.children import call_in_child, close_all_but, end, fork, silence
from mcp_server.netguard.helper import GuardHelper
from mcp_server.netguard.network import DEVICE, ip
from mcp_server.netguard.nft import Nft
from mcp_server.netguard.ruleset import Link, ruleset
from mcp_server.netguard.self_test import run_self_test
from mcp_server.netguard.syscall_filter import restrict_raw_sockets
from mcp_server.sandbox import syscalls

_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_TUN: Final = Path("/dev/net/tun")
_MAC: Final = "02:4d:43:50:00:02"
_ATTACH_SEC: Final = 10.0
_CAP_NET_ADMIN: Final = 12
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 1 << 18
_TUNSETIFF, _TUNSETPERSIST, _SIOCGIFFLAGS = 0x400454CA, 0x400454CB, 0x8913
_IFF_TAP_NO_PI, _IFF_RUNNING = 0x1002, 0x40

# Services at these paths could start a program for this user outside the guard.
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
        raise _unavailable(
            "The program pasta is not installed.",
            "Install passt, on Debian or Ubuntu with 'sudo apt-get install -y passt'.",
        )
    return program


def _pasta_argv(pid: int, network: IPv4Network, uplink: str) -> list[str]:
    """Return the command that attaches pasta to the network namespace of a process.

    The host's loopback cannot be reached through it.
    """
    gateway, own = list(network.hosts())[:2]
    words = ["--foreground", "--quiet", "--ipv4-only", "--no-map-gw", "--no-dhcp", "--no-ra"]
    for option in ("-t", "-u", "-T", "-U"):  # forward no ports, in either direction
        words += [option, "none"]
    words += ["-a", str(own), "-n", str(network.prefixlen), "-g", str(gateway), "-m", "1500", "-I", DEVICE]
    if uplink:
        words += ["-i", uplink]
    return [_find_pasta(), *words, str(pid)]


def rootless_unavailable() -> str:
    """Return why this process cannot set up the rootless tier, or an empty string if it can. This takes 15 ms."""
    if os.geteuid() == 0:
        return "It is only for users other than root. Root can use the kernel tier."
    try:
        _find_pasta()
        _check_tun()
        _try_namespaces()
    except NetworkToolsError as error:
        return f"{error.message} {error.hint}"
    return ""


class RootlessGuardHelper(GuardHelper):
    """The guard helper of the rootless tier. It has one thread, because unshare(2) with CLONE_NEWUSER needs that."""

    enforcement: ClassVar[Enforcement] = Enforcement.ROOTLESS

    _network: IPv4Network
    _pasta: _Pasta | None = None

    def prepare(self) -> None:
        """Check the host and read the policy. Raises PlatformError if something is missing."""
        if reason := rootless_unavailable():
            raise _unavailable(f"The rootless tier cannot be set up. {reason}", "Follow docs/guard.md.")
        self.policy = self.config.scope_policy()
        self._network = IPv4Network(self.config.guard.link_network)
        gateway, own = list(self._network.hosts())[:2]
        self.link = Link(DEVICE, (own,), (gateway,), mac=_MAC)
        if self.bind is not None:
            self.listener = self.bind()

    def build(self) -> None:
        """Fork the process for pasta, enter the namespaces, test the ruleset, and let pasta attach."""
        self._pasta = _Pasta(_pasta_argv(self.pid, self._network, self.config.guard.uplink))
        _enter_namespaces()
        _hide_services()
        # They are kept after execve(2) too, for the program ip.
        syscalls.keep_capabilities(1 << _CAP_NET_ADMIN | 1 << syscalls.CAP_NET_RAW | 1 << syscalls.CAP_SETPCAP)
        self._make_device()
        self.nft = Nft()
        self.nft.run(ruleset(self.policy.guard_sets(), self.link))
        run_self_test(self.link, self.nft)
        self.start_counting()
        self._pasta.attach()

    def _make_device(self) -> None:
        for folder in ("default", "all"):
            with suppress(FileNotFoundError):  # a kernel without IPv6
                Path(f"/proc/sys/net/ipv6/conf/{folder}/disable_ipv6").write_text("1")
        tun = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TAP_NO_PI))
            fcntl.ioctl(tun, _TUNSETPERSIST, 1)
        except OSError as error:
            raise _unavailable(
                f"A tap device cannot be created: {error.strerror}.", "Load the module with 'sudo modprobe tun'."
            ) from error
        finally:
            os.close(tun)
        ip(
            "link set lo up",
            f"link set dev {DEVICE} address {_MAC} mtu 1500",
            f"link set dev {DEVICE} up",
            f"addr add {self.link.own[0]}/{self._network.prefixlen} dev {DEVICE}",
            f"route add default via {self.link.gateways[0]} dev {DEVICE}",
        )

    def become_server(self) -> dict[str, str]:
        """Keep only CAP_NET_RAW, and give up the sockets that bypass the ruleset."""
        syscalls.bound_bounding_set(1 << syscalls.CAP_NET_RAW)
        syscalls.keep_capabilities(1 << syscalls.CAP_NET_RAW)
        syscalls.no_new_privileges()
        end_with_parent(self.pid)
        restrict_raw_sockets()
        return dict(os.environ)

    def reload_policy(self) -> None:
        """Raise PlatformError. A compromised server could write the policy file and then request a reload."""
        raise PlatformError(
            "In the rootless tier, a running server cannot get a new policy: its user can write the policy file.",
            hint="Restart the server to change the policy.",
        )

    def watched(self) -> dict[int, Callable[[], None]]:
        """Return the pidfd of pasta. Without pasta, a scan would report every port as filtered."""
        return {} if self._pasta is None else {self._pasta.pidfd: self._on_pasta_ended}

    def _on_pasta_ended(self) -> None:
        why = self._pasta.error_output() if self._pasta is not None else ""
        raise _unavailable(f"The program pasta, which carries the guarded traffic, has ended: {why}.")

    def take_down(self) -> None:
        """End pasta. The namespaces end with the last process in them."""
        if self._pasta is not None:
            self._pasta.end()


class _Pasta:
    """A process that is forked outside the namespaces, and that executes pasta later."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._errors = os.memfd_create("pasta", 0)
        reading, self._go = os.pipe2(os.O_CLOEXEC)
        helper = os.getpid()

        def run() -> None:
            end_with_parent(helper)
            silence()
            os.dup2(self._errors, 2)
            close_all_but(reading)
            if not os.read(reading, 1):
                os._exit(0)
            os.chdir("/")
            os.execve(argv[0], list(argv), {"PATH": _PATH, "LC_ALL": "C"})  # noqa: S606 - argv, no shell

        self._pid = fork(run)
        self.pidfd = os.pidfd_open(self._pid)
        os.close(reading)

    def attach(self) -> None:
        """Execute pasta and wait until it has attached. Raises PlatformError ``guard_unavailable`` with its error."""
        os.write(self._go, b"!")
        deadline = time.monotonic() + _ATTACH_SEC
        while not _is_attached():
            if time.monotonic() > deadline or os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise _unavailable(f"The program pasta did not attach to the guarded network: {self.error_output()}.")
            time.sleep(0.005)

    def error_output(self) -> str:
        """Return the text that pasta wrote to standard error."""
        output = os.pread(self._errors, 4096, 0).decode(errors="replace")
        # pasta also writes there that it cannot reach syslog.
        lines = [line for line in output.splitlines() if line and not line.startswith("Failed to send")]
        return "; ".join(lines)[-500:].rstrip(".") or "it printed no error"

    def end(self) -> None:
        """Kill pasta and wait for its end."""
        end(self._pid)
        for descriptor in (self.pidfd, self._go, self._errors):
            os.close(descriptor)


def _check_tun() -> None:
    try:
        os.close(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise _unavailable(f"{_TUN} does not exist.", "Load the module with 'sudo modprobe tun'.") from None
    except OSError as error:
        raise _unavailable(
            f"{_TUN} cannot be opened: {error.strerror}.", f"Allow it with 'sudo chmod 0666 {_TUN}'."
        ) from error


def _try_namespaces() -> None:
    """Make the namespaces and a ruleset in a forked process. Some systems allow namespaces, but no changes in them."""

    def attempt() -> dict[str, str]:
        try:
            _enter_namespaces()
            Nft().run("table netdev t {\n chain c {\n  type filter hook egress device lo priority 0;\n }\n}\n")
        except NetworkToolsError as error:
            return {"message": error.message, "hint": error.hint}
        return {}

    try:
        problem = call_in_child(attempt)
    except ChildProcessError:
        raise _unavailable("The namespaces cannot be tried.") from None
    if problem:
        raise _unavailable(problem["message"], problem["hint"])


def _enter_namespaces() -> None:
    """Enter a user namespace, and a network and a mount namespace that belong to it."""
    try:
        syscalls.enter_user_namespace(_CLONE_NEWNET | _CLONE_NEWNS)
    except OSError as error:
        raise _unavailable(
            f"This system does not allow its users to create namespaces: {error.strerror}.",
            "Allow it with 'sudo sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=15000'. If "
            "AppArmor restricts namespaces, also set kernel.apparmor_restrict_unprivileged_userns=0.",
        ) from error


def _hide_services() -> None:
    """Mount empty folders over the sockets of services that could act for this user outside the guard."""
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes | None) -> None:
        if libc.mount(source, target, kind, ctypes.c_ulong(flags), data):
            raise _unavailable(f"{target.decode()} cannot be hidden: {os.strerror(ctypes.get_errno())}.")

    mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    for path in _SERVICES:
        if Path(path).is_dir():
            mount(b"tmpfs", path.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, b"size=4k,mode=555")
        elif os.access(path, os.F_OK):
            mount(b"/dev/null", path.encode(), None, 4096, None)  # MS_BIND


def _is_attached() -> bool:
    """Return whether a process has attached to the tap."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        reply = fcntl.ioctl(query, _SIOCGIFFLAGS, struct.pack("16sH22x", DEVICE.encode(), 0))
    return bool(struct.unpack_from("=H", reply, 16)[0] & _IFF_RUNNING)


def _unavailable(message: str, hint: str | None = None) -> PlatformError:
    return PlatformError(message, code="guard_unavailable", hint=hint)
