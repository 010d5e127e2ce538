"""The owner's bound on packets a second, laid on a scan.

nmap keeps to ``--max-rate`` in host discovery and port scans. Version detection, scripts and system guesses have a pace
of their own; there the bound holds down how many connections are open at a time, which is not as exact: one with every
ten packets a second.
"""

from __future__ import annotations

from dataclasses import replace
from math import floor
from typing import Final

from mcp_server.errors import ArgumentError
from mcp_server.tools.nmap.scan import Scan

LEAST_RATE: Final = 0.001
"""The lowest rate that can be written, one packet in about a quarter of an hour."""
_RATES: Final = frozenset({"min_rate", "max_rate"})
_PACKETS_A_CONNECTION: Final = 10
_MOST_CONNECTIONS: Final = 100  # nmap's own limit in service_scan.cc


def bounded(scan: Scan, limit: float | None) -> Scan:
    """Return the scan with the bound laid on it, or as it is where ``limit`` is None.

    A higher ``--max-rate`` is lowered; a ``--min-rate`` above the bound is refused with ArgumentError.
    """
    if limit is None:
        return scan
    limit = max(limit, LEAST_RATE)
    asked = {setting.flag.field: float(setting.value) for setting in scan.tuning if setting.flag.field in _RATES}
    if asked.get("min_rate", 0.0) > limit:
        raise ArgumentError(
            f"--min-rate {asked['min_rate']:g} is more than the {limit:g} packets a second that the policy allows "
            "for these targets",
            hint="Drop --min-rate, or ask for less.",
            parameter="extra_args",
            limit=limit,
        )
    # Rounded down to the three decimals that are written.
    rate = floor(min(asked.get("max_rate", limit), limit) * 1000) / 1000
    detail = scan.services or scan.os or bool(scan.scripts)
    return replace(
        scan,
        tuning=tuple(setting for setting in scan.tuning if setting.flag.field != "max_rate"),
        max_rate=rate,
        max_parallelism=min(_MOST_CONNECTIONS, max(1, int(rate / _PACKETS_A_CONNECTION))) if detail else None,
    )
