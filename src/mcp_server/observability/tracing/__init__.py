"""Traces: spans of the steps of a call, sent to the OTLP/HTTP collector at ``tracing.endpoint`` (docs/tracing.md).

Without an endpoint, every span is one shared object that does nothing, and OpenTelemetry's SDK is not imported. Only
the attributes in `ATTRIBUTES` leave this process: never a target, an argument, or output of a program.
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
    from mcp_server.observability.tracing.export import SpanExport
    from mcp_server.scope.policy import ScopePolicy

logger = get_logger(__name__)

FLUSH_SEC: Final = 1.0
"""Seconds that a stopping server waits until its last spans are sent."""
OTHER: Final = "_OTHER"
"""The value for a method that MCP does not have, as in the semantic conventions of OpenTelemetry."""

ATTRIBUTES: Final[dict[str, str]] = {
    "mcp.method.name": "MCP method; `_OTHER` for one that MCP does not have",
    "mcp.protocol.version": "negotiated revision of MCP",
    "mcp.session.id": "session over HTTP, up to revision 2025-11-25; later revisions have none",
    "jsonrpc.request.id": "id of the request, at most 128 characters",
    "rpc.response.status_code": "code of a JSON-RPC error",
    "gen_ai.operation.name": "`execute_tool` for a tool call",
    "gen_ai.tool.name": "name of the tool, or `unknown` if there is no such tool",
    "network.transport": "`pipe` for stdio, `tcp` for HTTP",
    "network.protocol.name": "`http` for HTTP",
    "network.protocol.version": "version of HTTP",
    "http.request.method": "HTTP method of a REST request",
    "http.route": "route of a REST request, with the names of its parameters instead of their values",
    "http.response.status_code": "HTTP status of a REST response",
    "error.type": "the error: a code of docs/errors.md, or on MCP's own span `tool_error` or the JSON-RPC code",
    "mcp_network_tools.run_id": "id of the run, as in the store, the logs and the audit log",
    "mcp_network_tools.outcome": "`completed`, `partial`, `failed` or `cancelled`",
    "mcp_network_tools.error_code": "on MCP's own span: the code of docs/errors.md if the call was refused or failed",
    "mcp_network_tools.risk": "risk tier of the planned call",
    "mcp_network_tools.enforcement": "`argument`, `rootless` or `kernel`",
    "mcp_network_tools.addresses": "number of planned addresses",
    "mcp_network_tools.probes": "estimated number of probes",
    "mcp_network_tools.waited_sec": "seconds in the queue",
    "mcp_network_tools.bytes": "bytes of output of the program",
    "mcp_network_tools.parse_sec": "seconds spent in the parser",
    "mcp_network_tools.hosts_up": "number of hosts that are up",
    "mcp_network_tools.open_ports": "number of open ports",
}
"""Maps every attribute that may be sent to its meaning. Other attributes are dropped before spans are sent."""

_tracer: Tracer | None = None
_export: SpanExport | None = None


class Span:
    """A span that is not recorded: its methods do nothing. It is also the interface of recorded spans."""

    __slots__ = ()

    def set(self, **attributes: Any) -> None:
        """Set attributes by their names in `ATTRIBUTES`. Values are strings, numbers or booleans."""

    def error(self, code: str) -> None:
        """Mark the span as failed with a code of docs/errors.md."""

    def rename(self, name: str) -> None:
        """Change the name of the span. The name must come from a fixed set, never from a caller."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


_NO_SPAN: Final = Span()


class _Recorded(Span):
    """A span that is sent. It is current inside its block, and is marked as failed if the block raises."""

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
    """Return whether spans are sent."""
    return _tracer is not None


def span(name: str, /, **attributes: Any) -> Span:
    """Return a span for a ``with`` block. docs/tracing.md lists the names and attributes.

    It is a child of the current span, or starts a trace if there is none.
    """
    return _NO_SPAN if _tracer is None else _start(name, attributes)


def _start(name: str, attributes: Mapping[str, Any], kind: SpanKind | None = None) -> Span:
    from opentelemetry.trace import SpanKind

    if _tracer is None:
        return _NO_SPAN
    return _Recorded(_tracer.start_span(name, kind=kind or SpanKind.INTERNAL, attributes=attributes))


