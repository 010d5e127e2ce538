"""The guarded network namespace, its device, and the connection from there to the network.

The namespace has no name and no file. It exists as long as processes have descriptors of it. Its one device is made
first, without a carrier. The ruleset is loaded and tested on it, and only then is the device connected.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_server.errors import ConfigError, PlatformError
from mcp_server.netguard.ruleset import Link
from mcp_server.sandbox.binaries import install_hint

if TYPE_CHECKING:
    from mcp_server.config.sections import GuardConfig

DEVICE: Final = "scope0"
"""The namespace's only device besides loopback."""

_CLONE_NEWNET: Final = 0x40000000
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NET: Final = Path("/proc/sys/net")
_libc = ctypes.CDLL(None, use_errno=True)

_QUIET6: Final = {
    "accept_ra": "0",
    "accept_redirects": "0",
    "addr_gen_mode": "1",
    "autoconf": "0",
    "accept_dad": "0",
    "dad_transmits": "0",
    "router_solicitations": "0",
    "use_tempaddr": "0",
}
_QUIET4: Final = {"accept_redirects": "0", "send_redirects": "0", "arp_announce": "2", "arp_ignore": "1"}
"""With these settings, the kernel itself sends nothing (Documentation/networking/ip-sysctl.rst)."""


class Namespace:
    """A new network namespace. ``descriptor`` keeps it alive."""

    def __init__(self) -> None:
        with _returning():
            _check(_libc.unshare(_CLONE_NEWNET), "A network namespace cannot be created")
            self.descriptor = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def path(self) -> str:
        """A path of the namespace for other programs, valid while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def enter(self) -> None:
        """Move the calling thread into the namespace."""
        _check(_libc.setns(self.descriptor, _CLONE_NEWNET), "The network namespace cannot be entered")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Run a block in the namespace. This includes the programs that the block starts."""
        with _returning():
            self.enter()
            yield

    def close(self) -> None:
        """Close the descriptor."""
        with suppress(OSError):
            os.close(self.descriptor)


@contextmanager
def _returning() -> Iterator[None]:
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _check(_libc.setns(before, _CLONE_NEWNET), "The host's network namespace cannot be entered again")
        os.close(before)


def _check(result: int, what: str) -> None:
    if result:
        raise PlatformError(
            f"{what}: {os.strerror(ctypes.get_errno())}.",
            code="guard_unavailable",
            hint="Start the kernel tier as root with CAP_SYS_ADMIN and CAP_NET_ADMIN, on the host or in a privileged "
            "container.",
        )


def ip(*lines: str) -> None:
    """Run commands of the program ip in the calling thread's namespace. Raises PlatformError with its error."""
    _ip("-batch", "-", text_in="".join(f"{line}\n" for line in lines))


def _ip(*words: str, text_in: str = "") -> str:
    program = shutil.which("ip", path=_PATH)
    if program is None:
        raise PlatformError("The program ip is not installed.", code="guard_unavailable", hint=install_hint("ip"))
    done = subprocess.run(
        [program, *words], input=text_in, capture_output=True, text=True, check=False, env={"PATH": _PATH}, timeout=30
    )
    if done.returncode:
        raise PlatformError(
            f"The command 'ip' failed for {text_in.strip() or ' '.join(words)!r}: {done.stderr.strip()}.",
            code="guard_unavailable",
        )
    return done.stdout


def ip_json(*words: str) -> list[dict[str, Any]]:
    """Return the output of ``ip -json`` with these arguments."""
    found: list[dict[str, Any]] = json.loads(_ip("-json", *words) or "[]")
    return found


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """The connection of the namespace to the network, before it is made.

    ``own`` are the guard's addresses with prefix length. In nat mode, ``device`` is the host's end of the link,
    ``host_address`` is its address, ``sysctls`` are files on the host that will be set to 1 (with their present
    content), and ``forwards_already`` says whether the uplink forwarded packets before.
    """

    mode: str
    uplink: str
    own: tuple[str, ...]
    gateways: tuple[str, ...]
    mac: str
    mtu: int
    device: str = ""
    host_address: str = ""
    forwards_already: bool = False
    sysctls: Mapping[str, str] = field(default_factory=dict)

    @property
    def link(self) -> Link:
        """The link, for the ruleset."""
        own = tuple(ip_interface(text).ip for text in self.own)
        return Link(DEVICE, own, tuple(ip_address(text) for text in self.gateways), mac=self.mac)


