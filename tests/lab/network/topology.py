"""Links, addresses, routes and firewalls: build a network that behaves as `truth` says."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.lab.network.daemons import Daemon
from tests.lab.network.fleet import FleetHost
from tests.lab.network.namespaces import ip_batch, load_rules, set_kernel
from tests.lab.network.programs import LabError, find
from tests.lab.network.truth import Behavior, LabHost, Truth

ROUTER = "r1"
SCANNER = LabHost("scan", 1, 250)
SLOW_DELAY_S, SLOW_LOSS = 0.15, 0.05


def lay_links(truth: Truth) -> None:
    """Create and join all namespaces; the slow host gets its link later, from `slow_link`."""
    machines = [SCANNER, *(host for host in truth.hosts.values() if host.name != ROUTER)]
    ip_batch(f"netns add {name}" for name in (ROUTER, "r2", "fleet", *(machine.name for machine in machines)))
    _lay_routers()
    joined = [machine for machine in machines if machine.behavior is not Behavior.SLOW]
    ip_batch(
        (
            line
            for host in joined
            for line in (
                f"link add {host.name} type veth peer name eth0 address {host.mac} netns {host.name}",
                f"link set {host.name} master br{host.segment} up",
            )
        ),
        ROUTER,
    )
    for host in joined:
        _give_addresses(host)


def _lay_routers() -> None:
    ip_batch(
        [
            "link set lo up",
            *(
                line
                for segment in (1, 2)
                for line in (
                    f"link add br{segment} address 02:77:{segment:02x}:00:00:01 type bridge",
                    f"addr add 10.77.{segment}.1/24 dev br{segment}",
                    f"addr add fd77:{segment}::1/64 dev br{segment} nodad",
                    f"link set br{segment} up",
                )
            ),
            "link add up2 type veth peer name r1 netns r2",
            "addr add 10.77.255.1/30 dev up2",
            "link set up2 up",
            "route add 10.77.255.4/30 via 10.77.255.2",
            "route add 10.78.0.0/16 via 10.77.255.2",
        ],
        ROUTER,
    )
    ip_batch(
        [
            "link set lo up",
            "addr add 10.77.255.2/30 dev r1",
            "link set r1 up",
            "link add f0 type veth peer name eth0 netns fleet",
            "addr add 10.77.255.5/30 dev f0",
            "link set f0 up",
            "route add 10.77.0.0/16 via 10.77.255.1",
            "route add 10.78.0.0/16 via 10.77.255.6",
        ],
        "r2",
    )
    ip_batch(
        [
            "link set lo up",
            "addr add 10.77.255.6/30 dev eth0",
            "link set eth0 up",
            "route add default via 10.77.255.5",
            "route add local 10.78.0.0/16 dev lo",
        ],
        "fleet",
    )
    for router in (ROUTER, "r2"):
        # The kernel limits ICMP unreachables to one per second; modern routers do not.
        set_kernel(router, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.icmp_ratelimit=0")


def _give_addresses(host: LabHost) -> None:
    lines = [
        "link set lo up",
        "link set eth0 up",
        f"addr add {host.ipv6}/64 dev eth0 nodad",
        f"route add default via fd77:{host.segment}::1",
    ]
    if host.ipv4:
        lines += [f"addr add {host.ipv4}/24 dev eth0", f"route add default via 10.77.{host.segment}.1"]
    ip_batch(lines, host.name)


def slow_link(host: LabHost) -> Daemon:
    """The relay that joins a host to its segment with delay and loss.

    Kernels often lack sch_netem, so it is a program.
    """
    module = "tests.lab.network.peers.slow_link"
    settings = [
        find("ip"),
        ROUTER,
        f"t{host.name}",
        f"br{host.segment}",
        host.name,
        host.mac,
        str(SLOW_DELAY_S),
        str(SLOW_LOSS),
    ]
    return Daemon(f"link-{host.name}", ROUTER, [sys.executable, "-S", "-m", module, *settings])


def give_slow_addresses(host: LabHost) -> None:
    """Wait at most five seconds for the device of the relay, then give it addresses."""
    for _ in range(500):
        if not subprocess.run(
            [find("ip"), "-n", host.name, "link", "show", "eth0"], capture_output=True, check=False
        ).returncode:
            return _give_addresses(host)
        time.sleep(0.01)
    raise LabError(f"the slow link to {host.name} did not appear")


_DROP_BY_DEFAULT = """
table inet lab {
  chain input {
    type filter hook input priority 0; policy drop;
    iif lo accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
%s
  }
}
"""
_RULES = {
    Behavior.DROPS: _DROP_BY_DEFAULT % "    tcp dport %(open)s accept",
    Behavior.DARK: _DROP_BY_DEFAULT % "",
    Behavior.REJECTS: _DROP_BY_DEFAULT
    % """
    icmp type echo-request accept
    icmpv6 type echo-request accept
    tcp dport %(open)s accept
    ip protocol { tcp, udp } reject with icmp type admin-prohibited
    meta l4proto { tcp, udp } reject with icmpv6 type admin-prohibited""",
    Behavior.RATE_LIMITED: _DROP_BY_DEFAULT
    % """
    meta l4proto { icmp, ipv6-icmp } accept
    ct state established,related accept
    tcp flags & (syn | ack) == syn limit rate 10/second burst 5 packets accept""",
    Behavior.TARPIT: """
table inet lab {
  chain prerouting {
    type nat hook prerouting priority -100
    meta l4proto tcp redirect to :9999
  }
}
""",
}


def raise_firewalls(truth: Truth) -> None:
    """Load the ruleset of each unusual host."""
    for host in truth.hosts.values():
        if rules := _RULES.get(host.behavior):
            ports = "{ " + ", ".join(str(port) for port in host.open_ports("tcp")) + " }"
            load_rules(host.name, rules.replace("%(open)s", ports))


def populate_fleet(fleet: dict[str, FleetHost]) -> None:
    """Set up the namespace of the whole /16; sets say which address answers on which ports."""
    is_open = [f"{host.address} . {port}" for host in fleet.values() for port in host.tcp]
    rules = f"""
table inet lab {{
  set open {{ type ipv4_addr . inet_service; {_elements(is_open)} }}
  set ping {{ type ipv4_addr; {_elements([host.address for host in fleet.values() if host.answers_ping])} }}
  set resets {{ type ipv4_addr; {_elements([host.address for host in fleet.values() if host.resets])} }}
  chain input {{
    type filter hook input priority 0; policy drop;
    iif lo accept
    ip daddr . tcp dport @open accept
    icmp type echo-request ip daddr @ping accept
    ip daddr @resets meta l4proto tcp reject with tcp reset
    ip daddr @resets meta l4proto udp reject with icmp type port-unreachable
  }}
}}
"""
    load_rules("fleet", rules)
    set_kernel(
        "fleet",
        "net.core.somaxconn=65535",
        "net.ipv4.tcp_max_syn_backlog=65535",
        "net.ipv4.icmp_ratelimit=0",
        "net.ipv4.tcp_syncookies=1",
    )


def _elements(members: list[str]) -> str:
    return f"elements = {{ {', '.join(members)} }}" if members else ""
