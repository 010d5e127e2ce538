"""Refusals on the decision log: each of them, but of a flood of one kind one a minute, with the number of the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from mcp_server.audit import AuditLog
from mcp_server.audit.log_rate_limiter import LogRateLimiter
from mcp_server.audit.records import escape_values
from mcp_server.config.redact import without_secrets
from mcp_server.errors import NetworkToolsError
from mcp_server.logger import get_logger
from mcp_server.model.run import Actor
from mcp_server.tools.base import CORRELATION_ID_MAX_CHARS

logger = get_logger(__name__)

COLLAPSED: Final = frozenset({"rate_limited", "circuit_open", "shutting_down", "insufficient_scope"})
"""Codes whose refusals cost the caller nothing, and would fill the disk if each took a synced record."""
_UNLOGGED: Final = frozenset({"audit_unavailable", "audit_broken"})


class Denials:
    """Writes refusals; ``terms`` gives the hash of the policy in force and the enforcement, for each record."""

    def __init__(self, audit: AuditLog, terms: Callable[[], dict[str, str]]) -> None:
        self._audit = audit
        self._terms = terms
        self._log_limiter: LogRateLimiter[tuple[str, str, str, str]] = LogRateLimiter(self._write_repeats)

    async def log(
        self,
        actor: Actor,
        tool: str,
        known_as: str,
        arguments: Mapping[str, Any],
        error: NetworkToolsError,
        *,
        reason: str | None = None,
    ) -> None:
        """Put a refused call on the log with its code and reason, arguments as given but bounded and escaped.

        ``tool`` is the caller's word, ``known_as`` ours (one word for all tools that there are not). ``reason`` is for
        the owner where the caller was told another one.
        """
        if error.code in _UNLOGGED:
            return
        fields = _fields(actor, tool, arguments, error) | ({} if reason is None else {"reason": reason})
        kind = (actor.name, actor.interface, known_as, error.code)
        if error.code in COLLAPSED and not self._log_limiter.count(kind, fields):
            return
        await self._audit.append("decision", **fields, **self._terms())

    async def close(self) -> None:
        """Write what is still counted."""
        await self._log_limiter.close()

    async def _write_repeats(self, fields: dict[str, Any]) -> None:
        told = {name: value for name, value in fields.items() if name != "correlation_id"} | {"arguments": {}}
        try:
            await self._audit.append("decision", **told, **self._terms())
        except NetworkToolsError as failure:
            logger.error("audit.repeats_not_logged", code=fields["code"], message=failure.message)  # noqa: TRY400 - no traceback: the failure is a disk


def _fields(actor: Actor, tool: str, arguments: Mapping[str, Any], error: NetworkToolsError) -> dict[str, Any]:
    given = given_id(arguments)
    return {
        "decision": "deny",
        **({} if given is None else {"correlation_id": given}),
        **who(actor),
        "tool": escape_values(tool, 64),
        "arguments": escape_values(dict(arguments), 256),
        "code": error.code,
        "reason": escape_values(error.message, 512),
    }


def given_id(arguments: Mapping[str, Any]) -> str | None:
    """The correlation id as the caller gave it, bounded and escaped: of a call that was not understood."""
    given = arguments.get("correlation_id")
    if not isinstance(given, str):
        return None
    # Here already: an event is read by others than the caller, and has no other place where secrets are taken out.
    return str(escape_values(without_secrets(given[: 4 * CORRELATION_ID_MAX_CHARS]), CORRELATION_ID_MAX_CHARS))


def who(actor: Actor) -> dict[str, str]:
    """The fields of a record that say who called, and the file that drew its bounds."""
    drawn = {"actors_hash": actor.access.origin} if actor.access.origin else {}
    return {"actor": actor.name, "interface": actor.interface, "client": str(escape_values(actor.client, 128)), **drawn}
