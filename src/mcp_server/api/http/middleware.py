"""Guards of the HTTP interfaces: who may be spoken to by which name, and how much may be sent.

Host and Origin are held against exact lists whatever the bind address (DNS rebinding: CVE-2025-66416).
The SDK has such lists as well, but compares prefixes by default and is silent behind a public address.
"""

from __future__ import annotations

import asyncio
from typing import Final

from mcp_server.api.http.problems import ASGIApp, Message, Receive, Scope, Send, header_values, send_problem
from mcp_server.errors import AccessError, ArgumentError, BusyError, NetworkToolsError

MAX_BODY: Final = 4 * 1024 * 1024
"""Bytes of the longest request body that is read. The same bound as a line on the stdio interface."""
BODY_SEC: Final = 10.0
"""Seconds in which more of a body must come."""
LEAST_RATE: Final = 16 * 1024
"""Bytes a second at which a body must come, the first `BODY_SEC` aside."""
MAX_BODIES: Final = 64 * 1024 * 1024
"""Bytes kept of all bodies that are being read. The first `SMALL_BODY` of each are free, so that large bodies that come
slowly hold up no ordinary call; connections are bounded, and so are these.
"""
SMALL_BODY: Final = 64 * 1024
CLOSE: Final = (b"connection", b"close")
"""Header of every answer to a stranger: a connection that rests is for known callers (RFC 9112 section 9.6)."""


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
            await send_problem(scope, receive, send, refusal, [CLOSE])
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
    """ASGI guard that reads the whole body before the app is called, within bounds of size and time.

    Over ``max_body`` bytes it answers 413, whether the length was declared or not; 408 where nothing comes for
    ``body_sec`` seconds or all of it comes slower than ``least_rate`` bytes a second; 429 where all bodies that are
    being read hold ``max_bodies`` bytes. A framework that meets a limit half-way through would turn it into an error
    of its own.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body: int = MAX_BODY,
        *,
        body_sec: float = BODY_SEC,
        least_rate: int = LEAST_RATE,
        max_bodies: int = MAX_BODIES,
    ) -> None:
        self._app = app
        self._max_body = max_body
        self._body_sec = body_sec
        self._least_rate = least_rate
        self._max_bodies = max_bodies
        self._kept = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body, or answer it with a problem body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            declared = header_values(scope, b"content-length")
            if any(value.isdigit() and int(value) > self._max_body for value in declared):
                raise self._too_large()
            whole = await self._read(receive)
        except NetworkToolsError as refusal:
            headers = [CLOSE] if refusal.code == "request_timeout" else []
            await send_problem(scope, receive, send, refusal, headers)
            return
        if whole is None:
            return  # nobody is left to answer
        replay: list[Message] = [{"type": "http.request", "body": whole, "more_body": False}]
        del whole  # it is the app's: a call may last for long

        async def receive_again() -> Message:
            return replay.pop() if replay else await receive()

        await self._app(scope, receive_again, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None where the client is gone."""
        body = bytearray()
        kept = 0
        now = asyncio.get_running_loop().time
        first = now()
        message: Message = {"more_body": True}
        try:
            while message.get("more_body", False):
                until = min(now(), first + len(body) / self._least_rate) + self._body_sec
                async with asyncio.timeout_at(until):
                    message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if len(body) > self._max_body:
                    raise self._too_large()
                more = max(0, len(body) - SMALL_BODY) - kept
                if more and self._kept + more > self._max_bodies:
                    raise BusyError(f"bodies of {self._kept} bytes are being read at this moment", retry_after=1)
                kept += more
                self._kept += more
        except TimeoutError:
            message_text = f"the request body did not come: {len(body)} bytes in {now() - first:.0f} seconds"
            raise BusyError(message_text, code="request_timeout", retry_after=1) from None
        finally:
            self._kept -= kept
        return bytes(body)

    def _too_large(self) -> NetworkToolsError:
        return ArgumentError(f"the request body is larger than {self._max_body} bytes", code="body_too_large")
