"""nmap's flags that `extra_args` may hold, each with its value type, its bounds and the field of the scan that it sets.

Spelling and meaning are those of the manual of nmap 7.93. Never add a flag whose value is a path, host, URL, interface,
decoy or expression (``-oN -iL -D -S -sI -b -e -g --proxies --dns-servers --data`` and others). Never add ``--open``: it
makes nmap leave out hosts and ports that were tested and found closed.
"""

from __future__ import annotations

from typing import Final

from mcp_server.tools.flags import DurationValue, Flag, IntValue
from mcp_server.tools.nmap.ports import PortSet, PortsValue, TopPortsValue
from mcp_server.tools.nmap.scripts import CATEGORIES, ScriptsValue

FAST_PORTS: Final = PortSet(top=100)
_TEN_SECONDS: Final = 10_000

FLAGS: Final[tuple[Flag, ...]] = (
    Flag("-sn", "Find hosts only, as mode discover.", field="mode", const="discover"),
    Flag("-sT", "Scan TCP by full connections.", field="tcp", const="connect"),
    Flag("-sS", "Scan TCP by half-open probes; needs raw sockets.", field="tcp", const="syn"),
    Flag("-sU", "Scan UDP too; without -sT and -sS only UDP. Needs raw sockets.", field="udp"),
    Flag("-sV", "Identify services and versions.", field="services"),
    Flag("-sC", "Run the default scripts.", field="scripts", const=tuple(sorted(CATEGORIES["default"]))),
    Flag("-O", "Guess the operating system; needs raw sockets.", field="os"),
    Flag("-A", "-sV, -O and -sC together; intrusive.", intrusive=True, field="aggressive"),
    Flag("-Pn", "Treat every address as a host that is up.", field="ping", const=False),
    Flag("-6", "Only IPv6 targets.", field="ipv6"),
    Flag("-p", "Ports to test: numbers, ranges, names, top:N or all.", PortsValue(), field="ports"),
    Flag("--top-ports", "The N most common ports.", TopPortsValue(), field="ports"),
    Flag("-F", "The 100 most common ports.", field="ports", const=FAST_PORTS),
    Flag("-r", "Test ports in ascending order.", field="in_order"),
    Flag("-T", "Timing template; 5 is intrusive.", IntValue(0, 5), joined=True, field="timing"),
    Flag("--host-timeout", "Stop scanning a host after this.", DurationValue(1000, 3_600_000), field="host_timeout"),
    Flag("--max-hostgroup", "Hosts tested together.", IntValue(1, 256), field="max_hostgroup"),
    Flag("--max-retries", "Retransmissions of a port probe.", IntValue(0, 10), field="max_retries"),
    Flag("--min-rate", "Lowest packets a second; overrides back-off.", IntValue(1, 1000), field="min_rate"),
    Flag("--max-rate", "Highest packets a second.", IntValue(1, 10_000), field="max_rate"),
    Flag("--scan-delay", "Pause between probes of a host.", DurationValue(1, _TEN_SECONDS), field="scan_delay"),
    Flag("--max-scan-delay", "Longest pause between probes.", DurationValue(1, _TEN_SECONDS), field="max_scan_delay"),
    Flag("--initial-rtt-timeout", "First wait for an answer.", DurationValue(10, _TEN_SECONDS), field="initial_rtt"),
    Flag("--max-rtt-timeout", "Longest wait for an answer.", DurationValue(10, _TEN_SECONDS), field="max_rtt"),
    Flag("--version-intensity", "How many rare version probes to send.", IntValue(0, 9), field="version_intensity"),
    Flag("--version-light", "Version intensity 2.", field="version_intensity", const=2),
    Flag("--version-all", "Version intensity 9.", field="version_intensity", const=9),
    Flag("--osscan-limit", "Guess only for hosts with an open and a closed port.", field="osscan_limit"),
    Flag("--osscan-guess", "Also report near matches of operating systems.", field="osscan_guess"),
    Flag("--script", "Scripts to run, by name or category word.", ScriptsValue(), field="scripts"),
    Flag("--reason", "Has no effect: the reason of a state is always reported.", field="reason"),
)

PAIRS: Final = (("min_rate", "max_rate"), ("scan_delay", "max_scan_delay"), ("initial_rtt", "max_rtt"))
"""Pairs of fields. The first must not be more than the second."""
