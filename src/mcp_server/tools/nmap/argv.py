"""The argv of a scan and its estimated cost. Every word comes from typed values. Targets are numeric and come last."""

from __future__ import annotations

from typing import Final

from mcp_server.model.target import Targets
from mcp_server.tools.base import Estimate
from mcp_server.tools.flags import DurationValue, FloatValue, emit
from mcp_server.tools.nmap.scan import Scan
from mcp_server.tools.nmap.script_args import emit_script_args

BASE: Final = ("-n", "-oX", "-", "--noninteractive", "--no-stylesheet", "--stats-every", "2s")
"""Words in every argv: no DNS, XML on standard output, no keyboard, no local path in the XML, progress reports."""

_GROUP_WITH_DETAIL: Final = 16
_GROUP_OF_PORTS: Final = 64
_SECONDS_OF_DETAIL: Final = {"services": 7.0, "os": 2.0, "scripts": 5.0}
_PACKETS_A_SECOND: Final = (1 / 300, 1 / 15, 2.5, 500.0, 2000.0, 5000.0)
"""The approximate rate of each timing template. The first three follow from the pauses in nmap's manual."""
_DISCOVERY_PROBES: Final = 4


def build_args(scan: Scan, targets: Targets, *, timeout_sec: float, raw_sockets: bool) -> tuple[str, ...]:
    """Return the words of argv after the program. ``timeout_sec`` is the time limit of the run."""
    words = [*BASE, "--privileged" if raw_sockets else "--unprivileged", f"-T{scan.timing}"]
    if targets.versions == {6}:
        words.append("-6")
    words += _port_scan(scan, _host_name(targets)) if scan.ports else ["-sn"]
    if not scan.ping:
        words.append("-Pn")
    host_timeout = scan.host_timeout or default_host_timeout(targets.count, timeout_sec)
    if host_timeout:
        words += ["--host-timeout", DurationValue().emit(host_timeout)]
    words += emit(scan.tuning)
    if scan.max_rate is not None:
        words += ["--max-rate", FloatValue().emit(scan.max_rate)]
    if scan.max_parallelism is not None:
        words += ["--max-parallelism", str(scan.max_parallelism)]
    return (*words, *targets.canonical())


def _host_name(targets: Targets) -> str | None:
    """Return the name of the only target. None for several targets, because script arguments apply to all hosts."""
    return targets.items[0].name if len(targets.items) == 1 else None


def _port_scan(scan: Scan, name: str | None) -> list[str]:
    words = []
    if scan.tcp:
        words.append("-sS" if scan.tcp == "syn" else "-sT")
    if scan.udp:
        words.append("-sU")
    words += scan.ports.words() if scan.ports else []
    if scan.services:
        words.append("-sV")
        if scan.version_intensity is not None:
            words += ["--version-intensity", str(scan.version_intensity)]
    if scan.os:
        words.append("-O")
    if scan.scripts:
        words += ["--script", ",".join(scan.scripts)]
    arguments = scan.script_args
    if name is not None and (scan.services or scan.scripts):
        # nmap connects to the address. A server with several sites also needs the name in HTTP and in TLS.
        arguments = (*arguments, ("http.host", name), ("tls.servername", name))
    if arguments:
        words += ["--script-args", emit_script_args(arguments)]
    return [*words, "--max-hostgroup", str(scan.max_hostgroup or _default_hostgroup(scan))]


def _default_hostgroup(scan: Scan) -> int:
    """Return how many hosts nmap scans together.

    nmap prints the results of a group only when all of it is done, so small groups give results earlier. Without host
    discovery most addresses of a group do not answer. Their waiting times add up unless many are scanned together.
    """
    return _GROUP_WITH_DETAIL if scan.has_detail and scan.ping else _GROUP_OF_PORTS


def default_host_timeout(addresses: int, timeout_sec: float) -> int | None:
    """Return half of the run's time limit in milliseconds, or None for one address or a limit below 20 s.

    One slow host delays its whole group. With a time limit, nmap reports that host as timed out and finishes the
    others. A single address may use the time limit of the run.
    """
    return int(timeout_sec * 500) if addresses > 1 and timeout_sec >= 20 else None


def estimate(scan: Scan, targets: Targets) -> Estimate:
    """Return the number of probes without retransmissions, and a rough estimate of the duration."""
    ports = scan.ports.count * len(scan.transports) if scan.ports else 0
    discovery = _DISCOVERY_PROBES if scan.ping else 0
    probes = targets.count * (ports + discovery)
    rates = {setting.flag.field: float(setting.value) for setting in scan.tuning if setting.value is not None}
    rate = max(_PACKETS_A_SECOND[scan.timing], rates.get("min_rate", 0.0))
    rate = min(rate, rates.get("max_rate", rate), scan.max_rate or rate)
    detail = sum(
        seconds
        for asked, seconds in (
            (scan.services, _SECONDS_OF_DETAIL["services"]),
            (scan.os, _SECONDS_OF_DETAIL["os"]),
            (bool(scan.scripts), _SECONDS_OF_DETAIL["scripts"]),
        )
        if asked
    )
    return Estimate(addresses=targets.count, ports=ports, probes=probes, seconds=round(0.1 + probes / rate + detail, 1))