def make_plan(settings: GuardConfig, helper: int) -> NetworkPlan:
    """Make the plan from the configuration and the host's devices. Raises ConfigError if they do not match.

    ``helper`` is the PID of the guard helper.
    """
    uplink = settings.uplink or _default_uplink()
    found = next((link for link in ip_json("link", "show") if link["ifname"] == uplink), None)
    if found is None:
        raise ConfigError(
            f"guard.uplink: this host has no network device {uplink!r}.", hint="Use a device that 'ip link' lists."
        )
    mode = settings.mode if settings.mode != "auto" else "macvlan" if settings.addresses else "nat"
    mtu = int(found["mtu"])
    if mode == "macvlan":
        if not settings.addresses:
            raise ConfigError(
                "guard.mode macvlan needs guard.addresses.",
                hint="Set a free address of the uplink's network with its prefix length, or use the mode nat.",
            )
        if found.get("link_type") != "ether":
            raise ConfigError(f"guard.mode macvlan: {uplink} is not an Ethernet device.", hint="Use guard.mode nat.")
        _check_macvlan(settings)
        # The MAC address is the same after every start, because neighbors and switches have learned it.
        seed = hashlib.sha256(f"{found['address']} {sorted(settings.addresses)}".encode()).hexdigest()
        return NetworkPlan(mode, uplink, settings.addresses, settings.gateways, _mac(seed), mtu)
    network = IPv4Network(settings.link_network)
    host, inner = network.hosts()
    _check_free(network)
    device = f"mcps{helper}"
    # Forwarding is enabled for two devices only, not for the whole host.
    switch = _NET / "ipv4/conf" / uplink / "forwarding"
    before = switch.read_text()
    return NetworkPlan(
        mode,
        uplink,
        (f"{inner}/{network.prefixlen}",),
        (str(host),),
        _mac(hashlib.sha256(f"{helper} {network}".encode()).hexdigest()),
        mtu,
        device,
        f"{host}/{network.prefixlen}",
        forwards_already=before.strip() == "1",
        sysctls={} if before.strip() == "1" else {str(switch): before},
    )


def _mac(seed: str) -> str:
    """Return a locally administered unicast address (IEEE 802: the second bit of the first octet is set)."""
    return ":".join(("02", seed[0:2], seed[2:4], seed[4:6], seed[6:8], seed[8:10]))


def _default_uplink() -> str:
    for line in Path("/proc/self/net/route").read_text().splitlines()[1:]:
        device, destination, _, flags, _, _, _, mask, *_ = line.split()
        if destination == mask == "00000000" and int(flags, 16) & 1:
            return device
    raise ConfigError("This host has no default route.", hint="Set guard.uplink to the device that packets leave by.")


def _check_macvlan(settings: GuardConfig) -> None:
    networks = [ip_interface(text).network for text in settings.addresses]
    for text in settings.gateways:
        gateway = ip_address(text)
        if not any(gateway in network for network in networks):
            raise ConfigError(
                f"guard.gateways: {gateway} is not in a network of guard.addresses.",
                hint="Use a gateway on the same link.",
            )
    versions = [ip_address(text).version for text in settings.gateways]
    if len(versions) != len(set(versions)):
        raise ConfigError("guard.gateways has two gateways of one IP version.")


def _check_free(network: IPv4Network) -> None:
    for device in ip_json("-4", "addr", "show"):
        for each in device["addr_info"]:
            if IPv4Address(each["local"]) in network:
                raise ConfigError(
                    f"guard.link_network {network} is in use: {device['ifname']} has the address {each['local']}.",
                    hint="Set another /30. If another guard uses it, 'mcp-network-tools guard status' lists that.",
                )


def make_device(plan: NetworkPlan, namespace: Namespace) -> None:
    """Make the namespace's device with addresses and routes. It has no carrier, so nothing can leave yet."""
    versions = {ip_interface(text).version for text in plan.own}
    with namespace.inside():
        _set(_NET / "ipv4/conf/default", _QUIET4)
        _set(_NET / "ipv6/conf/default", {**_QUIET6, "disable_ipv6": str(int(6 not in versions))})
        ip("link set lo up")
    # The device is created inside the namespace, so it never appears in the host's namespace.
    if plan.mode == "macvlan":
        ip(
            f"link add link {plan.uplink} name {DEVICE} netns {namespace.path} address {plan.mac} "
            "type macvlan mode bridge"
        )
        without_carrier = [f"link set dev {DEVICE} protodown on"]
    else:
        ip(
            f"link add {plan.device} mtu {plan.mtu} type veth "
            f"peer name {DEVICE} mtu {plan.mtu} address {plan.mac} netns {namespace.path}"
        )
        without_carrier = []  # the host's end is down
    with namespace.inside():
        ip(
            *without_carrier,
            f"link set dev {DEVICE} addrgenmode none",
            f"link set dev {DEVICE} up",
            *(f"addr add {text} dev {DEVICE}{' nodad' if ':' in text else ''}" for text in plan.own),
            *(f"route add default via {text} dev {DEVICE}" for text in plan.gateways),
        )


def connect_device(plan: NetworkPlan, namespace: Namespace) -> None:
    """Give the device its carrier and, in nat mode, enable forwarding. Call this after the self-test of the ruleset."""
    if plan.mode == "macvlan":
        with namespace.inside():
            ip(f"link set dev {DEVICE} protodown off")
        return
    _set(_NET / "ipv6/conf" / plan.device, {"disable_ipv6": "1"})
    _set(_NET / "ipv4/conf" / plan.device, {"forwarding": "1", **_QUIET4})
    for name in plan.sysctls:
        Path(name).write_text("1")
    ip(f"addr add {plan.host_address} dev {plan.device}", f"link set dev {plan.device} up")


def _set(folder: Path, values: Mapping[str, str]) -> None:
    """Write kernel settings. A setting that does not exist is skipped: this kernel does not have its feature."""
    for name, value in values.items():
        with suppress(FileNotFoundError):
            (folder / name).write_text(value)
