"""The guarded network namespace: a device of its own, and the way from it to the network.

The namespace has no name and no file: it is held by descriptors, and gone with the processes that have them. Its one
device is made first, without a carrier; the ruleset is loaded and proved on it; only then is the way out opened.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_server.errors import ConfigError, PlatformError
from mcp_server.netguard.rules import Link

if TYPE_CHECKING:
    from mcp_server.config.sections import GuardConfig

DEVICE: Final = "scope0"
"""The namespace's one device besides loopback."""

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
"""Settings under which the kernel sends nothing of its own accord (networking/ip-sysctl in the kernel's documents)."""


class Namespace:
    """A network namespace, held by a descriptor."""

    def __init__(self) -> None:
        with _coming_back():
            _check(_libc.unshare(_CLONE_NEWNET), "a network namespace cannot be made")
            self.descriptor = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def path(self) -> str:
        """The path by which another program reaches it while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def enter(self) -> None:
        """Move the calling thread into it for good."""
        _check(_libc.setns(self.descriptor, _CLONE_NEWNET), "the network namespace cannot be entered")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread, and what it starts, is in the namespace for the length of a block."""
        with _coming_back():
            self.enter()
            yield

    def close(self) -> None:
        """Let go of it."""
        with suppress(OSError):
            os.close(self.descriptor)


@contextmanager
def _coming_back() -> Iterator[None]:
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _check(_libc.setns(before, _CLONE_NEWNET), "the host's network namespace cannot be entered again")
        os.close(before)


def _check(result: int, what: str) -> None:
    if result:
        raise PlatformError(
            f"{what}: {os.strerror(ctypes.get_errno())}",
            code="guard_unavailable",
            hint="The kernel tier needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN, as on a host or in a privileged "
            "container.",
        )


def ip(*lines: str) -> None:
    """Carry out commands of the program ip in the calling thread's namespace; PlatformError in its own words."""
    _ip("-batch", "-", text_in="".join(f"{line}\n" for line in lines))


def _ip(*words: str, text_in: str = "") -> str:
    program = shutil.which("ip", path=_PATH)
    if program is None:
        raise PlatformError(
            "the program ip is not installed", code="guard_unavailable", hint="sudo apt-get install -y iproute2"
        )
    done = subprocess.run(
        [program, *words], input=text_in, capture_output=True, text=True, check=False, env={"PATH": _PATH}, timeout=30
    )
    if done.returncode:
        raise PlatformError(
            f"ip refused {text_in.strip() or ' '.join(words)!r}: {done.stderr.strip()}", code="guard_unavailable"
        )
    return done.stdout


def look(*words: str) -> list[dict[str, Any]]:
    """What ``ip -json`` says to these words."""
    found: list[dict[str, Any]] = json.loads(_ip("-json", *words) or "[]")
    return found


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """How the namespace is joined to the network, before anything is made.

    ``own`` are addresses with prefix length; ``device`` is the host's end in nat mode; ``sysctls`` are files of the
    host that are set to 1, with their present text.
    """

    mode: str
    uplink: str
    own: tuple[str, ...]
    gateways: tuple[str, ...]
    mac: str
    mtu: int
    device: str = ""
    host_address: str = ""
    routes_already: bool = False
    sysctls: Mapping[str, str] = field(default_factory=dict)

    @property
    def link(self) -> Link:
        """The link as the ruleset is made for it."""
        own = tuple(ip_interface(text).ip for text in self.own)
        return Link(DEVICE, own, tuple(ip_address(text) for text in self.gateways), mac=self.mac)


def make_plan(settings: GuardConfig, helper: int) -> NetworkPlan:
    """Decide from the configuration and the host's own links; raises ConfigError for what does not fit together."""
    uplink = settings.uplink or _default_uplink()
    found = next((link for link in look("link", "show") if link["ifname"] == uplink), None)
    if found is None:
        raise ConfigError(f"guard.uplink: this host has no network device {uplink!r}", hint="'ip link' lists them.")
    mode = settings.mode if settings.mode != "auto" else "macvlan" if settings.addresses else "nat"
    mtu = int(found["mtu"])
    if mode == "macvlan":
        if not settings.addresses:
            raise ConfigError(
                "guard.mode macvlan needs guard.addresses",
                hint="Name a free address of the uplink's network with its prefix length, or use mode nat.",
            )
        if found.get("link_type") != "ether":
            raise ConfigError(f"guard.mode macvlan: {uplink} is no Ethernet device", hint="Use guard.mode nat.")
        _check_macvlan(settings)
        # The same after every start: neighbours and switches have learnt it.
        seed = hashlib.sha256(f"{found['address']} {sorted(settings.addresses)}".encode()).hexdigest()
        return NetworkPlan(mode, uplink, settings.addresses, settings.gateways, _mac(seed), mtu)
    network = IPv4Network(settings.link_network)
    host, inner = network.hosts()
    _check_free(network)
    device = f"mcps{helper}"
    # Forwarding is switched on for the two devices concerned and not for the whole host.
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
        routes_already=before.strip() == "1",
        sysctls={} if before.strip() == "1" else {str(switch): before},
    )


