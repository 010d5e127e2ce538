"""Traces: spans of a call's steps, sent to the OTLP/HTTP collector that ``tracing.endpoint`` names (docs/tracing.md).

Without an endpoint a span is one shared object that does nothing, and nothing of OpenTelemetry's SDK is imported. What
leaves this process is what `ATTRIBUTES` lists: never a target, an argument, or what a program wrote.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, Self

from mcp_server.errors import ConfigError, NetworkToolsError
from mcp_server.logger import get_logger

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.trace import Span as ApiSpan
    from opentelemetry.trace import SpanKind, Tracer

    from mcp_server.config.sections import TracingConfig
    from mcp_server.observability.tracing.export import Exporting
    from mcp_server.scope.policy import ScopePolicy

logger = get_logger(__name__)

FLUSH_SEC: Final = 1.0
"""How long a server that stops waits for its last spans to be taken."""
OTHER: Final = "_OTHER"
"""Stands for a method that MCP does not have, as the semantic conventions name such a value."""

ATTRIBUTES: Final[dict[str, str]] = {
    "mcp.method.name": "MCP method; `_OTHER` for one that MCP does not have",
    "mcp.protocol.version": "version of MCP that was agreed on",
    "mcp.session.id": "session over HTTP, up to version 2025-11-25; later versions have none",
    "jsonrpc.request.id": "the request's id, the first 128 characters",
    "rpc.response.status_code": "code of a JSON-RPC error",
    "gen_ai.operation.name": "`execute_tool` for a call of a tool",
    "gen_ai.tool.name": "name of the tool; `unknown` for one that there is not",
    "network.transport": "`pipe` for stdio, `tcp` for HTTP",
    "network.protocol.name": "`http`, where it is HTTP",
    "network.protocol.version": "version of HTTP",
    "http.request.method": "HTTP method of a REST request",
    "http.route": "route of a REST request, with the names of its parameters in place of their values",
    "http.response.status_code": "HTTP status of a REST answer",
    "error.type": "what went wrong: a code of docs/errors.md; on MCP's own span `tool_error` or the JSON-RPC code",
    "mcp_network_tools.run_id": "the run, as in the store, the logs and the audit log",
    "mcp_network_tools.outcome": "completed, partial, failed or cancelled",
    "mcp_network_tools.error_code": "on MCP's own span: the code of docs/errors.md where a call was refused or failed",
    "mcp_network_tools.risk": "risk tier of the planned call",
    "mcp_network_tools.enforcement": "argument, rootless or kernel",
    "mcp_network_tools.addresses": "number of addresses that were planned",
    "mcp_network_tools.probes": "number of probes that were estimated",
    "mcp_network_tools.waited_sec": "seconds in the queue",
    "mcp_network_tools.bytes": "bytes of output that the program wrote",
    "mcp_network_tools.parse_sec": "seconds spent in the parser",
    "mcp_network_tools.hosts_up": "number of hosts that were up",
    "mcp_network_tools.open_ports": "number of open ports",
}
"""Every attribute that is sent, and what it says; one that is missing here is dropped before it is sent."""

_tracer: Tracer | None = None
_exporting: Exporting | None = None


class Span:
    """A span that is not recorded: everything about it does nothing. Also the interface of one that is."""

    __slots__ = ()

    def set(self, **attributes: Any) -> None:
        """Give the span attributes, by their names in `ATTRIBUTES`; each a text, a number or a truth value."""

    def error(self, code: str) -> None:
        """Say that what the span stands for failed, with a code of docs/errors.md."""

    def rename(self, name: str) -> None:
        """Give the span another name; from a bounded set, nothing a caller chose."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


_NOTHING: Final = Span()


