"""Explains the policy, and its decision about a target, without running a tool."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from mcp_server.errors import AccessError, NetworkToolsError, RefusedError
from mcp_server.model.access import FULL_ACCESS, Access
from mcp_server.model.run import Risk
from mcp_server.model.target import Evidence, Target
from mcp_server.model.untrusted import sanitize
from mcp_server.scope.entries import PolicyEntry
from mcp_server.scope.grant import strictest_rate
from mcp_server.scope.permissions import require_risk
from mcp_server.scope.pinning import pin_targets
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.reading import SHOWN_CHARS
from mcp_server.scope.resolver import Resolver
from mcp_server.scope.verdict import Verdict

ENTRIES_SHOWN: Final = 100
"""Entries that the description of a policy lists; the totals are exact."""

_NO_LIMIT: Final = 1 << 128  # every IPv6 address: an explanation reports the size of a target and does not limit it


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
    """Return whether an actor with ``access`` may call a tool of this risk on the target ``text`` at ``now``.

    A refusal is part of the answer and never raised. A name is looked up once, but only for an actor who may ask for
    this risk. ``allow_intrusive`` is ``security.allow_intrusive``.

    Keys, all JSON-ready: ``target`` (escaped), ``allowed``, ``code`` and ``hint`` (None if allowed), ``reason``,
    ``entries`` (those that allow it), ``name`` (or None), ``addresses`` (canonical addresses and CIDRs) and ``count``
    of them, ``resolved`` (how a name was looked up, or None), ``max_risk`` and ``packets_per_second`` (of the strictest
    entry; None if nothing is allowed or there is no limit), ``policy_entries`` (those that decide: entry, line,
    max_risk, packets_per_second, windows) and ``windows`` (of these entries: name, when, open, next_opening).
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
        "policy_entries": [],
        "windows": [],
    }
    try:
        require_risk(access, risk, "This call is not allowed")
        (target,) = (await pin_targets([text], policy, resolver, max_addresses=_NO_LIMIT)).items
    except RefusedError as error:
        return answer | refused(error)
    await asyncio.sleep(0)  # each of the three steps may take long for a wide network and a policy of many entries
    verdicts = _verdicts(target, policy)
    deciding = list(dict.fromkeys(entry for verdict in verdicts for entry in verdict.entries))
    allowed_by = list(dict.fromkeys(verdict.allowed_by for verdict in verdicts if verdict.allowed_by is not None))
    addresses = list(target.canonical())
    what = f"{target.name} ({', '.join(addresses)})" if target.name else addresses[0]
    answer |= {
        "entries": allowed_by,
        "name": target.name,
        "addresses": addresses,
        "count": target.count,
        "resolved": _resolved(target.evidence),
        "max_risk": str(min(entry.terms.max_risk for entry in deciding)),
        "packets_per_second": strictest_rate(deciding, policy.limits),
        "policy_entries": list(map(_entry_body, deciding)),
        "windows": windows(policy, now, [name for entry in deciding for name in entry.terms.windows]),
    }
    await asyncio.sleep(0)
    try:
        if risk >= Risk.INTRUSIVE and not allow_intrusive:
            raise AccessError("Intrusive calls are not allowed.", code="intrusive_not_allowed")
        names = [target.name] if target.name else []
        policy.require(target.networks, names, risk, addresses=0, ports=0, probes=0, now=now)
    except RefusedError as error:
        return answer | refused(error)
    return answer | {"allowed": True, "reason": f"{what} is allowed by {', '.join(allowed_by)}."}


def describe(policy: ScopePolicy, now: datetime) -> dict[str, Any]:
    """Return the policy itself: its source, its entries and exclusions (the first 100 of each), limits and windows."""
    return {
        "source": policy.source,
        "name": policy.name,
        "allow": list(map(_entry_body, policy.policy_entries(ENTRIES_SHOWN))),
        "allow_total": policy.size,
        "exclude": list(policy.exclusions[:ENTRIES_SHOWN]),
        "exclude_total": len(policy.exclusions),
        "limits": asdict(policy.limits),
        "windows": windows(policy, now, policy.windows),
        "resolvers": [str(address) for address in policy.resolvers],
    }


def refused(error: NetworkToolsError) -> dict[str, Any]:
    """Return the keys of an explanation that a refusal sets."""
    return {"code": error.code, "hint": error.hint, "reason": error.message}


def windows(policy: ScopePolicy, now: datetime, names: Iterable[str]) -> list[dict[str, Any]]:
    """Return windows: name, times, whether they are open at ``now``, and if not, when they open (ISO 8601, local)."""
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


def _entry_body(entry: PolicyEntry) -> dict[str, Any]:
    return {
        "entry": entry.text,
        "line": entry.line,
        "max_risk": str(entry.terms.max_risk),
        "packets_per_second": entry.terms.packets_per_second,
        "windows": list(entry.terms.windows),
    }


def _resolved(evidence: Evidence | None) -> dict[str, Any] | None:
    if evidence is None:
        return None
    return evidence.as_dict() | {"aliases": [sanitize(alias, SHOWN_CHARS) for alias in evidence.aliases]}