def _mac(seed: str) -> str:
    """A locally administered unicast address (IEEE 802, the second bit of the first octet)."""
    return ":".join(("02", seed[0:2], seed[2:4], seed[4:6], seed[6:8], seed[8:10]))


def _default_uplink() -> str:
    for line in Path("/proc/self/net/route").read_text().splitlines()[1:]:
        device, destination, _, flags, _, _, _, mask, *_ = line.split()
        if destination == mask == "00000000" and int(flags, 16) & 1:
            return device
    raise ConfigError("this host has no default route", hint="Name the device packets leave by in guard.uplink.")


def _check_macvlan(settings: GuardConfig) -> None:
    networks = [ip_interface(text).network for text in settings.addresses]
    for text in settings.gateways:
        gateway = ip_address(text)
        if not any(gateway in network for network in networks):
            raise ConfigError(
                f"guard.gateways: {gateway} is in no network of guard.addresses", hint="A gateway is on the same link."
            )
    versions = [ip_address(text).version for text in settings.gateways]
    if len(versions) != len(set(versions)):
        raise ConfigError("guard.gateways names two gateways of one IP version")


def _check_free(network: IPv4Network) -> None:
    for device in look("-4", "addr", "show"):
        for each in device["addr_info"]:
            if IPv4Address(each["local"]) in network:
                raise ConfigError(
                    f"guard.link_network {network} is in use: {device['ifname']} has {each['local']}, perhaps of "
                    "another guard",
                    hint="'mcp-network-tools guard status' lists guards; name another /30 for a second one.",
                )


def make_device(plan: NetworkPlan, namespace: Namespace) -> None:
    """Make the namespace's device, addressed and routed but without a carrier: nothing can leave yet."""
    versions = {ip_interface(text).version for text in plan.own}
    with namespace.inside():
        _set(_NET / "ipv4/conf/default", _QUIET4)
        _set(_NET / "ipv6/conf/default", {**_QUIET6, "disable_ipv6": str(int(6 not in versions))})
        ip("link set lo up")
    # Made where it is to be: it is never seen in the host's namespace.
    if plan.mode == "macvlan":
        ip(
            f"link add link {plan.uplink} name {DEVICE} netns {namespace.path} address {plan.mac} "
            "type macvlan mode bridge"
        )
        shut = [f"link set dev {DEVICE} protodown on"]
    else:
        ip(
            f"link add {plan.device} mtu {plan.mtu} type veth "
            f"peer name {DEVICE} mtu {plan.mtu} address {plan.mac} netns {namespace.path}"
        )
        shut = []  # its carrier is the host's end, which is down
    with namespace.inside():
        ip(
            *shut,
            f"link set dev {DEVICE} addrgenmode none",
            f"link set dev {DEVICE} up",
            *(f"addr add {text} dev {DEVICE}{' nodad' if ':' in text else ''}" for text in plan.own),
            *(f"route add default via {text} dev {DEVICE}" for text in plan.gateways),
        )


def open_way(plan: NetworkPlan, namespace: Namespace) -> None:
    """Give the device its carrier, and in nat mode the host's forwarding; after the ruleset was proved."""
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
    """Write kernel settings; a kernel without one of them does not do what it switches off."""
    for name, value in values.items():
        with suppress(FileNotFoundError):
            (folder / name).write_text(value)


def nat_rules(plan: NetworkPlan, table: str) -> str:
    """The host's rules in nat mode: what may pass between the namespace and the uplink, and behind which address.

    Where the host forwarded nothing before, it forwards nothing else now.
    """
    inner = ip_interface(plan.own[0]).ip
    closed = "" if plan.routes_already else f'iifname "{plan.uplink}" oifname != "{plan.device}" counter drop'
    return f"""table ip {table} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {inner} oifname "{plan.uplink}" counter masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{plan.device}" ip saddr != {inner} counter drop
    iifname "{plan.device}" oifname != "{plan.uplink}" counter reject with icmp type net-prohibited
    oifname "{plan.device}" ct state != {{ established, related }} counter drop
    {closed}
  }}
}}
"""


def user_rules(table: str, *, server: int | None, loopback: Iterable[int]) -> str:
    """The host's rules by user id: for the server where it has a listening socket, and for each loopback runner.

    A socket made here stays in this namespace whoever holds it. The server's may answer clients and never call out,
    which a listening socket can be made to do (``connect`` to AF_UNSPEC, then elsewhere). The runner's packets go to
    the host's own loopback and nowhere else.
    """
    rules = []
    if server is not None:
        rules.append(f"meta skuid {server} tcp flags & (syn | ack) == syn counter drop")
    for uid in loopback:
        rules += [
            f'meta skuid {uid} oifname "lo" ip daddr 127.0.0.0/8 counter accept',
            f'meta skuid {uid} oifname "lo" ip6 daddr ::1 counter accept',
            f"meta skuid {uid} counter drop",
        ]
    body = "\n    ".join(rules)
    return f"""table inet {table} {{
  chain output {{
    type filter hook output priority filter; policy accept;
    {body}
  }}
}}
"""
