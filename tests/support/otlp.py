"""An OTLP/HTTP collector that decodes requests with OpenTelemetry's own protobuf."""

from __future__ import annotations

import gzip
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

_TIMEOUT_SEC = 20.0


@dataclass(frozen=True)
class Span:
    """One received span. Ids are lower-case hexadecimal. ``parent`` is empty for the first span of a trace."""

    name: str
    trace: str
    id: str
    parent: str
    kind: str
    failed: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]
    scope: str
    start: int
    end: int
    texts: tuple[str, ...]
    """All other text of the span: the status message, events, links, tracestate."""


@dataclass
class Collector:
    """The received spans, and how requests are answered."""

    url: str = ""
    status: int = 200
    silent: threading.Event = field(default_factory=threading.Event)
    """If it is set, requests are read but not answered."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path and headers of every request."""
    bodies: list[bytes] = field(default_factory=list)
    """The decompressed bodies of accepted requests."""
    _spans: list[Span] = field(default_factory=list)
    _change: threading.Condition = field(default_factory=threading.Condition)

    @property
    def spans(self) -> list[Span]:
        with self._change:
            return list(self._spans)

    def receive(self, path: str, headers: dict[str, str], body: bytes) -> int:
        """Handle one request, and return the status of its response."""
        with self._change:
            self.requests.append((path, headers))
            if self.status == 200 and not self.silent.is_set():
                self.bodies.append(gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body)
                self._spans += decode(self.bodies[-1])
            self._change.notify_all()
            return self.status

    def wait(self, enough: Callable[[list[Span]], bool]) -> list[Span]:
        """Wait until ``enough`` accepts the spans, and return them. Fails the test after `_TIMEOUT_SEC`."""
        with self._change:
            assert self._change.wait_for(lambda: enough(self._spans), _TIMEOUT_SEC), self._spans
            return list(self._spans)

    def wait_for(self, *names: str, trace: str | None = None) -> list[Span]:
        """Wait for a span of each name, in one trace or in any, and return all spans of it."""

        def of_trace(spans: list[Span]) -> list[Span]:
            return [span for span in spans if trace in {None, span.trace}]

        return of_trace(self.wait(lambda spans: set(names) <= {span.name for span in of_trace(spans)}))


@contextmanager
def collector(host: str = "127.0.0.1", port: int = 0) -> Iterator[Collector]:
    """Run a collector, by default on a free port of 127.0.0.1."""
    receiving = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = receiving.receive(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            while receiving.silent.is_set():
                time.sleep(0.02)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # an exporter that timed out closes its connection
                super().handle()

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    receiving.url = f"http://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiving
    finally:
        receiving.silent.clear()
        server.shutdown()
        server.server_close()
        thread.join()


def decode(body: bytes) -> list[Span]:
    """Return the spans of one request."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        _span(span, _attributes(resource.resource.attributes), scope.scope.name)
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _span(span: WireSpan, resource: dict[str, Any], scope: str) -> Span:
    return Span(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=WireSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        attributes=_attributes(span.attributes),
        resource=resource,
        scope=scope,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        texts=tuple(filter(None, (span.status.message, span.trace_state, *map(str, (*span.events, *span.links))))),
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in cast("list[KeyValue]", pairs)}


def _value(value: AnyValue) -> Any:
    return getattr(value, str(value.WhichOneof("value")))


def main() -> None:
    """Run a collector on ``HOST PORT`` and print the names of spans as they arrive."""
    with collector(sys.argv[1], int(sys.argv[2])) as receiving:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        shown = 0
        while True:
            spans = receiving.spans
            sys.stdout.writelines(f"{span.name}\n" for span in spans[shown:])
            sys.stdout.flush()
            shown = len(spans)
            time.sleep(0.02)


if __name__ == "__main__":
    main()
