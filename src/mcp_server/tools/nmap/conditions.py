"""Applies the conditions of a run to a scan: whether raw sockets are available, and the policy's packet rate.

nmap obeys ``--max-rate`` in host discovery and port scans. Version detection, scripts and OS detection have their own
rate. For these the number of simultaneous connections is limited instead, to one for every ten packets a second. This
is less exact.
"""

from __future__ import annotations

from dataclasses import replace
from math import floor
from typing import Final

from mcp_server.errors import ArgumentError, PlatformError
from mcp_server.tools.base import RunConditions
from mcp_server.tools.nmap.scan import Scan

LEAST_RATE: Final = 0.001
"""The lowest rate that can be written: one packet in about a quarter of an hour."""
_RATES: Final = frozenset({"min_rate", "max_rate"})
_PACKETS_A_CONNECTION: Final = 10
_MOST_CONNECTIONS: Final = 100  # nmap's own limit in service_scan.cc


def apply_conditions(scan: Scan, conditions: RunConditions) -> Scan:
    """Return the scan as it will run under these conditions.

    A higher ``--max-rate`` is lowered to the policy's rate. Raises ArgumentError if ``--min-rate`` is above it, and
    PlatformError ``permission_denied`` if the scan needs raw sockets and there are none.
    """
    if scan.raw_source and not conditions.raw_sockets:
        raise PlatformError(
            f"{scan.raw_source} needs raw sockets, which this server does not have.",
            code="permission_denied",
            hint="Use transport tcp and the modes discover, ports, services or scripts. For raw sockets start the "
            "server with 'serve --guard kernel' as root, or with 'serve --guard rootless'. 'mcp-network-tools doctor' "
            "shows what is missing.",
        )
    if scan.tcp == "default":
        scan = replace(scan, tcp="syn" if conditions.raw_sockets else "connect")
    return scan if conditions.max_rate is None else _rate_limited(scan, max(conditions.max_rate, LEAST_RATE))


def _rate_limited(scan: Scan, limit: float) -> Scan:
    asked = {setting.flag.field: float(setting.value) for setting in scan.tuning if setting.flag.field in _RATES}
    if asked.get("min_rate", 0.0) > limit:
        raise ArgumentError(
            f"--min-rate {asked['min_rate']:g} is more than the {limit:g} packets a second that the policy allows "
            "for these targets.",
            hint="Remove --min-rate, or lower it.",
            parameter="extra_args",
            limit=limit,
        )
    # Round down to the three decimals of nmap's argument.
    rate = floor(min(asked.get("max_rate", limit), limit) * 1000) / 1000
    return replace(
        scan,
        tuning=tuple(setting for setting in scan.tuning if setting.flag.field != "max_rate"),
        max_rate=rate,
        max_parallelism=min(_MOST_CONNECTIONS, max(1, int(rate / _PACKETS_A_CONNECTION))) if scan.has_detail else None,
    )
