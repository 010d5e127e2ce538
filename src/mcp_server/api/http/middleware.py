"""Middleware of the HTTP interfaces: the names that the server answers to, and limits for bodies and requests.

Host and Origin are compared with exact lists, whatever address is bound (DNS rebinding: CVE-2025-66416). The SDK has
such lists too, but it compares prefixes by default, and checks nothing if the server is bound to a public address.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from typing import Final

from mcp_server.api.http.asgi import ASGIApp, Message, Receive, Scope, Send, header_values
from mcp_server.api.http.callers import find_identity
from mcp_server.api.http.problems import send_problem
from mcp_server.errors import AccessError, ArgumentError, BusyError, NetworkToolsError

MAX_BODY: Final = 4 * 1024 * 1024
"""Maximum length of a request body in bytes. The stdio interface has the same limit for a line."""
BODY_SEC: Final = 10.0
"""Seconds within which the next part of a body must arrive."""
MIN_BYTES_PER_SEC: Final = 16 * 1024
"""The slowest rate at which a body may arrive, after the first `BODY_SEC`."""
MAX_BODIES: Final = 64 * 1024 * 1024
"""Maximum bytes of all bodies that are being read. The first `SMALL_BODY` bytes of each body do not count, so that
large and slow bodies delay no ordinary call. The number of connections is limited, so this memory is limited too.
"""
SMALL_BODY: Final = 64 * 1024
RESERVED_REQUESTS: Final = 4
"""Requests for health, metrics and ``/admin/`` that are allowed above ``server.max_connections``.

They let operators reach a server that is at its limit.
"""
CLOSE: Final = (b"connection", b"close")
"""Header of every answer to an unauthenticated caller, whose connection is closed (RFC 9112 section 9.6)."""


class HostMiddleware:
    """Answers 403 unless Host, and Origin if it is sent, are on the lists of allowed values.

    The whole value is compared, without regard to case (RFC 9110 section 4.2.3). The applications behind see it in
    lower case. A request without Host, or with two, is refused, because it is unclear which server it is meant for.
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
            return _forbidden(f"The request has {len(hosts)} Host headers instead of one.")
        if _text(hosts[0]) not in self._hosts:
            return _forbidden(f"Host {_text(hosts[0])[:255]!r} is not one of this server's host names.")
        origins = header_values(scope, b"origin")
        if len(origins) > 1:
            return _forbidden(f"The request has {len(origins)} Origin headers instead of one.")
        if origins and _text(origins[0]) not in self._origins:
            return _forbidden(f"Origin {_text(origins[0])[:255]!r} is not allowed on this server.")
        return None


def _text(value: bytes) -> str:
    return value.decode("latin-1").lower()


def _forbidden(message: str) -> NetworkToolsError:
    return AccessError(message, code="forbidden_origin")


