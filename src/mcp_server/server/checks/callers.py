"""That the callers of the HTTP interfaces can be known and bounded: API keys, the issuer's keys, the actors file."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from mcp_server.config.watching import file_states
from mcp_server.errors import NetworkToolsError
from mcp_server.health import Finding, HealthStatus

if TYPE_CHECKING:
    from pathlib import Path

    from mcp_server.config import Config
    from mcp_server.identity.authenticator import Authenticator

ACTORS: Final = "actors"
_EVERYBODY_ELSE: Final = "callers with other credentials"


async def check_identity(config: Config, authenticator: Authenticator) -> Finding:
    """Which credentials are taken; degraded where some cannot be checked, or none is taken at all.

    The issuer is asked for its keys where that is due.
    """
    settings = config.auth
    ways = ["the local token"] if settings.local_token else []
    if count := authenticator.keys.count:
        ways.append(f"{count} API keys")
    issuer_keys = authenticator.tokens.keys
    if issuer_keys is not None:
        await issuer_keys.look()
        ways.append(f"tokens of {settings.issuer} ({issuer_keys.known} keys)")
    detail = "taken are " + (", ".join(ways) or "no credentials")
    if authenticator.keys.problem is not None:
        return Finding(HealthStatus.DEGRADED, authenticator.keys.problem, _EVERYBODY_ELSE, _mend_keys(config))
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


class ActorsCheck:
    """What the actors file says, read again only where it may have changed; no finding where there is none."""

    def __init__(self, *, serving: bool) -> None:
        self._serving = serving
        self._seen: object = None
        self._finding = Finding(HealthStatus.HEALTHY, "")

    def __call__(self, config: Config) -> list[Finding]:
        """Whether it can be used."""
        path = config.auth.actors_file
        if path is None:
            return []
        present = file_states([path])
        if present != self._seen:
            self._finding, self._seen = self._read(path), present
        return [self._finding]

    def _read(self, path: Path) -> Finding:
        from mcp_server.identity.actors_file import read_actors_file

        try:
            actors = read_actors_file(path)
        except NetworkToolsError as error:
            # As with the policy: a running server keeps what it had.
            state, works = HealthStatus.UNHEALTHY, "nothing starts"
            if self._serving:
                state, works = HealthStatus.DEGRADED, "calls, within the bounds read before"
            return Finding(state, error.message, works, error.hint, ACTORS)
        others = "others may do nothing" if actors.others is None else "others are bounded too"
        return Finding(HealthStatus.HEALTHY, f"{path} names {len(actors.known)} credentials; {others}", name=ACTORS)
