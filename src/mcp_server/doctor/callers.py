"""That the callers of the HTTP doors can be known: the API keys, and the issuer's keys."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from mcp_server.health import Finding, HealthStatus

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.identity.gate import Gate

_EVERYBODY_ELSE: Final = "callers with other credentials"


async def check_identity(config: Config, gate: Gate) -> Finding:
    """Which credentials are taken; degraded where some cannot be checked, or none is taken at all.

    The issuer is asked for its keys where that is due.
    """
    settings = config.auth
    ways = ["the local token"] if settings.local_token else []
    if count := gate.keys.count:
        ways.append(f"{count} API keys")
    issuer_keys = gate.tokens.keys
    if issuer_keys is not None:
        await issuer_keys.look()
        ways.append(f"tokens of {settings.issuer} ({issuer_keys.known} keys)")
    detail = "taken are " + (", ".join(ways) or "no credentials")
    if gate.keys.problem is not None:
        return Finding(HealthStatus.DEGRADED, gate.keys.problem, _EVERYBODY_ELSE, _mend_keys(config))
    if issuer_keys is not None and issuer_keys.problem is not None:
        works = _EVERYBODY_ELSE + ("; tokens, with the keys read before" if issuer_keys.known else "")
        remedy = "make the issuer reachable (inside a guard: by the scope), or set auth.jwks_file"
        return Finding(HealthStatus.DEGRADED, issuer_keys.problem, works, remedy)
    if not ways:
        remedy = "mcp-network-tools keys create NAME --role operator, or set auth.issuer"
        return Finding(HealthStatus.DEGRADED, detail, "stdio, and the command line", remedy)
    return Finding(HealthStatus.HEALTHY, detail)


def _mend_keys(config: Config) -> str:
    return f"mend or remove {shlex.quote(str(config.state_dir / 'keys.json'))}"