class BodyLimitMiddleware:
    """Reads the whole body before it calls the application, within limits of size and time.

    Answers 413 to more than ``max_body`` bytes, whether the length was declared or not. Answers 408 if nothing arrives
    for ``body_sec`` seconds, or if the whole body arrives slower than ``min_bytes_per_sec``. Answers 429 if all bodies
    that are being read would exceed ``max_bodies`` bytes.

    The body is read here because a framework that reaches a limit while it reads answers with its own error.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body: int = MAX_BODY,
        *,
        body_sec: float = BODY_SEC,
        min_bytes_per_sec: int = MIN_BYTES_PER_SEC,
        max_bodies: int = MAX_BODIES,
    ) -> None:
        self._app = app
        self._max_body = max_body
        self._body_sec = body_sec
        self._min_bytes_per_sec = min_bytes_per_sec
        self._max_bodies = max_bodies
        self._bodies = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body, or answer it with a problem body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            declared = header_values(scope, b"content-length")
            if any(value.isdigit() and int(value) > self._max_body for value in declared):
                raise self._too_large()
            body = await self._read(receive)
        except NetworkToolsError as refusal:
            headers = [CLOSE] if refusal.code == "request_timeout" else []
            await send_problem(scope, receive, send, refusal, headers)
            return
        if body is None:  # the client has disconnected
            return
        replay: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        del body  # only the application keeps it from here on, because a call may last long

        async def receive_again() -> Message:
            return replay.pop() if replay else await receive()

        await self._app(scope, receive_again, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, or None if the client disconnects."""
        body = bytearray()
        counted = 0
        now = asyncio.get_running_loop().time
        started = now()
        message: Message = {"more_body": True}
        try:
            while message.get("more_body", False):
                deadline = min(now(), started + len(body) / self._min_bytes_per_sec) + self._body_sec
                async with asyncio.timeout_at(deadline):
                    message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if len(body) > self._max_body:
                    raise self._too_large()
                more = max(0, len(body) - SMALL_BODY) - counted
                if more and self._bodies + more > self._max_bodies:
                    raise BusyError(f"The server is reading request bodies of {self._bodies} bytes.", retry_after=1)
                counted += more
                self._bodies += more
        except TimeoutError:
            late = f"The request body arrived too slowly: {len(body)} bytes in {now() - started:.0f} seconds."
            raise BusyError(late, code="request_timeout", retry_after=1) from None
        finally:
            self._bodies -= counted
        return bytes(body)

    def _too_large(self) -> NetworkToolsError:
        return ArgumentError(f"The request body is larger than {self._max_body} bytes.", code="body_too_large")


class RequestLimitMiddleware:
    """Answers 429 while ``limit`` requests of known callers are in progress.

    Place it behind authentication and behind `BodyLimitMiddleware`, so that neither unknown callers nor slow bodies
    count. Endless streams (GET of a path in ``streams``, and MCP subscriptions) have their own limit, half as high.
    Requests for health, metrics and ``/admin/`` may exceed the limit by ``reserved``. One caller that is not an admin
    gets at most three quarters of each limit.
    """

    def __init__(self, app: ASGIApp, limit: int, *, streams: Collection[str] = (), reserved: int = 0) -> None:
        self._app = app
        self._limit = limit
        self._streams = frozenset(streams)
        self._reserved = reserved
        self._in_progress: Counter[str] = Counter()
        self._of_caller: Counter[tuple[str, str | None]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a problem body."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        kind, limit = "requests are in progress", self._limit
        if self._is_endless(scope):
            kind, limit = "streams are open", max(1, self._limit // 2)
        elif _is_for_operators(scope):
            limit += self._reserved
        caller = _limited_caller(scope)
        try:
            self._check(kind, limit, caller)
        except BusyError as refusal:
            await send_problem(scope, receive, send, refusal)
            return
        self._in_progress[kind] += 1
        self._of_caller[kind, caller] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_progress[kind] -= 1
            self._of_caller[kind, caller] -= 1
            if not self._of_caller[kind, caller]:
                del self._of_caller[kind, caller]

    def _check(self, kind: str, limit: int, caller: str | None) -> None:
        if (count := self._in_progress[kind]) >= limit:
            raise BusyError(f"{count} {kind}, as many as server.max_connections allows.", retry_after=1)
        share = max(1, limit * 3 // 4)
        if caller is not None and self._of_caller[kind, caller] >= share:
            raise BusyError(f"{share} {kind} for this caller, as many as one caller may have.", retry_after=1)

    def _is_endless(self, scope: Scope) -> bool:
        # The header can be trusted: the SDK refuses a message whose method differs from it.
        if scope.get("method") == "POST":
            return b"subscriptions/listen" in header_values(scope, b"mcp-method")
        return scope.get("method") == "GET" and scope["path"].rstrip("/") in self._streams


def _limited_caller(scope: Scope) -> str | None:
    """Return the caller whose share of the limit is checked, or None for an admin."""
    identity = find_identity(scope)
    return None if identity is None or identity.access.sees_all_runs else identity.name


def _is_for_operators(scope: Scope) -> bool:
    return scope["path"] in {"/health", "/metrics"} or scope["path"].startswith("/admin/")
