"""Room for another 2025-era session where there is none: of whoever has the most, the longest unused is forgotten."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from mcp_server.api.http.problems import ASGIApp, Receive, Scope, Send, header_values, send_problem
from mcp_server.errors import BusyError

if TYPE_CHECKING:
    from mcp.server.streamable_http import StreamableHTTPServerTransport
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager


class ForgetIdle:
    """ASGI wrapper of the SDK's app that keeps the sessions of ``manager`` to ``most``.

    The SDK alone would refuse everybody new until one has been idle for its whole time. A client whose session is
    forgotten gets 404, and opens another (MCP 2025-11-25, transports, session management). It is one of the caller's
    with the most of them, so that whoever opens them without end loses its own. Where each has a request or a stream
    open, the answer is 429.
    """

    def __init__(self, app: ASGIApp, manager: StreamableHTTPSessionManager, most: int) -> None:
        self._app = app
        self._manager = manager
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with room for the session it may open."""
        if scope["type"] == "http" and self._may_open(scope):
            sessions = self._sessions()
            if len(sessions) >= self._most:
                longest = self._longest_idle(sessions)
                if longest.idle_scope is None or _idle_until(longest) == math.inf:
                    error = BusyError(f"{len(sessions)} MCP sessions are open, and all in use", retry_after=1)
                    await send_problem(scope, receive, send, error)
                    return
                longest.idle_scope.cancel()  # what the SDK does itself at the end of the idle time
        await self._app(scope, receive, send)

    def _may_open(self, scope: Scope) -> bool:
        from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

        if scope["method"] != "POST" or header_values(scope, b"mcp-session-id"):
            return False
        versions = header_values(scope, b"mcp-protocol-version")
        return not versions or versions[0].decode("latin-1") in HANDSHAKE_PROTOCOL_VERSIONS

    def _sessions(self) -> list[StreamableHTTPServerTransport]:
        known = self._manager._server_instances.values()  # noqa: SLF001 - the SDK shows them nowhere else
        return [each for each in known if each.idle_scope is None or not each.idle_scope.cancel_called]

    def _longest_idle(self, sessions: list[StreamableHTTPServerTransport]) -> StreamableHTTPServerTransport:
        """The one to forget: of the callers with the most sessions, or where those are all in use, of all."""
        owners = self._manager._session_owners  # noqa: SLF001 - as below
        found = [owners.get(each.mcp_session_id or "") for each in sessions]
        whose = [None if owner is None else owner["client_id"] for owner in found]
        held = Counter(whose)
        most = max(held.values())
        crowd = [each for each, owner in zip(sessions, whose, strict=True) if held[owner] == most]
        longest = min(crowd, key=_idle_until)
        return min(sessions, key=_idle_until) if _idle_until(longest) == math.inf else longest


def _idle_until(session: StreamableHTTPServerTransport) -> float:
    """When the SDK would forget it, infinite while it is in use: the least has been idle for the longest."""
    return math.inf if session.idle_scope is None else session.idle_scope.deadline