@contextmanager
def request(method: str, route: str, headers: Mapping[str, str], /, **attributes: Any) -> Iterator[Span]:
    """Run the block in the span of one REST request, which belongs to the trace that ``headers`` name, if any.

    ``route`` is the path with the names of its parameters, such as ``/runs/{run_id}``. For MCP the SDK makes this span.
    """
    if _tracer is None:
        yield _NO_SPAN
        return
    from opentelemetry.trace import SpanKind

    given = {"http.request.method": method, "http.route": route, "network.transport": "tcp"} | attributes
    with context_from(headers), _start(f"{method} {route}", given, SpanKind.SERVER) as server:
        yield server


@contextmanager
def context_from(headers: Mapping[str, str]) -> Iterator[None]:
    """Make spans in the block children of the span that ``headers`` name (W3C traceparent and tracestate), if any."""
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
    """Return the current span, which may be one of the MCP SDK. Do not use it in a ``with`` statement."""
    if _tracer is None:
        return _NO_SPAN
    from opentelemetry.trace import get_current_span

    innermost = get_current_span()
    return _Recorded(innermost) if innermost.is_recording() else _NO_SPAN


def trace_id() -> str | None:
    """Return the id of the trace that is being recorded, as 32 hexadecimal digits, or None."""
    if _tracer is None:
        return None
    from opentelemetry.trace import get_current_span

    innermost = get_current_span()
    return f"{innermost.get_span_context().trace_id:032x}" if innermost.is_recording() else None


def configure(settings: TracingConfig, *, inside: ScopePolicy | None = None) -> None:
    """Send spans to ``settings.endpoint`` from now on. If it is empty, nothing is recorded.

    ``inside`` is the policy of a server that runs inside the guard. If the guard would drop packets to the collector,
    no span is sent, and that is logged. If tracing was configured before, queued spans are sent first, as by
    `shutdown`.

    Raises ConfigError if the extra ``tracing`` is not installed or an OTEL_ variable is invalid.
    """
    global _tracer, _export  # noqa: PLW0603 - OpenTelemetry's tracer provider belongs to the process too
    if settings.endpoint and not _installed():
        raise ConfigError(
            "tracing.endpoint is set, but the packages that send spans are not installed.",
            hint="Install the extra with pip install 'mcp-network-tools[tracing]', or leave tracing.endpoint empty.",
        )
    shutdown()
    if not settings.endpoint:
        return
    if inside is not None and (reason := _out_of_reach(settings.endpoint, inside)):
        logger.warning("tracing.off", message=f"Spans are not sent: {reason}.")
        return
    from mcp_server.observability.tracing.export import SpanExport

    try:
        _export = SpanExport(settings.endpoint, settings.sample_ratio, direct=inside is not None)
    except ValueError as error:
        raise ConfigError(
            f"Tracing cannot be configured: {error}.",
            hint="Correct or remove the variables OTEL_BSP_* and OTEL_SPAN_*.",
        ) from error
    _tracer = _export.tracer


def shutdown(seconds: float = FLUSH_SEC) -> None:
    """Send the queued spans and stop. Blocks for at most ``seconds``. Safe to call twice."""
    global _tracer, _export
    export, _export, _tracer = _export, None, None
    if export is not None:
        export.close(seconds)


def _installed() -> bool:
    from importlib.util import find_spec

    try:
        return all(find_spec(name) for name in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"))
    except ModuleNotFoundError:  # a parent package is missing
        return False


def _out_of_reach(endpoint: str, policy: ScopePolicy) -> str | None:
    """Return why a server inside the guard cannot reach its collector, or None if it can.

    It must not simply try, because a packet that the guard drops raises an alarm.
    """
    from urllib.parse import urlsplit

    host = urlsplit(endpoint).hostname or ""
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ip_address(host)
    except ValueError:
        return "tracing.endpoint has a name, which a server inside the guard cannot look up; use its address"
    if address.is_loopback:
        return "tracing.endpoint is on the host's loopback, which a server inside the guard cannot reach"
    if not policy.check_address(address).allowed:
        return "tracing.endpoint is outside the scope, so the guard drops packets to it"
    return None
