"""What the policy says of a target, or of itself, for every interface that explains instead of running."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from mcp_server.errors import AccessError, NetworkToolsError, RefusedError
from mcp_server.model.access import FULL_ACCESS, Access
from mcp_server.model.run import Risk
from mcp_server.model.target import Evidence, Target
from mcp_server.model.untrusted import sanitize
from mcp_server.scope.permission import require_risk
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.reading import SHOWN_CHARS
from mcp_server.scope.resolve import pin_targets
from mcp_server.scope.resolver import Resolver
from mcp_server.scope.terms import PolicyEntry, Verdict, strictest_rate

ENTRIES_SHOWN: Final = 100
"""Entries of a policy that its description lists; the totals are exact."""

_NO_LIMIT: Final = 1 << 128  # every IPv6 address: explaining starts nothing, so its size is reported, not refused


async def explain(
    text: str,
    policy: ScopePolicy,
    resolver: Resolver,
    *,
    now: datetime,
    risk: Risk = Risk.PASSIVE,
    allow_intrusive: bool,
    access: Access = FULL_ACCESS,
) -> dict[str, Any]:
    """Say whether ``text`` may be touched at ``now`` with ``risk`` by one with ``access``, by the road a call takes.

    Never raises a refusal.

    Keys, all JSON-ready: ``target`` (escaped), ``allowed``, ``code`` and ``hint`` (None when allowed), ``reason``,
    ``entries`` that decide, ``name`` (or None), ``addresses`` (canonical addresses and CIDRs) and ``count`` of them,
    ``resolved`` (how a name was looked up, or None), ``max_risk`` and ``packets_per_second`` (of the strictest line;
    None: nothing allowed, no bound), ``lines`` (those that decide, or that excludes it: entry, line, max_risk,
    packets_per_second, windows) and ``windows`` (of these lines: name, when, open, next_opening). A name is looked
    up, once, for whoever may ask for this risk. ``allow_intrusive`` is ``security.allow_intrusive``.
    """
    answer: dict[str, Any] = {
        "target": sanitize(text, SHOWN_CHARS),
        "allowed": False,
        "code": None,
        "hint": None,
        "reason": "",
        "entries": [],
        "name": None,
        "addresses": [],
        "count": 0,
        "resolved": None,
        "max_risk": None,
        "packets_per_second": None,
        "lines": [],
        "windows": [],
    }
    try:
        require_risk(access, risk, "you asked about a risk you may not take")
        (target,) = (await pin_targets([text], policy, resolver, max_addresses=_NO_LIMIT)).items
    except RefusedError as error:
        return answer | refused(error)
    await asyncio.sleep(0)  # each of the three steps may take long for a wide network and a policy of many entries
    verdicts = _verdicts(target, policy)
    lines = list(dict.fromkeys(line for verdict in verdicts for line in verdict.lines))
    entries = list(dict.fromkeys(verdict.entry for verdict in verdicts if verdict.entry is not None))
    addresses = list(target.canonical())
    what = f"{target.name} ({', '.join(addresses)})" if target.name else addresses[0]
    answer |= {
        "entries": entries,
        "name": target.name,
        "addresses": addresses,
        "count": target.count,
        "resolved": _resolved(target.evidence),
        "max_risk": str(min(line.terms.max_risk for line in lines)),
        "packets_per_second": strictest_rate(lines, policy.limits),
        "lines": [_line(line) for line in lines],
        "windows": windows(policy, now, [name for line in lines for name in line.terms.windows]),
    }
    await asyncio.sleep(0)
    try:
        if risk >= Risk.INTRUSIVE and not allow_intrusive:
            raise AccessError("what is intrusive is not allowed", code="intrusive_not_allowed")
        names = [target.name] if target.name else []
        policy.require(target.networks, names, risk, addresses=0, ports=0, probes=0, now=now)
    except RefusedError as error:
        return answer | refused(error)
    return answer | {"allowed": True, "reason": f"{what} is allowed by {', '.join(entries)}"}


def describe(policy: ScopePolicy, now: datetime) -> dict[str, Any]:
    """The policy itself: where it was written, what it allows and excludes (the first 100 each), and its limits."""
    limits = policy.limits
    return {
        "source": policy.source,
        "name": policy.name,
        "allow": [_line(line) for line in policy.lines(ENTRIES_SHOWN)],
        "allow_total": policy.size,
        "exclude": list(policy.exclusions[:ENTRIES_SHOWN]),
        "exclude_total": len(policy.exclusions),
        "limits": {
            "addresses_x_ports": limits.addresses_x_ports,
            "packets_per_run": limits.packets_per_run,
            "packets_per_hour": limits.packets_per_hour,
            "packets_per_second": limits.packets_per_second,
        },
        "windows": windows(policy, now, policy.windows),
        "resolvers": [str(address) for address in policy.resolvers],
    }


def refused(error: NetworkToolsError) -> dict[str, Any]:
    """The keys of a refusal as an explanation shows it."""
    return {"code": error.code, "hint": error.hint, "reason": error.message}


def windows(policy: ScopePolicy, now: datetime, names: Iterable[str]) -> list[dict[str, Any]]:
    """Windows by name: when they are open, whether they are now, and else when next (ISO 8601, local time)."""
    found = []
    for name in dict.fromkeys(names):
        window = policy.windows[name]
        opening = window.next_opening(now)
        found.append(
            {
                "name": name,
                "when": str(window),
                "open": window.is_open(now),
                "next_opening": opening.isoformat(timespec="minutes") if opening else None,
            }
        )
    return found


def _verdicts(target: Target, policy: ScopePolicy) -> list[Verdict]:
    verdicts = [policy.check_network(network) for network in target.networks]
    return verdicts if target.name is None else [policy.check_name(target.name), *verdicts]


def _line(line: PolicyEntry) -> dict[str, Any]:
    return {
        "entry": line.entry,
        "line": line.number,
        "max_risk": str(line.terms.max_risk),
        "packets_per_second": line.terms.packets_per_second,
        "windows": list(line.terms.windows),
    }


def _resolved(evidence: Evidence | None) -> dict[str, Any] | None:
    if evidence is None:
        return None
    return evidence.as_dict() | {"aliases": [sanitize(alias, SHOWN_CHARS) for alias in evidence.aliases]}
