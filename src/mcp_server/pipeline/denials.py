"""Logs refusals. Repeats of the same kind are collapsed to one record per minute with a count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from mcp_server.audit import AuditLog
from mcp_server.audit.log_rate_limiter import LogRateLimiter
from mcp_server.audit.records import escape_values
from mcp_server.errors import NetworkToolsError
from mcp_server.logger import get_logger
from mcp_server.model.run import Actor
from mcp_server.pipeline.log_fields import given_id, who

logger = get_logger(__name__)

COLLAPSED: Final = frozenset({"rate_limited", "circuit_open", "shutting_down", "insufficient_scope"})
"""Codes of refusals that a caller can cause without effort. A record for each of them would fill the disk."""
_UNLOGGED: Final = frozenset({"audit_unavailable", "audit_broken"})


class Denials:
    """Writes refusals to the audit log. ``terms`` returns the policy hash and the enforcement for each record."""

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
        """Log a refused call with its code, its reason and its arguments, bounded and escaped.

        ``tool`` is the name that the caller used. ``known_as`` is the name of the tool, or one word for all unknown
        tools. ``reason`` is logged instead of the message that the caller got.
        """
        if error.code in _UNLOGGED:
            return
        fields = _fields(actor, tool, arguments, error) | ({} if reason is None else {"reason": reason})
        kind = (actor.name, actor.interface, known_as, error.code)
        if error.code in COLLAPSED and not self._log_limiter.count(kind, fields):
            return
        await self._audit.append("decision", **fields, **self._terms())

    async def close(self) -> None:
        """Write the counts of repeats that were not written yet."""
        await self._log_limiter.close()

    async def _write_repeats(self, fields: dict[str, Any]) -> None:
        record = {name: value for name, value in fields.items() if name != "correlation_id"} | {"arguments": {}}
        try:
            await self._audit.append("decision", **record, **self._terms())
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
