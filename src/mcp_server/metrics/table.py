"""The table of all metrics: kind, help text and labels. A test checks that `docs/metrics.md` has a line for each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

from mcp_server.errors import ERRORS

Kind = Literal["counter", "gauge", "histogram"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of the metrics page."""
OTHER: Final = "other"
"""The label value that stands for every value beyond a limit."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. ``buckets`` are the upper bounds of a histogram, in seconds.

    ``known`` are sets of label values, in the order of ``labels``, whose series start at 0. Without that, Prometheus'
    ``increase()`` would not count the first event of a series (prometheus.io, "Missing metrics").
    """

    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    known: tuple[tuple[str, ...], ...] = ()


def _counter(text: str, *labels: str, known: tuple[tuple[str, ...], ...] = ()) -> Metric:
    return Metric("counter", text, labels, known=known)


def _gauge(text: str, *labels: str) -> Metric:
    return Metric("gauge", text, labels)


def _histogram(text: str, *labels: str, buckets: tuple[float, ...], known: tuple[str, ...] = ()) -> Metric:
    return Metric("histogram", text, labels, buckets, tuple((value,) for value in known))


_QUICK: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)

STEPS: Final = ("validate", "plan", "authorize", "admit", "execute", "record", "respond")
ALARMS: Final = ("guard_drops", "guard_lost")
AUDIT_CODES: Final = ("audit_unavailable", "audit_broken", "disk_full")
NO_REFUSALS: Final = frozenset(
    {
        # Returned by the interfaces before there is a call.
        *(
            "unauthorized",
            "locked_out",
            "identity_unavailable",
            "forbidden_origin",
            "body_too_large",
            "method_not_allowed",
            "not_found",
        ),
        # Returned for stored runs, at a start, by a run that has started, and if the caller disconnects.
        *("unknown_run", "run_not_finished", "config_invalid", "enforcement_too_weak"),
        *("tool_failed", "timeout", "output_exceeded", "cancelled"),
    }
)
"""Codes that no call is refused with. Their counters would always be 0."""
FAILED_AUTHENTICATIONS: Final = (
    *(("none", reason) for reason in ("missing", "malformed")),
    ("token", "wrong"),
    *(("key", reason) for reason in ("unknown", "wrong", "expired", "revoked")),
    *(("jwt", reason) for reason in ("not_taken", "malformed", "header", "algorithm", "issuer", "unknown_key")),
    *(("jwt", reason) for reason in ("signature", "expired", "not_yet_valid", "audience", "claims", "no_role")),
    ("any", "locked_out"),
)
"""Kinds of credentials, and the reasons for which they are refused."""
REFUSALS: Final = tuple(code for code in ERRORS if code not in NO_REFUSALS)

METRICS: Final[dict[str, Metric]] = {
    "mcp_tool_execution_total": _counter("Calls that ended, by outcome", "tool", "status", "error_type"),
    "mcp_tool_execution_seconds": _histogram("Time from the start of a run to its end", "tool", buckets=_LONG),
    "mcp_tool_active": _gauge("Runs that are active", "tool"),
    "mcp_tool_errors_total": _counter("Calls that ended with an error", "tool", "error_type"),
    "circuit_breaker_state": _gauge("State of the circuit breaker of a tool: 0 closed, 1 half-open, 2 open", "name"),
    "circuit_breaker_calls_total": _counter("Calls that a circuit breaker counted, by result", "name", "result"),
    "circuit_breaker_transitions_total": _counter(
        "Changes of the state of a circuit breaker", "name", "from_state", "to_state"
    ),
    "mcp_queue_depth": _gauge("Calls that wait in the queue", "tool"),
    "mcp_queue_wait_seconds": _histogram("Time that a call waited in the queue", "tool", buckets=(0.01, *_LONG)),
    "mcp_refusals_total": _counter(
        "Calls that were refused, by error code", "code", known=tuple((code,) for code in REFUSALS)
    ),
    "mcp_guard_drops_total": _counter("Packets of tools that the guard dropped, by rule", "rule"),
    "mcp_guard_failures_total": _counter("Times that the guard was found missing or changed"),
    "mcp_output_bytes_total": _counter("Bytes of output of tools", "tool"),
    "mcp_hosts_seen_total": _counter("Hosts that runs found to be up", "tool"),
    "mcp_step_seconds": _histogram(
        "Duration of one step of a call", "step", buckets=(*_QUICK, 60.0, 600.0), known=STEPS
    ),
    "mcp_store_seconds": _histogram("Duration of one operation of the store", "operation", buckets=_QUICK),
    "mcp_audit_append_seconds": _histogram("Time until an audit record was on the disk", buckets=_QUICK),
    "mcp_audit_failures_total": _counter(
        "Audit records that could not be written", "code", known=tuple((code,) for code in AUDIT_CODES)
    ),
    "mcp_authentication_failures_total": _counter(
        "Requests without a valid credential, by kind of credential and reason",
        "kind",
        "reason",
        known=FAILED_AUTHENTICATIONS,
    ),
    "mcp_http_requests_total": _counter("HTTP requests that were answered", "method", "route", "status"),
    "mcp_http_request_seconds": _histogram(
        "Time until the response to an HTTP request started", "route", buckets=(*_QUICK, 60.0, 600.0)
    ),
    "mcp_health_status": _gauge("Health of the server: 0 healthy, 1 degraded, 2 unhealthy"),
    "mcp_health_check_status": _gauge("Result of one health check: 0 healthy, 1 degraded, 2 unhealthy", "check"),
    "mcp_server_ready": _gauge("Whether the server accepts calls: 1, or 0 while it starts or stops"),
    "mcp_server_info": _gauge("Always 1; the labels describe the server", "version", "enforcement"),
    "mcp_config_reloads_total": _counter(
        "Reloads of the configuration, by result", "result", known=(("applied",), ("kept",))
    ),
    "mcp_event_subscribers": _gauge("Readers of the event stream"),
    "mcp_event_loop_lag_seconds": _gauge("Longest lag of the event loop within the last interval"),
    "mcp_state_disk_free_bytes": _gauge("Bytes that this user can still write to the disk of the state folder"),
    "mcp_state_disk_size_bytes": _gauge("Size of the disk of the state folder in bytes"),
    "mcp_alarms_total": _counter("Alarms that were raised", "alarm", known=tuple((alarm,) for alarm in ALARMS)),
}
"""Maps the full name of each metric to its definition. The name of a counter ends in ``_total``."""

PROCESS_METRICS: Final = (
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
)
"""Metrics of this process that prometheus_client adds to the page."""

_ERROR_TYPES: Final = tuple(dict.fromkeys(spec.type.value for spec in ERRORS.values()))
_TRANSITIONS: Final = (("closed", "open"), ("open", "half_open"), ("half_open", "closed"), ("half_open", "open"))


def series_of_tool(tool: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return the counters of a tool that start at 0 when the tool is offered: their names and label values."""
    found: list[tuple[str, tuple[str, ...]]] = [("mcp_tool_errors_total", (tool, kind)) for kind in _ERROR_TYPES]
    found += [("mcp_tool_execution_total", (tool, "completed", "none"))]
    found += [
        ("mcp_tool_execution_total", (tool, status, kind))
        for status, kind in product(("partial", "failed", "refused"), _ERROR_TYPES)
    ]
    found += [(name, (tool,)) for name in ("mcp_output_bytes_total", "mcp_hosts_seen_total")]
    found += [("circuit_breaker_calls_total", (tool, result)) for result in ("success", "failure", "refused")]
    found += [("circuit_breaker_transitions_total", (tool, *states)) for states in _TRANSITIONS]
    return found
