"""Connections of the HTTP interfaces: the listening socket, its limit, and a deadline for the head of each request."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import time
import weakref
from dataclasses import dataclass
from typing import Any, Final

from mcp_server.errors import ConfigError, NetworkToolsError, PlatformError
from mcp_server.logger import get_logger

logger = get_logger(__name__)

HEAD_SEC: Final = 10.0
"""Seconds within which a connection must send the head of a request. Otherwise it is closed."""
KEEP_ALIVE_SEC: Final = 100
"""Seconds for which a connection may be idle between requests.

Common clients keep an idle connection for less (httpx 5 s, nginx 60 s, Go's net/http 90 s), so the client closes it
first. A request that is sent while the server closes the connection would be lost.
"""
UNREAD_SEC: Final = 30.0
"""Seconds within which a client must read some of the data that waits for it. Otherwise its connection is closed, and
everything that its answer holds is freed.
"""
UNREAD_AT_STOP_SEC: Final = 1.0
"""The same limit while the server stops, in seconds."""
SPARE_DESCRIPTORS: Final = 256
"""File descriptors reserved for programs, store, logs and checks, but at most half of all descriptors."""
WARNING_SEC: Final = 60.0
"""Seconds between two warnings of the same kind about connections."""

_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_PAUSE_SEC: Final = 0.5
"""Seconds without accepting after the system had no free descriptor. Shorter than asyncio's own pause of 1 s."""
_CLOSED_AT_ONCE: Final = 64
"""Maximum number of connections that are closed in one iteration of the event loop."""


def most_connections() -> int:
    """Return how many connections a listener may hold open under the process's limit on descriptors (RLIMIT_NOFILE)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 20
    return max(1, soft - min(soft // 2, SPARE_DESCRIPTORS))


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound and listening socket. ``port`` is the port in use, even if port 0 was requested."""

    sock: socket.socket
    host: str
    port: int
    scheme: str = "http"

    @property
    def url(self) -> str:
        """The base address for a client on this machine, without a trailing slash."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - clients cannot connect to a wildcard
        return f"{self.scheme}://[{host}]:{self.port}" if ":" in host else f"{self.scheme}://{host}:{self.port}"

    def close(self) -> None:
        """Stop listening, if the socket was never passed to `serve_http`."""
        self.sock.close()


def listen(host: str, port: int, *, backlog: int = 128) -> Listener:
    """Bind ``host`` (an address, or a name whose first address is used) and ``port`` (0 for any free one).

    Raises ConfigError if the port is in use or the address is not one of this machine, PlatformError if binding is not
    permitted.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.create_server(address[:2], family=family, backlog=backlog)
    except OSError as exc:
        raise _bind_error(host, port, exc) from exc
    return Listener(sock, host, sock.getsockname()[1])


def adopt(sock: socket.socket, host: str) -> Listener:
    """The listener of a socket that another process has bound to ``host``."""
    return Listener(sock, host, sock.getsockname()[1])


def _bind_error(host: str, port: int, exc: OSError) -> NetworkToolsError:
    what = f"server.host {host!r} with server.port {port}"
    if exc.errno == errno.EADDRINUSE:
        return ConfigError(
            f"{what} cannot be bound: the port is in use by another process.",
            hint="Choose another port with --port or MCP_SERVER_PORT, or stop the process that uses it.",
        )
    if exc.errno in {errno.EACCES, errno.EPERM}:
        return PlatformError(
            f"{what} cannot be bound: this user is not permitted to ({exc.strerror}).",
            hint="Choose a port of 1024 or above.",
        )
    return ConfigError(
        f"{what} cannot be bound: {exc.strerror}.", hint="Set server.host to an address of this machine."
    )


class BoundedSocket(socket.socket):
    """A listening socket that closes a new connection at once while ``limit`` accepted connections are open.

    The limit must be in the socket, because asyncio accepts every waiting connection before it reports the first one.
    If the system has no descriptor left, asyncio tries again as often as its backlog is long, and logs a traceback
    each time.
    """

    def __init__(self, sock: socket.socket, limit: int) -> None:
        """Take over the descriptor of ``sock``, which cannot be used afterwards."""
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._limit = limit
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._paused_until = 0.0
        self._warning = LimitedWarning("connections.turned_away")

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection. Raises BlockingIOError if none is waiting."""
        if time.monotonic() < self._paused_until:
            raise BlockingIOError
        try:
            for _ in range(_CLOSED_AT_ONCE):
                accepted, address = super().accept()
                if self._is_below_limit():
                    self._open.add(accepted)
                    return accepted, address
                accepted.close()
                self._warning.log(f"{self._limit} connections are open, as many as the limit on descriptors allows.")
        except OSError as exc:
            if exc.errno in _NO_DESCRIPTORS:
                # asyncio stops listening for a second, but first calls this again as often as its backlog is long.
                self._paused_until = time.monotonic() + _ACCEPT_PAUSE_SEC
            raise
        raise BlockingIOError

    def _is_below_limit(self) -> bool:
        if len(self._open) >= self._limit:
            self._open = weakref.WeakSet(each for each in self._open if each.fileno() >= 0)
        return len(self._open) < self._limit


class LimitedWarning:
    """A warning that is logged at most every `WARNING_SEC` seconds, with the number of events since the last one."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._next = 0.0
        self._count = 0

    def log(self, message: str) -> None:
        """Count the event, and log it if the last warning is long enough ago."""
        self._count += 1
        now = time.monotonic()
        if now >= self._next:
            logger.warning(self._event, count=self._count, message=message)
            self._next, self._count = now + WARNING_SEC, 0


class AcceptErrorHandler:
    """Exception handler of an event loop. Logs at most one line a minute about missing descriptors."""

    def __init__(self) -> None:
        self._warning = LimitedWarning("connections.no_descriptor")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log ``context``: one line for a missing descriptor, anything else as asyncio does."""
        exc = context.get("exception")
        if isinstance(exc, OSError) and exc.errno in _NO_DESCRIPTORS and "accept" in context.get("message", ""):
            self._warning.log(f"A connection could not be accepted: {exc.strerror}.")
        else:
            loop.default_exception_handler(context)


def deadline_protocol(head_sec: float = HEAD_SEC, unread_sec: float = UNREAD_SEC) -> Any:  # noqa: C901 - short methods of a class, counted as one function
    """Uvicorn's h11 protocol with a deadline for the head of each request (RFC 9112 section 9.5 does not set one)."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class DeadlineProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
            super().connection_made(transport)
            # The kernel ends a connection whose peer reads nothing for this time (tcp(7), RFC 5482). This also applies
            # to the rest of a complete answer, for which uvicorn waits without a limit.
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unread_sec * 1000))
            self._expect_head()

        def data_received(self, data: bytes) -> None:
            if self._deadline is None:
                self._expect_head()
            super().data_received(data)

        def on_response_complete(self) -> None:
            # Uvicorn's keep-alive limit applies from here until the first byte of another request.
            self._expect_nothing()
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._expect_nothing()
            super().connection_lost(exc)

        def shutdown(self) -> None:
            super().shutdown()
            if unsent := self.transport.get_write_buffer_size():
                self.loop.call_later(UNREAD_AT_STOP_SEC, self._drop_unread, unsent)

        def _drop_unread(self, unsent: int) -> None:
            if self.transport.get_write_buffer_size() >= unsent:
                self.transport.abort()

        def _expect_head(self) -> None:
            self._deadline = self.loop.call_later(head_sec, self._give_up)

        def _expect_nothing(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _give_up(self) -> None:
            waiting = self.cycle is None or self.cycle.response_complete
            if waiting and not self.transport.is_closing():
                self.transport.close()

    return DeadlineProtocol
