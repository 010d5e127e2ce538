"""Reports calls and runs to the metrics, the events and the traces. No other module reports them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from mcp_server import metrics
from mcp_server.errors import ERRORS, NetworkToolsError, NotFoundError
from mcp_server.logger import get_logger
from mcp_server.model.digest import HOST_COUNTS
from mcp_server.model.run import Actor, Outcome, Run
from mcp_server.observability import tracing
from mcp_server.pipeline.authorize import AuthorizedPlan
from mcp_server.pipeline.execute import ProgressUpdate
from mcp_server.pipeline.plan import Plan
from mcp_server.pipeline.validate import Call
from mcp_server.tools.registry import ToolRegistry

if TYPE_CHECKING:
    from mcp_server.limits.admission import Admission, QueuePosition
    from mcp_server.limits.circuit_breaker import Breakers, Result, State
    from mcp_server.observability.events import EventBus

logger = get_logger(__name__)

UNKNOWN: Final = "unknown"
"""The label for every tool that does not exist, because text of a caller must not become a label."""


@contextmanager
def step(name: str, **attributes: Any) -> Iterator[tracing.Span]:
    """Run one step of the pipeline in a span, and record its duration and the code of its error."""
    started = time.perf_counter()
    with tracing.span(name, **attributes) as span:
        try:
            yield span
        except NetworkToolsError as error:
            span.error(error.code)
            raise
        finally:
            metrics.observe("mcp_step_seconds", time.perf_counter() - started, step=name)


class Signals:
    """Reports calls and runs. The reports hold counts, ids and text of this server, and no text that a target wrote."""

    def __init__(self, events: EventBus, admission: Admission) -> None:
        self._events = events
        self._admission = admission

    def refused(self, tool: str, actor: Actor, error: NetworkToolsError, correlation_id: str | None = None) -> None:
        """Report that a call was refused, or was cancelled before the decision."""
        outcome = Outcome.CANCELLED if error.code == "cancelled" else Outcome.REFUSED
        self._count_refusal(tool, outcome, error.code)
        fields = {"tool": tool, "actor": actor.name, "interface": actor.interface, "code": error.code}
        optional = {"correlation_id": correlation_id, "retry_after": error.details.get("retry_after")}
        fields |= {name: value for name, value in optional.items() if value is not None}
        self._events.publish("call.refused", fields, about=actor.over_http)

    def not_started(self, authorized: AuthorizedPlan, outcome: Outcome, code: str) -> None:
        """Report that an accepted call did not become a run."""
        call = authorized.plan.call
        self._count_refusal(call.tool.tool_name(), outcome, code)
        self._publish("run.ended", call, outcome=outcome.value, code=code)

    def accepted(self, authorized: AuthorizedPlan) -> None:
        """Report that a call was accepted and waits for a slot."""
        plan, call = authorized.plan, authorized.plan.call
        self._publish(
            "run.accepted",
            call,
            interface=call.actor.interface,
            correlation_id=call.correlation_id,
            actor=call.actor.name,
            risk=str(plan.risk),
            addresses=plan.targets.count,
            ports=plan.ports,
        )

    def queued(self, call: Call, at: QueuePosition) -> None:
        """Report that a call waits in the queue."""
        self._load(call.tool.tool_name())
        self._publish("run.queued", call, position=at.position, wait_sec=at.expected_sec)

    def admitted(self, call: Call, waited_sec: float) -> None:
        """Report that a call got its slot."""
        tool = call.tool.tool_name()
        self._load(tool)
        metrics.observe("mcp_queue_wait_seconds", waited_sec, tool=tool)

    def started(self, run: Run, waited_sec: float) -> None:
        """Report that a run has its row in the store. Its program starts next."""
        fields = {"run_id": run.id, "tool": run.tool, "waited_sec": round(waited_sec, 3)}
        self._events.publish("run.started", fields, about=run.actor.over_http)

    def progress(self, run: Run, update: ProgressUpdate) -> None:
        """Report the progress of a run."""
        fields = {
            "run_id": run.id,
            "tool": run.tool,
            "done": round(update.share, 3),
            "elapsed_sec": round(update.elapsed),
        }
        if (hosts_up := update.counts.get("hosts_up")) is not None:
            fields["hosts_up"] = hosts_up
        self._events.publish("run.progress", fields, about=run.actor.over_http)

    def ended(self, run: Run, seconds: float, bytes_out: int, error: NetworkToolsError | None) -> None:
        """Report that a run has ended, with any outcome."""
        kind = error.spec.type.value if error else "none"
        metrics.count("mcp_tool_execution_total", tool=run.tool, status=run.outcome.value, error_type=kind)
        if error is not None:
            metrics.count("mcp_tool_errors_total", tool=run.tool, error_type=kind)
        metrics.observe("mcp_tool_execution_seconds", seconds, tool=run.tool)
        metrics.count("mcp_output_bytes_total", bytes_out, tool=run.tool)
        hosts_up, open_ports = (run.counts.get(name, 0) for name in HOST_COUNTS)
        metrics.count("mcp_hosts_seen_total", hosts_up, tool=run.tool)
        logger.info(
            "run.ended",
            outcome=run.outcome.value,
            code=run.error_code or "none",
            seconds=round(seconds, 3),
            hosts_up=hosts_up,
            open_ports=open_ports,
        )
        self._events.publish(
            "run.ended",
            {
                "run_id": run.id,
                "tool": run.tool,
                "outcome": run.outcome.value,
                "code": run.error_code,
                "elapsed_sec": round(seconds, 3),
                "addresses": run.coverage.planned if run.coverage else 0,
                "looked_at": run.coverage.looked_at if run.coverage else 0,
                "hosts_up": hosts_up,
                "open_ports": open_ports,
            },
            about=run.actor.over_http,
        )

    def slot_released(self, tool: str) -> None:
        """Report that a slot became free."""
        self._load(tool)

    def alarm(self, alarm: str, run: Run, message: str, count: int | None = None) -> None:
        """Report that the guard dropped packets during a run, or is gone."""
        logger.critical("guard.alarm", alarm=alarm, message=message)
        metrics.count("mcp_alarms_total", alarm=alarm)
        fields: dict[str, Any] = {"alarm": alarm, "run_id": run.id, "message": message}
        fields |= {} if count is None else {"count": count}
        self._events.publish("alarm", fields, about=run.actor.over_http)

    def _publish(self, event: str, call: Call, **fields: Any) -> None:
        fields = {"run_id": call.id, "tool": call.tool.tool_name()} | fields
        self._events.publish(event, fields, about=call.actor.over_http)

    def _count_refusal(self, tool: str, outcome: Outcome, code: str) -> None:
        kind = ERRORS[code].type.value
        if outcome is not Outcome.CANCELLED:
            metrics.count("mcp_refusals_total", code=code)
        metrics.count("mcp_tool_execution_total", tool=tool, status=outcome.value, error_type=kind)
        metrics.count("mcp_tool_errors_total", tool=tool, error_type=kind)
        self._load(tool)

    def _load(self, tool: str) -> None:
        load = self._admission.load(tool)
        metrics.gauge("mcp_tool_active", load.running, tool=tool)
        metrics.gauge("mcp_queue_depth", load.waiting, tool=tool)


class BreakerSignals:
    """Reports the calls and states of circuit breakers. Implements `mcp_server.limits.circuit_breaker.Observer`."""

    def breaker_called(self, name: str, result: Result) -> None:
        """Report that a call was refused, or ended as a success or a failure."""
        metrics.count("circuit_breaker_calls_total", name=name, result=result.value)

    def breaker_changed(self, name: str, before: State, after: State) -> None:
        """Report that the state changed."""
        changes = "circuit_breaker_transitions_total"
        metrics.count(changes, name=name, from_state=before.value, to_state=after.value)
        logger.warning("breaker.changed", tool=name, before=before.value, after=after.value)


def show_breakers(breakers: Breakers) -> None:
    """Show the state of each breaker in the metrics: 0 closed, 1 half-open, 2 open."""
    numbers = {"closed": 0, "half_open": 1, "open": 2}
    metrics.gauge_function(
        "circuit_breaker_state", lambda: {view.name: numbers[view.state.value] for view in breakers.snapshot()}
    )


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Return the attributes of a plan's span, without any text of the caller."""
    return {
        "mcp_network_tools.addresses": plan.targets.count,
        "mcp_network_tools.probes": plan.command.estimate.probes,
        "mcp_network_tools.risk": str(plan.risk),
    }


def known_name(registry: ToolRegistry, name: str) -> str:
    """Return the name of the tool for a name that a caller used, or `UNKNOWN`."""
    try:
        return registry.find(name).tool_name()
    except NotFoundError:
        return UNKNOWN
