"""Sending spans: OpenTelemetry's SDK and OTLP exporter, imported where an endpoint is set.

The provider of the process can be set once, so ours stays, and what is behind it is exchanged: the sampler and the
queue of one endpoint. The exporter, whose import takes longest, is made by the queue's own thread.
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
"""Characters of a span's name and of an attribute."""
_EXPORTER: Final = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_QUEUE: Final = "opentelemetry.sdk._shared_internal"


class Exporting:
    """One endpoint that spans go to, from now until `close`; of two at the same time, the later one gets them."""

    def __init__(self, endpoint: str, ratio: float, *, direct: bool) -> None:
        self._exporter = _Exporter(endpoint, direct=direct)
        self._queue = BatchSpanProcessor(self._exporter)
        exchange = _exchange()
        exchange.queue, exchange.sampler = self._queue, ParentBased(TraceIdRatioBased(ratio))
        self.tracer: Tracer = trace.get_tracer("mcp_server", __version__, exchange.provider)

    def close(self, seconds: float) -> None:
        """Send what is queued, and wait up to ``seconds`` for it; spans that end later are dropped."""
        _exchange().let_go(self._queue)
        # Whatever the SDK's time limits are, a collector that does not answer must not hold up the stop.
        flushing = threading.Thread(target=self._queue.shutdown, name="tracing-flush", daemon=True)
        flushing.start()
        flushing.join(seconds)
        self._exporter.give_up(unfinished=flushing.is_alive())


class _Exchange(Sampler, SpanProcessor):
    """What stands behind the process's provider: the sampler and the queue in force, or none."""

    def __init__(self) -> None:
        self.sampler: Sampler = ALWAYS_OFF
        self.queue: SpanProcessor | None = None
        # No events: what an exception says may hold a target's text. Attributes are cut where they are set.
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

    def let_go(self, queue: SpanProcessor) -> None:
        """Record nothing more, unless another queue has taken over."""
        if self.queue is queue:
            self.queue, self.sampler = None, ALWAYS_OFF


@functools.cache
def _exchange() -> _Exchange:
    return _Exchange()


def _resource() -> Resource:
    """This server, as the backend shows it; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win."""
    own = Resource.create({"service.name": "mcp-network-tools", "service.version": __version__})
    return own.merge(OTELResourceDetector().detect())


class _Exporter(SpanExporter):
    """The OTLP exporter with what it may send taken care of, and its failures told once until it works again."""

    def __init__(self, endpoint: str, *, direct: bool) -> None:
        self._url = f"{endpoint.rstrip('/')}/v1/traces"
        self._shown = _without_secrets(endpoint)
        self._direct = direct
        self._inner: SpanExporter | None = None
        self._given_up = False
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send ``spans``; called by the queue's thread only."""
        if self._given_up:
            return SpanExportResult.FAILURE
        _heard.reason = ""
        try:
            self._inner = self._inner or self._make()
            result = self._inner.export([_cleaned(span) for span in spans])
        except Exception as error:  # noqa: BLE001 - a plug-in or a variable of the SDK; the queue would log each batch
            result, _heard.reason = SpanExportResult.FAILURE, f"{type(error).__name__}: {error}"
        if not self._given_up:
            self._notify(result, len(spans))
        return result

    def shutdown(self) -> None:
        """Nothing: `give_up` ends it, also where this is never reached."""

    def give_up(self, *, unfinished: bool) -> None:
        """Send nothing more; a wait between two attempts ends at once. ``unfinished``: something was not sent."""
        if unfinished and not self._lost:
            logger.warning(
                "tracing.not_flushed", endpoint=self._shown, message=str(_heard.reason or "it does not answer")
            )
        self._given_up = True
        if self._inner is not None:
            self._inner.shutdown()

    def _make(self) -> SpanExporter:
        import requests
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        session = None
        if self._direct:
            # Inside the guard a proxy of the environment is out of reach, and trying it would be an alarm.
            session = requests.Session()
            session.trust_env = False
        for name in (_EXPORTER, _QUEUE):
            logging.getLogger(name).addFilter(_heard)
        return OTLPSpanExporter(self._url, session=session)

    def _notify(self, result: SpanExportResult, spans: int) -> None:
        if result is not SpanExportResult.SUCCESS:
            if not self._lost:
                logger.warning(
                    "tracing.export_failed",
                    endpoint=self._shown,
                    message=f"{_heard.reason}; spans are lost until it answers",
                )
            self._lost += spans
        elif self._lost:
            logger.info("tracing.export_works_again", endpoint=self._shown, lost=self._lost)
            self._lost = 0


class _Heard(logging.Filter):
    """Takes the SDK's lines about attempts that failed, and keeps the first of each export; `_Exporter` tells it."""

    reason = ""
    queue_was_full = False

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == _EXPORTER:
            self.reason = self.reason or record.getMessage()
            return False
        if not record.getMessage().startswith("Queue full"):
            return True
        # Spans that come faster than they can be sent are said to be dropped once, not for each of them.
        first, self.queue_was_full = not self.queue_was_full, True
        return first


_heard: Final = _Heard()


def _without_secrets(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _cleaned(span: ReadableSpan) -> ReadableSpan:
    """The span with the attributes of `ATTRIBUTES` and nothing else that could hold a caller's or a target's text.

    The MCP SDK's spans describe an error by its message, which may name a target.
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
