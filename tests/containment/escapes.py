"""The ways of each tool to send outside the scope: the command, what it sends, and the rule that must drop it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.containment.sender import KINDS

SENDER: Final = str(Path(__file__).with_name("sender.py"))
"""The program that sends crafted frames."""

_NMAP: Final = "nmap --privileged -n -T4 --max-retries 0 --host-timeout 3s"
_SHORT: Final = {
    "NMAP": _NMAP.split(),
    "SYN": f"{_NMAP} -Pn -sS -p 80".split(),
    "MASSCAN": ["masscan", "--rate", "200", "--wait", "0", "--interface", "DEVICE"],
    "SENDER": ["python3.11", "-I", "-S", SENDER],
}


def words(command: str, device: str) -> list[str]:
    """The argv of a command. Its first word can be an abbreviation, and ``DEVICE`` is replaced by the device."""
    first, *rest = shlex.split(command)
    return [word.replace("DEVICE", device) for word in (*_SHORT.get(first, [first]), *rest)]


@dataclass(frozen=True, slots=True)
class Escape:
    """A command, the fault of its frames on an unguarded wire, and the rule that drops them.

    ``fault`` is empty if its frames cannot be distinguished from a scan in scope, or if the tool itself refuses (nmap
    finds no route for a source address that the host does not have). ``rule`` is empty if several rules drop them, or
    if the kernel does before.
    """

    name: str
    command: str
    fault: str
    rule: str

    def words(self, device: str) -> list[str]:
        """The argv for a device."""
        return words(self.command, device)


ESCAPES: Final = (
    Escape(
        "nmap decoys", "SYN -D 10.77.2.20,ME 10.77.1.10", "from 10.77.2.20 (not our address) to 10.77.1.10", "source4"
    ),
    Escape("nmap random decoys", "SYN -D RND:5,ME 10.77.1.10", "", "source4"),
    Escape(
        "nmap decoy of an excluded host",
        "SYN -D 10.77.1.12,ME 10.77.1.11",
        "from 10.77.1.12 (not our address) to 10.77.1.11",
        "source4",
    ),
    Escape("nmap spoofed source", "SYN -S 10.77.2.21 -e DEVICE 10.77.1.11", "", ""),
    Escape("nmap spoofed MAC", "SYN --spoof-mac 02:77:01:00:00:0c 10.77.1.10", "", "source_mac"),
    Escape("nmap loose source route", "SYN --ip-options 'L 10.77.2.10' 10.77.1.10", "lsrr to 10.77.2.10", "header4"),
    Escape("nmap strict source route", "SYN --ip-options 'S 10.77.2.10' 10.77.1.10", "ssrr to 10.77.2.10", "header4"),
    Escape("nmap record route", "SYN --ip-options R 10.77.1.10", "", "header4"),
    Escape("nmap by Ethernet to a routed host", "SYN --send-eth 10.77.2.27", "tcp to 10.77.2.27 port 80", "target4"),
    Escape(
        "nmap by Ethernet to an excluded host", "NMAP -sn --send-eth 10.77.1.12", "arp for 10.77.1.12", "arp_target"
    ),
    Escape("nmap neighbor sweep", "NMAP -sn -PR 10.77.1.200-210", "arp for 10.77.1.205", "arp_target"),
    Escape("nmap by raw IP", "SYN --send-ip 10.77.2.22", "tcp to 10.77.2.22 port 80", "target4"),
    Escape("nmap by connect", "nmap -n --unprivileged -Pn -p 80 10.77.2.23", "tcp to 10.77.2.23 port 80", "target4"),
    Escape("nmap other protocols", "NMAP -Pn -sO -p 4,41,47 10.77.1.10", "protocol 47 to 10.77.1.10", "protocol4"),
    Escape("nmap SCTP", "NMAP -Pn -sY -p 80 10.77.1.10", "protocol 132 to 10.77.1.10", "protocol4"),
    Escape(
        "nmap other protocols over IPv6",
        "NMAP -6 -Pn -sO -p 41,47,132 fd77:1::a",
        "protocol 132 to fd77:1::a",
        "extension6",
    ),
    Escape("nmap idle scan", "NMAP -Pn -sI 10.77.2.24:80 -p 80 10.77.1.10", "tcp to 10.77.2.24 port 80", "target4"),
    Escape("nmap FTP bounce", "nmap -n -Pn -b 10.77.2.26 -p 80 10.77.1.10", "tcp to 10.77.2.26 port 21", "target4"),
    Escape(
        "nmap proxy",
        "nmap -n -sT -Pn -sV -p 80 --proxies http://10.77.2.10:3128 10.77.1.10",
        "tcp to 10.77.2.10 port 3128",
        "target4",
    ),
    Escape(
        "nmap name server", "nmap -R -sL --dns-servers 10.77.2.10 10.77.1.10", "udp to 10.77.2.10 port 53", "target4"
    ),
    Escape("nmap random targets", "SYN -iR 20 --max-rtt-timeout 100ms", "", "target4"),
    Escape("nmap route", "nmap --route-dst 10.77.2.10 -sn 10.77.1.10", "", ""),
    Escape("nmap traceroute", "NMAP -sn -PE --traceroute 10.77.2.25", "icmp to 10.77.2.25 port 0", "target4"),
    Escape("nmap fragments", "SYN -f 10.77.2.28", "tcp to 10.77.2.28 port", "target4"),
    Escape("nmap bad checksums", "SYN --badsum 10.77.2.29", "tcp to 10.77.2.29 port 80", "target4"),
    Escape("nmap UDP", "NMAP -Pn -sU -p 161 10.77.2.30", "udp to 10.77.2.30 port 161", "target4"),
    Escape("nmap pings", "NMAP -sn -PE -PP -PM -PO2 10.77.2.31", "protocol 2 to 10.77.2.31 port 0", "target4"),
    Escape("nmap IPv6 routed", "SYN -6 fd77:2::a", "tcp to fd77:2::a port 80", "target6"),
    Escape("nmap IPv6 neighbor", "NMAP -6 -sn fd77:1::c", "nd for fd77:1::c", "nd_target"),
    Escape(
        "nmap new targets by multicast",
        "NMAP -6 -sn --script targets-ipv6-multicast-echo --script-args newtargets,interface=DEVICE",
        "to ff02::1",
        "",
    ),
    Escape(
        "nmap DHCP discover",
        "NMAP --script broadcast-dhcp-discover -e DEVICE",
        "from 0.0.0.0 (not our address) to 255.255.255.255",
        "source4",
    ),
    Escape("nmap multicast DNS", "NMAP --script broadcast-dns-service-discovery", "udp to 224.0.0.251 port 5353", ""),
    Escape("nmap by the second uplink", "SYN -e eth9 172.20.0.1", "192.168.77.2 (not our address)", ""),
    Escape("nmap to the gateway", "SYN 10.77.1.1", "tcp to 10.77.1.1 port 80", "target4"),
    Escape("nmap to the resolver", "SYN 10.77.1.2", "tcp to 10.77.1.2 port 80", "resolver_port"),
    Escape(
        "masscan", "MASSCAN 10.77.2.0/28 -p80 --router-mac 02-77-01-00-00-01", "tcp to 10.77.2.5 port 80", "target4"
    ),
    Escape(
        "masscan excluded host",
        "MASSCAN 10.77.1.12 -p6379 --router-mac 02-77-01-00-00-0c",
        "tcp to 10.77.1.12 port 6379",
        "excluded4",
    ),
    Escape(
        "masscan spoofed source",
        "MASSCAN 10.77.1.10 -p80-90 --adapter-ip 10.77.2.99 --router-mac 02-77-01-00-00-01",
        "from 10.77.2.99 (not our address) to 10.77.1.10",
        "source4",
    ),
    Escape(
        "masscan spoofed MAC",
        "MASSCAN 10.77.1.10 -p80-90 --adapter-mac 02-77-01-00-00-0c --router-mac 02-77-01-00-00-0a",
        "",
        "source_mac",
    ),
    Escape("fping routed", "fping -c1 -t200 10.77.2.40 10.77.2.41", "icmp to 10.77.2.40 port 0", "target4"),
    Escape("fping range", "fping -c1 -t200 -g 10.77.1.210 10.77.1.214", "arp for 10.77.1.212", "arp_target"),
    Escape("fping IPv6", "fping -6 -c1 -t200 fd77:2::14", "icmp6 to fd77:2::14 port 0", "target6"),
    Escape("shell", "bash -c 'echo > /dev/tcp/10.77.2.42/80'", "tcp to 10.77.2.42 port 80", "target4"),
    *(
        Escape(f"sender {kind}", f"SENDER {kind} DEVICE", fault, rule)
        for kind, (fault, rule) in {
            "arp": ("arp for 10.77.1.200", "arp_target"),
            "arp-spoof": ("arp from 10.77.2.20 (not our address)", "arp_sender"),
            "nd": ("nd for fd77:2::a", "nd_target"),
            "routed": ("udp to 10.77.2.10 port 9", "target4"),
            "excluded": ("udp to 10.77.1.12 port 9", "excluded4"),
            "spoofed": ("from 10.77.2.20 (not our address)", "source4"),
            "source-route": ("lsrr to 10.77.1.10", "header4"),
            "routing-header": ("routing header to fd77:1::a", "extension6"),
            "tunnel": ("protocol 4 to 10.77.1.10", "protocol4"),
            "fragment": ("udp to 10.77.2.10 port 0", "target4"),
            "vlan": ("vlan tag", "ethertype"),
            "ethertype": ("ethertype 0x88cc", "ethertype"),
            "multicast": ("udp to 224.0.0.251 port 5353", ""),
            "resolver-port": ("udp to 10.77.1.2 port 80", "resolver_port"),
        }.items()
    ),
)

IN_SCOPE: Final = (
    "NMAP -sS -p 80,443,8443 10.77.1.10",
    "NMAP -6 -sS -p 80 fd77:1::a",
    "NMAP -sn -PE 10.77.1.11",
    "NMAP -sU -Pn -p 161 10.77.1.17",
    "MASSCAN 10.77.1.10 -p80,443 --router-mac 02-77-01-00-00-0a",
    "fping -c1 -t500 10.77.1.10",
)
"""Scans that must succeed while the escapes run."""

assert {escape.name.removeprefix("sender ") for escape in ESCAPES if escape.name.startswith("sender ")} == set(KINDS)
