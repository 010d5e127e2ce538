"""Guards of the HTTP doors: who may be spoken to by which name, and how much may be sent.

Host and Origin are held against exact lists whatever the bind address (DNS rebinding: CVE-2025-66416).
The SDK has such lists as well, but compares prefixes by default and is silent behind a public address.
"""

from __future__ import annotations

from typing import Final

from mcp_server.doors.problems import ASGIApp, Message, Receive, Scope, Send, header_values, send_problem
from mcp_server.errors import AccessError, ArgumentError, NetworkToolsError

MAX_BODY: Final = 4 * 1024 * 1024
"""Bytes of the longest request body that is read. The same bound as a line on the stdio door."""


class HostGuard:
    """ASGI guard that answers 403 unless Host, and Origin where there is one, are on the lists.

    Compared whole and without regard to case (RFC 9110 section 4.2.3); the apps behind see the lower-case form.
    A request without Host, or with two, is refused: it is not clear whom it is for.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], origins: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a problem body that names the header."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await send_problem(scope, receive, send, refusal)
            return
        headers = [(key, value.lower() if key in {b"host", b"origin"} else value) for key, value in scope["headers"]]
        await self._app({**scope, "headers": headers}, receive, send)

    def _refusal(self, scope: Scope) -> NetworkToolsError | None:
        hosts = header_values(scope, b"host")
        if len(hosts) != 1:
            return _forbidden(f"the request has {len(hosts)} Host headers instead of one")
        if _text(hosts[0]) not in self._hosts:
            return _forbidden(f"Host {_text(hosts[0])[:255]!r} is not one this server answers to")
        origins = header_values(scope, b"origin")
        if len(origins) > 1:
            return _forbidden(f"the request has {len(origins)} Origin headers")
        if origins and _text(origins[0]) not in self._origins:
            return _forbidden(f"Origin {_text(origins[0])[:255]!r} is not one this server answers to")
        return None


def _text(value: bytes) -> str:
    return value.decode("latin-1").lower()


def _forbidden(message: str) -> NetworkToolsError:
    return AccessError(message, code="forbidden_origin")


class BodyLimit:
    """ASGI guard that answers 413 to a body over ``max_body`` bytes, whether its length was declared or not.

    The whole body is read before the app is called. A framework that meets the limit half-way through would turn it
    into an error of its own.
    """

    def __init__(self, app: ASGIApp, max_body: int = MAX_BODY) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body, or answer it with a problem body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = header_values(scope, b"content-length")
        if any(value.isdigit() and int(value) > self._max_body for value in declared):
            await send_problem(scope, receive, send, self._too_large())
            return
        body = bytearray()
        message: Message = {"more_body": True}
        while message.get("more_body", False):
            message = await receive()
            if message["type"] == "http.disconnect":
                return  # nobody is left to answer
            body += message.get("body", b"")
            if len(body) > self._max_body:
                await send_problem(scope, receive, send, self._too_large())
                return
        replay: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive_again() -> Message:
            return replay.pop() if replay else await receive()

        await self._app(scope, receive_again, send)

    def _too_large(self) -> NetworkToolsError:
        return ArgumentError(f"the request body is larger than {self._max_body} bytes", code="body_too_large")
