"""Checks of authentication and authorization: API keys, the keys of the issuer, and the actors file."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from mcp_server.config.watching import file_states
from mcp_server.errors import NetworkToolsError
from mcp_server.health import CheckOutcome, HealthStatus

if TYPE_CHECKING:
    from pathlib import Path

    from mcp_server.config import Config
    from mcp_server.identity.authenticator import Authenticator

ACTORS: Final = "actors"
_OTHER_CREDENTIALS: Final = "callers with other credentials"


async def check_identity(config: Config, authenticator: Authenticator) -> CheckOutcome:
    """Check which credentials are accepted. Degraded if some cannot be verified, or if none is accepted.

    Fetches the keys of the issuer if that is due.
    """
    settings = config.auth
    accepted = ["the local token"] if settings.local_token else []
    if count := authenticator.keys.count:
        accepted.append(f"{count} API keys")
    issuer_keys = authenticator.tokens.keys
    if issuer_keys is not None:
        await issuer_keys.look()
        accepted.append(f"tokens of {settings.issuer} ({issuer_keys.known} keys)")
    detail = "accepted: " + (", ".join(accepted) or "no credentials")
    if authenticator.keys.problem is not None:
        return CheckOutcome(HealthStatus.DEGRADED, authenticator.keys.problem, _OTHER_CREDENTIALS, _repair_keys(config))
    if issuer_keys is not None and issuer_keys.problem is not None:
        works = _OTHER_CREDENTIALS + ("; tokens, with the keys that were read before" if issuer_keys.known else "")
        remedy = "make the issuer reachable (inside a guard: add it to the scope), or set auth.jwks_file"
        return CheckOutcome(HealthStatus.DEGRADED, issuer_keys.problem, works, remedy)
    if not accepted:
        remedy = "mcp-network-tools keys create NAME --role operator, or set auth.issuer"
        return CheckOutcome(HealthStatus.DEGRADED, detail, "stdio and the command line", remedy)
    return CheckOutcome(HealthStatus.HEALTHY, detail)


def _repair_keys(config: Config) -> str:
    return f"repair or remove {shlex.quote(str(config.state_dir / 'keys.json'))}"


class ActorsCheck:
    """Checks the actors file. Reads it again only if it may have changed; has no outcome if there is no file."""

    def __init__(self, *, serving: bool) -> None:
        self._serving = serving
        self._seen: object = None
        self._outcome = CheckOutcome(HealthStatus.HEALTHY, "")

    def __call__(self, config: Config) -> list[CheckOutcome]:
        """Check that the actors file can be used."""
        path = config.auth.actors_file
        if path is None:
            return []
        present = file_states([path])
        if present != self._seen:
            self._outcome, self._seen = self._read(path), present
        return [self._outcome]

    def _read(self, path: Path) -> CheckOutcome:
        from mcp_server.identity.actors_file import read_actors_file

        try:
            actors = read_actors_file(path)
        except NetworkToolsError as error:
            # A running server keeps the last valid actors, as it keeps the last valid policy.
            state, works = HealthStatus.UNHEALTHY, "nothing starts"
            if self._serving:
                state, works = HealthStatus.DEGRADED, "calls, within the limits that were read before"
            return CheckOutcome(state, error.message, works, error.hint, ACTORS)
        others = "other callers may do nothing" if actors.others is None else "other callers are limited too"
        return CheckOutcome(
            HealthStatus.HEALTHY, f"{path} names {len(actors.known)} credentials; {others}", name=ACTORS
        )
