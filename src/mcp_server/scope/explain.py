"""Why a target is allowed or not, for ``scope check`` and every other door that explains instead of running."""

from __future__ import annotations

from typing import Any, Final

from mcp_server.errors import RefusedError
from mcp_server.model.target import Target
from mcp_server.model.untrusted import neutralise
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.reading import SHOWN_CHARS
from mcp_server.scope.resolve import pin_targets
from mcp_server.scope.resolver import Resolver

_NO_LIMIT: Final = 1 << 128  # every IPv6 address: explaining starts nothing, so its size is reported, not refused


async def explain(text: str, policy: ScopePolicy, resolver: Resolver) -> dict[str, Any]:
    """Say whether ``text`` is in scope, by the same road a call takes; never raises a refusal.

    Keys, all JSON-ready: ``target`` (escaped), ``allowed``, ``code`` and ``hint`` (None when allowed), ``reason``,
    ``entries`` (the scope entries that allow it), ``name`` (or None), ``addresses`` (canonical addresses and
    CIDRs), ``count`` (of addresses) and ``scope_hash``. A name is looked up, once.
    """
    answer: dict[str, Any] = {
        "target": neutralise(text, SHOWN_CHARS),
        "allowed": False,
        "code": None,
        "hint": None,
        "reason": "",
        "entries": [],
        "name": None,
        "addresses": [],
        "count": 0,
        "scope_hash": policy.hash,
    }
    try:
        (target,) = (await pin_targets([text], policy, resolver, max_addresses=_NO_LIMIT)).items
    except RefusedError as error:
        return answer | {"code": error.code, "hint": error.hint, "reason": error.message}
    entries = _entries(target, policy)
    addresses = list(target.canonical())
    what = f"{target.name} ({', '.join(addresses)})" if target.name else addresses[0]
    return answer | {
        "allowed": True,
        "reason": f"{what} is allowed by {', '.join(entries)}",
        "entries": entries,
        "name": target.name,
        "addresses": addresses,
        "count": target.count,
    }


def _entries(target: Target, policy: ScopePolicy) -> list[str]:
    verdicts = [policy.check_network(network) for network in target.networks]
    if target.name is not None:
        verdicts.insert(0, policy.check_name(target.name))
    return list(dict.fromkeys(verdict.entry for verdict in verdicts if verdict.entry is not None))
