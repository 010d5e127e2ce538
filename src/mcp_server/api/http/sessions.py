"""Limits the MCP sessions of protocol revision 2025.

Evicts the least recently used session of the caller with the most sessions when the limit is reached.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from mcp_server.api.http.asgi import ASGIApp, Receive, Scope, Send, header_values
from mcp_server.api.http.problems import send_problem
from mcp_server.errors import BusyError

if TYPE_CHECKING:
    from mcp.server.streamable_http import StreamableHTTPServerTransport
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager


class SessionLimitMiddleware:
    """Keeps the number of sessions of ``manager`` at or below ``limit``.

    The SDK alone would refuse every new client until a session reaches the idle timeout. A client whose session was
    evicted gets 404, and opens a new session (MCP 2025-11-25, transports, session management). The evicted session
    belongs to the caller with the most sessions, so a caller that keeps opening sessions evicts its own. If every
    session has an open request or stream, the answer is 429.
    """

    def __init__(self, app: ASGIApp, manager: StreamableHTTPSessionManager, limit: int) -> None:
        self._app = app
        self._manager = manager
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on. If it may open a session, make sure that there is space for it."""
        if scope["type"] == "http" and _may_open(scope):
            sessions = self._sessions()
            if len(sessions) >= self._limit:
                evicted = self._choose(sessions)
                if evicted.idle_scope is None or _idle_until(evicted) == math.inf:
                    error = BusyError(f"{len(sessions)} MCP sessions are open, and all are in use.", retry_after=1)
                    await send_problem(scope, receive, send, error)
                    return
                evicted.idle_scope.cancel()  # as the SDK does at the end of the idle time
        await self._app(scope, receive, send)

    def _sessions(self) -> list[StreamableHTTPServerTransport]:
        known = self._manager._server_instances.values()  # noqa: SLF001 - the SDK has no public name for them
        return [each for each in known if each.idle_scope is None or not each.idle_scope.cancel_called]

    def _choose(self, sessions: list[StreamableHTTPServerTransport]) -> StreamableHTTPServerTransport:
        """The session to evict: of the callers with the most sessions, or of all callers if those are in use."""
        owners = self._manager._session_owners  # noqa: SLF001 - the SDK has no public name for them
        found = [owners.get(each.mcp_session_id or "") for each in sessions]
        callers = [None if owner is None else owner["client_id"] for owner in found]
        count = Counter(callers)
        most = max(count.values())
        candidates = [each for each, caller in zip(sessions, callers, strict=True) if count[caller] == most]
        longest_idle = min(candidates, key=_idle_until)
        return min(sessions, key=_idle_until) if _idle_until(longest_idle) == math.inf else longest_idle


def _may_open(scope: Scope) -> bool:
    from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

    if scope["method"] != "POST" or header_values(scope, b"mcp-session-id"):
        return False
    versions = header_values(scope, b"mcp-protocol-version")
    return not versions or versions[0].decode("latin-1") in HANDSHAKE_PROTOCOL_VERSIONS


def _idle_until(session: StreamableHTTPServerTransport) -> float:
    """Return when the SDK would close the session, or infinity while it is in use.

    The session with the lowest value has been idle the longest.
    """
    return math.inf if session.idle_scope is None else session.idle_scope.deadline