class _Recorded(Span):
    """A span that is sent, current while its block runs; an error that leaves the block is the span's."""

    __slots__ = ("_failed", "_span", "_token")

    def __init__(self, span: ApiSpan) -> None:
        self._span = span
        self._token: Any = None
        self._failed = False

    def set(self, **attributes: Any) -> None:
        self._span.set_attributes(attributes)

    def error(self, code: str) -> None:
        from opentelemetry.trace import StatusCode

        self._failed = True
        self._span.set_attribute("error.type", code)
        self._span.set_status(StatusCode.ERROR)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def __enter__(self) -> Self:
        from opentelemetry.context import attach
        from opentelemetry.trace import set_span_in_context

        self._token = attach(set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from opentelemetry.context import detach

        if error is not None and not self._failed:
            self.error(_code_of(error))
        detach(self._token)
        self._span.end()


def _code_of(error: BaseException) -> str:
    if isinstance(error, NetworkToolsError):
        return error.code
    return "cancelled" if isinstance(error, asyncio.CancelledError) else "internal_error"


def enabled() -> bool:
    """Whether spans are sent anywhere."""
    return _tracer is not None


def span(name: str, /, **attributes: Any) -> Span:
    """A span of one step, for a ``with`` block; ``name`` and attributes as docs/tracing.md lists them.

    It is a child of the span around it, and begins a trace where there is none.
    """
    return _NOTHING if _tracer is None else _start(name, attributes)


def _start(name: str, attributes: Mapping[str, Any], kind: SpanKind | None = None) -> Span:
    from opentelemetry.trace import SpanKind

    if _tracer is None:
        return _NOTHING
    return _Recorded(_tracer.start_span(name, kind=kind or SpanKind.INTERNAL, attributes=attributes))


@contextmanager
def request(method: str, route: str, headers: Mapping[str, str], /, **attributes: Any) -> Iterator[Span]:
    """The span of one REST request, in its caller's trace where the headers name one.

    ``route`` is the path with the names of its parameters, as ``/runs/{run_id}``. The MCP SDK makes such a span itself.
    """
    if _tracer is None:
        yield _NOTHING
        return
    from opentelemetry.trace import SpanKind

    given = {"http.request.method": method, "http.route": route, "network.transport": "tcp"} | attributes
    with context_from(headers), _start(f"{method} {route}", given, SpanKind.SERVER) as server:
        yield server


@contextmanager
def context_from(headers: Mapping[str, str]) -> Iterator[None]:
    """Make spans inside the block children of the caller's span (W3C traceparent and tracestate), if it named one."""
    if _tracer is None:
        yield
        return
    from opentelemetry.context import attach, detach
    from opentelemetry.propagate import extract

    token = attach(extract(headers))
    try:
        yield
    finally:
        detach(token)


def current() -> Span:
    """The innermost span around this point, also one of the MCP SDK's; not for a ``with`` block."""
    if _tracer is None:
        return _NOTHING
    from opentelemetry.trace import get_current_span

    innermost = get_current_span()
    return _Recorded(innermost) if innermost.is_recording() else _NOTHING


def trace_id() -> str | None:
    """The trace that is being recorded, as 32 hexadecimal digits; None where none is."""
    if _tracer is None:
        return None
    from opentelemetry.trace import get_current_span

    innermost = get_current_span()
    return f"{innermost.get_span_context().trace_id:032x}" if innermost.is_recording() else None


def configure(settings: TracingConfig, *, inside: ScopePolicy | None = None) -> None:
    """Send spans to ``settings.endpoint`` from here on; where it is empty, nothing is recorded.

    ``inside`` is the policy of a server that lives inside the guard: a collector that the guard would not let it reach
    gets nothing, which is logged. It may be called again with other settings, and then first sends what is queued, as
    `shutdown` does. Raises ConfigError where the extra ``tracing`` is not installed.
    """
    global _tracer, _exporting  # noqa: PLW0603 - the API's tracer provider is the process's too
    if settings.endpoint and not _installed():
        raise ConfigError(
            "tracing.endpoint is set, and what sends spans is not installed",
            hint="Install the extra: pip install 'mcp-network-tools[tracing]', or leave tracing.endpoint empty.",
        )
    shutdown()
    if not settings.endpoint:
        return
    if inside is not None and (reason := _out_of_reach(settings.endpoint, inside)):
        logger.warning("tracing.off", message=f"spans are not sent, because {reason}")
        return
    from mcp_server.observability.tracing.export import Exporting

    try:
        _exporting = Exporting(settings.endpoint, settings.sample_ratio, direct=inside is not None)
    except ValueError as error:
        raise ConfigError(
            f"tracing cannot be set up: {error}", hint="Correct or remove the variables OTEL_BSP_* and OTEL_SPAN_*."
        ) from error
    _tracer = _exporting.tracer


def shutdown(seconds: float = FLUSH_SEC) -> None:
    """Send the last spans and stop; gives up after ``seconds``. Blocks for as long; safe to call twice."""
    global _tracer, _exporting
    exporting, _exporting, _tracer = _exporting, None, None
    if exporting is not None:
        exporting.close(seconds)


def _installed() -> bool:
    from importlib.util import find_spec

    try:
        return all(find_spec(name) for name in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"))
    except ModuleNotFoundError:  # a package above it is missing
        return False


def _out_of_reach(endpoint: str, policy: ScopePolicy) -> str | None:
    """Why a server in the guard's network namespace cannot reach its collector; None where it can.

    Trying would not do: what the guard drops is counted, and is an alarm.
    """
    from urllib.parse import urlsplit

    host = urlsplit(endpoint).hostname or ""
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ip_address(host)
    except ValueError:
        return "tracing.endpoint has a name, which a server inside the guard cannot look up: write its address"
    if address.is_loopback:
        return "tracing.endpoint is on the host's loopback, which a server inside the guard cannot reach"
    if not policy.check_address(address).allowed:
        return "tracing.endpoint is outside the scope, and the guard lets nothing out to it"
    return None
