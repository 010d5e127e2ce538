"""Writes failed authentications to the audit log. Repeats of the same kind are collapsed to one record per minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from mcp_server.audit import AuditLog
from mcp_server.audit.log_rate_limiter import LogRateLimiter
from mcp_server.errors import NetworkToolsError
from mcp_server.identity.base import Rejected
from mcp_server.identity.lockout import source_of
from mcp_server.logger import get_logger

logger = get_logger(__name__)

MOST_KINDS: Final = 64
"""Maximum number of records per minute, because each record is a synced write.

Further failures are counted under the address ``others``.
"""
OTHERS: Final = "others"


class FailedAuthentications:
    """Logs rejected credentials, without the credentials themselves. For one event loop.

    ``terms`` returns the hash of the policy in force and the enforcement, for each record.
    """

    def __init__(
        self, audit: AuditLog, terms: Callable[[], dict[str, str]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._audit = audit
        self._terms = terms
        self._log_limiter: LogRateLimiter[tuple[str, str, str, str]] = LogRateLimiter(self._append, clock)

    async def log(self, peer: str, rejected: Rejected) -> None:
        """Log a rejected credential from the address ``peer``, or count it if its kind was logged within the minute."""
        key = (source_of(peer), rejected.kind, rejected.reason, rejected.key_id or "")
        if key not in self._log_limiter and len(self._log_limiter) >= MOST_KINDS:
            key = (OTHERS, "", "", "")
        client = peer[:64] if key[0] != OTHERS else OTHERS
        code = "locked_out" if rejected.reason == "locked_out" else "unauthorized"
        # Without a colon, because the log redacts what follows `token:` as a secret.
        reason = f"{rejected.kind} {rejected.reason}"
        fields: dict[str, Any] = {"interface": "http", "client": client, "code": code, "reason": reason}
        fields |= {"id": rejected.key_id} if rejected.key_id else {}
        if self._log_limiter.count(key, fields):
            await self._append(fields)

    async def close(self) -> None:
        """Write the counts that are not logged yet. Can be called twice."""
        await self._log_limiter.close()

    async def _append(self, fields: dict[str, Any]) -> None:
        try:
            await self._audit.append("authentication", decision="deny", **fields, **self._terms())
        except NetworkToolsError as failure:
            # The request is refused in any case, so a failure of the audit log does not change the answer.
            logger.error("audit.authentication_not_logged", message=failure.message)  # noqa: TRY400 - a traceback says no more
