"""The HTTP interfaces on one port: MCP at /mcp in both wire eras, the REST API elsewhere, one set of guards before both.

Every request passes, in this order: `HostGuard` (is it meant for this server?), `BearerAuth` (who calls?),
`BodyLimit` (does its body come, and is it small enough?), `Permissions` (may the caller ask for this?), `RequestLimit`
(is there a place?). Nothing of an unknown
caller's body is kept, and its connection is closed with the answer. The two probes of an orchestrator, which say no
more than yes or no, pass none of them.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from mcp_server.api.http.connections import HEAD_SEC, KEPT_PLACES, BoundedSocket, RequestLimit, most_connections
from mcp_server.api.http.middleware import CLOSE, MAX_BODY, BodyLimit, HostGuard
from mcp_server.api.http.problems import ASGIApp, Message, Receive, Scope, Send
from mcp_server.api.http.sessions import ForgetIdle
from mcp_server.errors import ConfigError, NetworkToolsError, PlatformError

if TYPE_CHECKING:
    import ssl

    from mcp.server.lowlevel import Server
    from starlette.applications import Starlette

    from mcp_server.api.http.uvicorn_server import Stop

MCP_PATH: Final = "/mcp"

PROBES: Final = frozenset({"/livez", "/readyz"})
"""What is answered to anybody who asks with GET or HEAD, whatever the Host: a probe knows neither token nor name."""

MAX_SESSIONS: Final = 512
SESSION_IDLE_SEC: Final = 15 * 60.0
"""Bounds of the 2025-era sessions: clients rarely end theirs, so an idle one is forgotten, and at the bound the one
that is idle the longest. Later eras have none.
"""


def mcp_app(
    server: Server[Any],
    *,
    hosts: Collection[str],
    origins: Collection[str],
    max_sessions: int = MAX_SESSIONS,
    session_idle_sec: float = SESSION_IDLE_SEC,
    max_body: int = MAX_BODY,
) -> Starlette:
    """``server`` at /mcp on the SDK's streamable HTTP transport, which picks the wire era per request.

    Answers are streams where a call reports progress or asks the client something, and plain JSON otherwise. The
    lists are the ones of `HostGuard`, given to the SDK's own check too. The app's lifespan enters the server's.
    """
    from mcp.server.transport_security import TransportSecuritySettings

    app = server.streamable_http_app(
        streamable_http_path=MCP_PATH,
        json_response=False,
        max_request_body_size=max_body,
        session_idle_timeout=session_idle_sec,
        max_sessions=2 * max_sessions,  # the middleware's is the bound, and may be passed by some that open together
        transport_security=TransportSecuritySettings(allowed_hosts=sorted(hosts), allowed_origins=sorted(origins)),
    )
    app.add_middleware(ForgetIdle, manager=server.session_manager, most=max_sessions)
    return app


def compose(
    mcp: Starlette,
    rest: Starlette | None,
    *,
    authenticate: Callable[[ASGIApp], ASGIApp],
    hosts: Collection[str],
    origins: Collection[str],
    authorize: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    max_body: int = MAX_BODY,
    max_requests: int = 100,
) -> ASGIApp:
    """One app of the two: /mcp goes to ``mcp`` and all else to ``rest``, behind the guards.

    Over ``max_requests`` requests under way another one is answered with 429. ``authenticate`` is `auth.BearerAuth` or
    `auth.NoAuthentication`, which say to the apps who calls; ``authorize`` puts the guard before the apps that asks what the
    caller may do (`permissions.Permissions`).
    Both apps' lifespans run, ``mcp``'s outermost. Without ``rest`` every other path is a 404 of the MCP app.
    """
    interfaces = _Router(mcp, rest)
    limited = RequestLimit(interfaces, max_requests, streams=(MCP_PATH, "/events"), kept=KEPT_PLACES)
    app = authenticate(BodyLimit(authorize(limited), max_body))
    guarded = HostGuard(app, frozenset(hosts), frozenset(origins))

    async def probed(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in {"GET", "HEAD"} or scope["path"] not in PROBES:
            await guarded(scope, receive, send)
            return

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], CLOSE]}
            elif scope["method"] == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        await interfaces({**scope, "method": "GET"}, receive, closing)

    return probed


class _Router:
    """Chooses the app by path. No mount, because a mount would rewrite the path that the apps see."""

    def __init__(self, mcp: Starlette, rest: Starlette | None) -> None:
        from starlette.routing import Router

        self._mcp = mcp
        self._rest = rest or mcp
        self._lifespan = Router(lifespan=self._both_lifespans)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["path"].rstrip("/") == MCP_PATH:
            await self._mcp({**scope, "path": MCP_PATH}, receive, send)
        else:
            await self._rest(scope, receive, send)

    @asynccontextmanager
    async def _both_lifespans(self, _: Any) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for app in dict.fromkeys((self._mcp, self._rest)):
                await stack.enter_async_context(app.router.lifespan_context(app))
            yield


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound and listening socket. ``port`` is the real one, also where 0 was asked for."""

    sock: socket.socket
    host: str
    port: int
    scheme: str = "http"

    @property
    def url(self) -> str:
        """The base address to give to a client on this machine, without a trailing slash."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - a wildcard is no address to connect to
        return f"{self.scheme}://[{host}]:{self.port}" if ":" in host else f"{self.scheme}://{host}:{self.port}"

    def close(self) -> None:
        """Stop listening; for a caller that never came to `serve_http`."""
        self.sock.close()


def listen(host: str, port: int, *, backlog: int = 128) -> Listener:
    """Bind ``host`` (an address or a name; a name's first address is taken) and ``port`` (0: any free one).

    Raises `ConfigError` for a port in use or an address this machine does not have, `PlatformError` where binding is
    not permitted.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.create_server(address[:2], family=family, backlog=backlog)
    except OSError as exc:
        raise _bind_error(host, port, exc) from exc
    return Listener(sock, host, sock.getsockname()[1])


def adopt(sock: socket.socket, host: str) -> Listener:
    """The listener of a socket that listens already, which somebody else bound to ``host``."""
    return Listener(sock, host, sock.getsockname()[1])


def _bind_error(host: str, port: int, exc: OSError) -> NetworkToolsError:
    where = f"server.host {host!r} with server.port {port}"
    if exc.errno == errno.EADDRINUSE:
        return ConfigError(
            f"{where}: the port is in use by another process",
            hint="Choose another port with --port or MCP_SERVER_PORT, or stop the process that listens there.",
        )
    if exc.errno in {errno.EACCES, errno.EPERM}:
        return PlatformError(
            f"{where}: binding is not permitted ({exc.strerror})", hint="Choose a port of 1024 or above."
        )
    return ConfigError(f"{where} cannot be bound: {exc.strerror}", hint="Give an address of this machine.")


async def serve_http(
    app: ASGIApp,
    listener: Listener,
    *,
    shutdown_grace: float = 30.0,
    head_sec: float = HEAD_SEC,
    ready: Callable[[str], None] | None = None,
    stop: Stop | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve ``app`` on ``listener`` until SIGTERM or SIGINT, or with ``stop`` until that says so; then return.

    ``ready`` gets the base address once requests are answered. To close is to listen no more, to end event streams,
    and to give requests under way ``shutdown_grace`` seconds (or what ``stop`` has left), after which they are
    cancelled; a second SIGINT cancels them at once. A connection that sends no whole head of a request for
    ``head_sec`` seconds is closed, and one more than `most_connections` at once. Raises `NetworkToolsError` where the
    app does not start; the log has the reason. With ``tls`` nothing but TLS is spoken.
    """
    from mcp_server.api.http.uvicorn_server import make_server

    def told() -> None:
        if ready is not None:
            ready(replace(listener, scheme="http" if tls is None else "https").url)

    # Connections inherit it. asyncio sets it only where the socket says that it is TCP, which one made without a
    # protocol does not: then an answer's body waits 40 ms for the client to acknowledge its head.
    listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock = BoundedSocket(listener.sock, most_connections())
    try:
        server = make_server(app, told, shutdown_grace=shutdown_grace, head_sec=head_sec, stop=stop, tls=tls)
        await server.serve([sock])
    except SystemExit as exc:
        raise NetworkToolsError("the HTTP server could not start; the log above has the reason") from exc
    finally:
        sock.close()
