"""Sends spans with OpenTelemetry's SDK and OTLP exporter. Imported only if an endpoint is set.

A process can set its tracer provider only once. So the provider stays, and a reload replaces the sampler and the queue
behind it. The exporter takes longest to import, so the thread of the queue makes it.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Status

from mcp_server import __version__
from mcp_server.logger import get_logger
from mcp_server.observability.tracing import ATTRIBUTES

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

logger = get_logger(__name__)

MAX_TEXT: Final = 128
"""Characters of the name of a span and of an attribute; longer text is cut."""
_EXPORTER: Final = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_QUEUE: Final = "opentelemetry.sdk._shared_internal"


class SpanExport:
    """Sends spans to one endpoint until `close`. If there are two at the same time, the later one gets the spans."""

    def __init__(self, endpoint: str, ratio: float, *, direct: bool) -> None:
        self._exporter = _Exporter(endpoint, direct=direct)
        self._queue = BatchSpanProcessor(self._exporter)
        backend = _backend()
        backend.queue, backend.sampler = self._queue, ParentBased(TraceIdRatioBased(ratio))
        self.tracer: Tracer = trace.get_tracer("mcp_server", __version__, backend.provider)

    def close(self, seconds: float) -> None:
        """Send the queued spans, and wait up to ``seconds`` for that. Spans that end later are dropped."""
        _backend().detach(self._queue)
        # Whatever the time limits of the SDK are, a collector that does not answer must not delay the stop.
        flushing = threading.Thread(target=self._queue.shutdown, name="tracing-flush", daemon=True)
        flushing.start()
        flushing.join(seconds)
        self._exporter.give_up(unfinished=flushing.is_alive())


class _Backend(Sampler, SpanProcessor):
    """The sampler and the queue behind the provider of the process, or none if nothing is sent."""

    def __init__(self) -> None:
        self.sampler: Sampler = ALWAYS_OFF
        self.queue: SpanProcessor | None = None
        # No events, because the text of an exception may hold text of a target. Attributes are cut when they are set.
        limits = SpanLimits(max_events=0, max_span_attribute_length=MAX_TEXT)
        self.provider = TracerProvider(sampler=self, resource=_resource(), span_limits=limits, shutdown_on_exit=False)
        self.provider.add_span_processor(self)
        trace.set_tracer_provider(self.provider)

    def should_sample(self, *args: Any, **named: Any) -> SamplingResult:
        return self.sampler.should_sample(*args, **named)

    def get_description(self) -> str:
        return self.sampler.get_description()

    def on_end(self, span: ReadableSpan) -> None:
        if self.queue is not None:
            self.queue.on_end(span)

    def detach(self, queue: SpanProcessor) -> None:
        """Record nothing more, unless another queue has replaced this one."""
        if self.queue is queue:
            self.queue, self.sampler = None, ALWAYS_OFF


@functools.cache
def _backend() -> _Backend:
    return _Backend()


def _resource() -> Resource:
    """Return the name of this server for the collector. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override it."""
    own = Resource.create({"service.name": "mcp-network-tools", "service.version": __version__})
    return own.merge(OTELResourceDetector().detect())


class _Exporter(SpanExporter):
    """Wraps the OTLP exporter: sends allowed attributes only, and logs a failure once until it works again."""

    def __init__(self, endpoint: str, *, direct: bool) -> None:
        self._url = f"{endpoint.rstrip('/')}/v1/traces"
        self._shown = _without_secrets(endpoint)
        self._direct = direct
        self._inner: SpanExporter | None = None
        self._given_up = False
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send ``spans``. Only the thread of the queue calls this."""
        if self._given_up:
            return SpanExportResult.FAILURE
        _sdk_lines.reason = ""
        try:
            self._inner = self._inner or self._make()
            result = self._inner.export([_cleaned(span) for span in spans])
        except Exception as error:  # noqa: BLE001 - a plug-in of the SDK may raise anything, and the queue would log it for every batch
            result, _sdk_lines.reason = SpanExportResult.FAILURE, f"{type(error).__name__}: {error}"
        if not self._given_up:
            self._notify(result, len(spans))
        return result

    def shutdown(self) -> None:
        """Do nothing. `give_up` stops the exporter, because the queue may never get here."""

    def give_up(self, *, unfinished: bool) -> None:
        """Stop sending, also between two attempts. ``unfinished`` says that some spans were not sent."""
        if unfinished and not self._lost:
            logger.warning("tracing.not_flushed", endpoint=self._shown, message=str(_sdk_lines.reason or "no answer"))
        self._given_up = True
        if self._inner is not None:
            self._inner.shutdown()

    def _make(self) -> SpanExporter:
        import requests
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        session = None
        if self._direct:
            # Inside the guard a proxy from the environment cannot be reached, and trying it would raise an alarm.
            session = requests.Session()
            session.trust_env = False
        for name in (_EXPORTER, _QUEUE):
            logging.getLogger(name).addFilter(_sdk_lines)
        return OTLPSpanExporter(self._url, session=session)

    def _notify(self, result: SpanExportResult, spans: int) -> None:
        if result is not SpanExportResult.SUCCESS:
            if not self._lost:
                logger.warning(
                    "tracing.export_failed",
                    endpoint=self._shown,
                    message=f"{_sdk_lines.reason}. Spans are lost until it answers.",
                )
            self._lost += spans
        elif self._lost:
            logger.info("tracing.export_works_again", endpoint=self._shown, lost=self._lost)
            self._lost = 0


class _SdkLines(logging.Filter):
    """Keeps the SDK's log lines about failed attempts out of the log. `_Exporter` logs the first of each export."""

    reason = ""
    queue_was_full = False

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == _EXPORTER:
            self.reason = self.reason or record.getMessage()
            return False
        if not record.getMessage().startswith("Queue full"):
            return True
        # Log once that spans are dropped because they come faster than they can be sent.
        first, self.queue_was_full = not self.queue_was_full, True
        return first


_sdk_lines: Final = _SdkLines()


def _without_secrets(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _cleaned(span: ReadableSpan) -> ReadableSpan:
    """Return the span with the attributes of `ATTRIBUTES` only, and without any other text of a caller or a target.

    The spans of the MCP SDK have the message of an error as their description, which may name a target.
    """
    attributes = {name: value for name, value in (span.attributes or {}).items() if name in ATTRIBUTES}
    return ReadableSpan(
        name=span.name[:MAX_TEXT],
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=attributes,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
