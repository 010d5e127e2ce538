"""Decide whether a planned call is allowed now: scope, risk, time window and size, in this order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from mcp_server.errors import AccessError, BusyError
from mcp_server.model.run import Risk
from mcp_server.scope.entries import PolicyEntry
from mcp_server.scope.verdict import Verdict
from mcp_server.scope.windows import Window


@dataclass(frozen=True, slots=True)
class PolicyLimits:
    """Limits of one call and of one hour; None means no limit.

    ``addresses_x_ports`` is the product for one call. Packets are what a tool's estimate calls probes.
    """

    addresses_x_ports: int | None = None
    packets_per_run: int | None = None
    packets_per_hour: int | None = None
    packets_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """The terms of an allowed call: the deciding entries, and the highest packets per second (None: no limit)."""

    entries: tuple[PolicyEntry, ...] = ()
    packets_per_second: float | None = None


def decide(
    verdicts: Sequence[Verdict],
    limits: PolicyLimits,
    windows: Mapping[str, Window],
    risk: Risk,
    *,
    addresses: int,
    ports: int,
    probes: int,
    now: datetime,
) -> Grant:
    """Grant a call or raise the first refusal, as `ScopePolicy.require` describes."""
    if now.utcoffset() is None:
        raise ValueError("now must have an offset from UTC")
    for verdict in verdicts:
        verdict.require()
    entries = tuple(dict.fromkeys(entry for verdict in verdicts for entry in verdict.entries))
    _check_risk(entries, risk)
    _check_windows(entries, windows, now)
    _check_size(limits, addresses, ports, probes)
    return Grant(entries, strictest_rate(entries, limits))


def strictest_rate(entries: Iterable[PolicyEntry], limits: PolicyLimits) -> float | None:
    """Return the lowest rate that the entries or the limits allow, in packets per second; None means no limit."""
    rates = [entry.terms.packets_per_second for entry in entries]
    return min((rate for rate in (*rates, limits.packets_per_second) if rate is not None), default=None)


def _next_opening(entry: PolicyEntry, windows: Mapping[str, Window], now: datetime) -> datetime | None:
    """Return the next opening of the windows of an entry, or None if one is open or the entry has none."""
    moments = [windows[name].next_opening(now) for name in entry.terms.windows]
    return None if None in moments else min((moment for moment in moments if moment is not None), default=None)


def _check_risk(entries: Sequence[PolicyEntry], risk: Risk) -> None:
    strictest = min(entries, key=lambda entry: entry.terms.max_risk, default=None)
    if strictest is not None and risk > strictest.terms.max_risk:
        raise AccessError(
            f"{strictest} allows the risk {strictest.terms.max_risk} at most; the risk of this call is {risk}.",
            code="risk_not_allowed",
            entry=str(strictest),
            max_risk=str(strictest.terms.max_risk),
            risk=str(risk),
        )


def _check_windows(entries: Sequence[PolicyEntry], windows: Mapping[str, Window], now: datetime) -> None:
    closed = [(moment, entry) for entry in entries if (moment := _next_opening(entry, windows, now)) is not None]
    if not closed:
        return
    moment, entry = max(closed, key=lambda each: each[0])
    opening = moment.isoformat(timespec="minutes")
    times = "; ".join(str(windows[name]) for name in entry.terms.windows)
    raise AccessError(
        f"{entry} may be scanned only {times}; the window opens {opening}.",
        code="outside_time_window",
        entry=str(entry),
        windows=list(entry.terms.windows),
        next_opening=opening,
        retry_after=max(int((moment - now).total_seconds()) + 1, 1),
    )


def _check_size(limits: PolicyLimits, addresses: int, ports: int, probes: int) -> None:
    product = addresses * max(ports, 1)
    if limits.addresses_x_ports is not None and product > limits.addresses_x_ports:
        raise BusyError(
            f"{addresses} addresses x {max(ports, 1)} ports are {product}; "
            f"the policy allows {limits.addresses_x_ports} per call.",
            code="budget_exceeded",
            hint="Ask for fewer addresses or ports, in several calls.",
            limit=limits.addresses_x_ports,
            asked=product,
        )
    if limits.packets_per_run is not None and probes > limits.packets_per_run:
        raise BusyError(
            f"The call needs up to {probes} packets; the policy allows {limits.packets_per_run} per call.",
            code="budget_exceeded",
            hint="Ask for fewer addresses or ports, in several calls.",
            limit=limits.packets_per_run,
            asked=probes,
        )
