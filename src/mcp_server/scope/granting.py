"""Whether a planned call may be made now: scope, risk, time and size, in that order."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from mcp_server.errors import AccessError, BusyError
from mcp_server.model.run import Risk
from mcp_server.model.target import Network
from mcp_server.scope.terms import Grant, PolicyEntry, PolicyLimits, strictest_rate

if TYPE_CHECKING:
    from mcp_server.scope.policy import ScopePolicy


def grant(
    policy: ScopePolicy,
    networks: Sequence[Network],
    names: Sequence[str],
    risk: Risk,
    *,
    addresses: int,
    ports: int,
    probes: int,
    now: datetime,
) -> Grant:
    """Grant a call or raise what is in its way, as `ScopePolicy.require` describes."""
    if now.utcoffset() is None:
        raise ValueError("a time without its offset from UTC opens no window")
    verdicts = [*map(policy.check_name, names), *map(policy.check_network, networks)]
    for verdict in verdicts:
        verdict.require()
    lines = tuple(dict.fromkeys(line for verdict in verdicts for line in verdict.lines))
    _check_risk(lines, risk)
    _check_windows(policy, lines, now)
    _check_size(policy.limits, addresses, ports, probes)
    return Grant(lines, strictest_rate(lines, policy.limits))


def opening(policy: ScopePolicy, line: PolicyEntry, now: datetime) -> datetime | None:
    """When the first of a line's windows opens next, in its own time; None where one is open, or there are none."""
    moments = [policy.windows[name].next_opening(now) for name in line.terms.windows]
    return None if None in moments else min((moment for moment in moments if moment is not None), default=None)


def _check_risk(lines: Sequence[PolicyEntry], risk: Risk) -> None:
    strictest = min(lines, key=lambda line: line.terms.max_risk, default=None)
    if strictest is not None and risk > strictest.terms.max_risk:
        raise AccessError(
            f"{strictest} allows {strictest.terms.max_risk} at most; this call is {risk}",
            code="risk_not_allowed",
            entry=str(strictest),
            max_risk=str(strictest.terms.max_risk),
            risk=str(risk),
        )


def _check_windows(policy: ScopePolicy, lines: Sequence[PolicyEntry], now: datetime) -> None:
    closed = [(moment, line) for line in lines if (moment := opening(policy, line, now)) is not None]
    if not closed:
        return
    moment, line = max(closed, key=lambda each: each[0])
    windows = "; ".join(str(policy.windows[name]) for name in line.terms.windows)
    raise AccessError(
        f"{line} may be touched only {windows}; it opens {moment.isoformat(timespec='minutes')}",
        code="outside_time_window",
        entry=str(line),
        windows=list(line.terms.windows),
        next_opening=moment.isoformat(timespec="minutes"),
        retry_after=max(int((moment - now).total_seconds()) + 1, 1),
    )


def _check_size(limits: PolicyLimits, addresses: int, ports: int, probes: int) -> None:
    product = addresses * max(ports, 1)
    if limits.addresses_x_ports is not None and product > limits.addresses_x_ports:
        raise BusyError(
            f"{addresses} addresses x {max(ports, 1)} ports are {product}; "
            f"the policy allows {limits.addresses_x_ports} a call",
            code="budget_exceeded",
            hint="Ask for fewer addresses or ports, in several calls.",
            limit=limits.addresses_x_ports,
            asked=product,
        )
    if limits.packets_per_run is not None and probes > limits.packets_per_run:
        raise BusyError(
            f"the call may take {probes} packets; the policy allows {limits.packets_per_run} a call",
            code="budget_exceeded",
            hint="Ask for fewer addresses or ports, in several calls.",
            limit=limits.packets_per_run,
            asked=probes,
        )
