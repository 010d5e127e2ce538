"""Failed authentications on the audit log: each kind from each address, and of a flood one a minute with the number."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from mcp_server.audit import AuditLog
from mcp_server.audit.log_rate_limiter import LogRateLimiter
from mcp_server.errors import NetworkToolsError
from mcp_server.identity.base import Rejected
from mcp_server.identity.lockout import source_of

logger = logging.getLogger(__name__)

MOST_KINDS: Final = 64
"""Records a minute, at most: each costs a synced write. What is over it is counted under the address ``others``."""
OTHERS: Final = "others"


class FailedAuthentications:
    """Writes who was not let in, without what they sent; used from one event loop.

    ``terms`` gives the hash of the policy in force and the enforcement, for each record.
    """

    def __init__(
        self, audit: AuditLog, terms: Callable[[], dict[str, str]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._audit = audit
        self._terms = terms
        self._log_limiter: LogRateLimiter[tuple[str, str, str, str]] = LogRateLimiter(self._append, clock)

    async def log(self, peer: str, rejected: Rejected) -> None:
        """Put a failure on the log, or count it where one of its kind is there already."""
        key = (source_of(peer), rejected.kind, rejected.reason, rejected.key_id or "")
        if key not in self._log_limiter and len(self._log_limiter) >= MOST_KINDS:
            key = (OTHERS, "", "", "")
        where = peer[:64] if key[0] != OTHERS else OTHERS
        code = "locked_out" if rejected.reason == "locked_out" else "unauthorized"
        # Without a colon, behind which the log would see the value of a token.
        reason = f"{rejected.kind} {rejected.reason}"
        fields: dict[str, Any] = {"interface": "http", "client": where, "code": code, "reason": reason}
        fields |= {"id": rejected.key_id} if rejected.key_id else {}
        if self._log_limiter.count(key, fields):
            await self._append(fields)

    async def close(self) -> None:
        """Write what is still counted; safe to call twice."""
        await self._log_limiter.close()

    async def _append(self, fields: dict[str, Any]) -> None:
        try:
            await self._audit.append("authentication", decision="deny", **fields, **self._terms())
        except NetworkToolsError as failure:
            # The caller is refused all the same, and what is refused needs no log to go on.
            logger.error("audit.authentication_not_logged: %s", failure.message)  # noqa: TRY400 - no traceback: the failure is a disk
