"""Checks of authentication: API keys, the issuer's keys, the actors file."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from mcp_server.config.watching import identities
from mcp_server.errors import NetworkToolsError
from mcp_server.health import Finding, HealthStatus

if TYPE_CHECKING:
    from pathlib import Path

    from mcp_server.config import Config
    from mcp_server.identity.authenticator import Authenticator

ACTORS: Final = "actors"
_OTHER_CALLERS: Final = "callers with other credentials"


async def check_identity(config: Config, authenticator: Authenticator) -> Finding:
    """Which credentials are accepted. Degraded if some kind cannot be checked, or if no credential is accepted.

    If the issuer's keys are due for a refresh, they are fetched.
    """
    settings = config.auth
    ways = ["the local token"] if settings.local_token else []
    if count := authenticator.keys.count:
        ways.append(f"{count} API keys")
    issuer_keys = authenticator.tokens.keys
    if issuer_keys is not None:
        await issuer_keys.look()
        ways.append(f"tokens of {settings.issuer} ({issuer_keys.known} keys)")
    detail = "accepted: " + (", ".join(ways) or "no credentials")
    if authenticator.keys.problem is not None:
        return Finding(HealthStatus.DEGRADED, authenticator.keys.problem, _OTHER_CALLERS, _fix_keys(config))
    if issuer_keys is not None and issuer_keys.problem is not None:
        works = _OTHER_CALLERS + ("; tokens, with the keys that were read before" if issuer_keys.known else "")
        remedy = "make the issuer reachable (inside a guard, the scope must allow it), or set auth.jwks_file"
        return Finding(HealthStatus.DEGRADED, issuer_keys.problem, works, remedy)
    if not ways:
        remedy = "mcp-network-tools keys create NAME --role operator, or set auth.issuer"
        return Finding(HealthStatus.DEGRADED, detail, "stdio, and the command line", remedy)
    return Finding(HealthStatus.HEALTHY, detail)


def _fix_keys(config: Config) -> str:
    return f"fix or remove {shlex.quote(str(config.state_dir / 'keys.json'))}"


class ActorsCheck:
    """Whether the actors file can be used. The file is read only if it may have changed. No finding without a file."""

    def __init__(self, *, serving: bool) -> None:
        self._serving = serving
        self._seen: object = None
        self._finding = Finding(HealthStatus.HEALTHY, "")

    def __call__(self, config: Config) -> list[Finding]:
        """One finding if the configuration names an actors file, else none."""
        path = config.auth.actors_file
        if path is None:
            return []
        present = identities([path])
        if present != self._seen:
            self._finding, self._seen = self._read(path), present
        return [self._finding]

    def _read(self, path: Path) -> Finding:
        from mcp_server.identity.actors_file import read_actors_file

        try:
            actors = read_actors_file(path)
        except NetworkToolsError as error:
            # A running server keeps what it read before, as with the policy.
            state, works = HealthStatus.UNHEALTHY, "nothing; no server can start"
            if self._serving:
                state, works = HealthStatus.DEGRADED, "calls, within the limits that were read before"
            return Finding(state, error.message, works, error.hint, ACTORS)
        others = "all others may do nothing" if actors.others is None else "all others have limits too"
        return Finding(HealthStatus.HEALTHY, f"{path} names {len(actors.known)} credentials; {others}", name=ACTORS)
