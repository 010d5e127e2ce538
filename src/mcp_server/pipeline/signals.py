"""What becomes of a call, told once: to the metrics, the events and the trace. No step tells any of them elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from mcp_server import metrics
from mcp_server.errors import ERRORS, NetworkToolsError, NotFoundError
from mcp_server.model.digest import HOST_COUNTS
from mcp_server.model.run import Actor, Outcome, Run
from mcp_server.observability import tracing
from mcp_server.tools.registry import ToolRegistry

if TYPE_CHECKING:
    from mcp_server.limits.admission import Admission, Waiting
    from mcp_server.limits.circuit_breaker import Breakers, Result, State
    from mcp_server.observability.events import EventBus
    from mcp_server.pipeline.authorize import AuthorizedPlan
    from mcp_server.pipeline.execute import ProgressUpdate
    from mcp_server.pipeline.plan import Plan
    from mcp_server.pipeline.validate import Call

logger = logging.getLogger(__name__)

UNKNOWN: Final = "unknown"
"""Stands for a tool that there is not: a caller's word is no label."""


@contextmanager
def step(name: str, **attributes: Any) -> Iterator[tracing.Span]:
    """Do one step of the road: a span with the code of what went wrong in it, and its time."""
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
    """Tells of calls and runs. Holds counts, ids and words of our own, nothing that a target wrote."""

    def __init__(self, events: EventBus, admission: Admission) -> None:
        self._events = events
        self._admission = admission

    def refused(self, tool: str, actor: Actor, error: NetworkToolsError, correlation_id: str | None = None) -> None:
        """A call was refused, or given up, before it was decided on."""
        outcome = Outcome.CANCELLED if error.code == "cancelled" else Outcome.REFUSED
        self._count_refusal(tool, outcome, error.code)
        told = {"tool": tool, "actor": actor.name, "interface": actor.interface, "code": error.code}
        more = {"correlation_id": correlation_id, "retry_after": error.details.get("retry_after")}
        told |= {name: value for name, value in more.items() if value is not None}
        self._events.publish("call.refused", told, about=actor.over_http)

    def not_started(self, authorized: AuthorizedPlan, outcome: Outcome, code: str) -> None:
        """A call was decided on, and came to no run."""
        call = authorized.plan.call
        self._count_refusal(call.tool.tool_name(), outcome, code)
        told = _of(call) | {"outcome": outcome.value, "code": code}
        self._events.publish("run.ended", told, about=call.actor.over_http)

    def accepted(self, authorized: AuthorizedPlan) -> None:
        """A call was decided on, and waits for a place."""
        plan = authorized.plan
        call, command = plan.call, plan.command
        told: dict[str, Any] = {
            "interface": call.actor.interface,
            "correlation_id": call.correlation_id,
            "actor": call.actor.name,
        }
        told |= {"risk": str(command.risk), "addresses": plan.targets.count}
        told |= _of(call) | {"ports": sum(each.count for each in command.ports)}
        self._events.publish("run.accepted", told, about=call.actor.over_http)

    def queued(self, call: Call, waiting: Waiting) -> None:
        """A call stands in line."""
        self._load(call.tool.tool_name())
        told = {"position": waiting.position, "wait_sec": waiting.expected_sec}
        self._events.publish("run.queued", _of(call) | told, about=call.actor.over_http)

    def placed(self, call: Call, waited_sec: float) -> None:
        """A call got its place."""
        tool = call.tool.tool_name()
        self._load(tool)
        metrics.observe("mcp_queue_wait_seconds", waited_sec, tool=tool)

    def started(self, run: Run, waited_sec: float) -> None:
        """A run was begun; its program is started next."""
        told = {"run_id": run.id, "tool": run.tool, "waited_sec": round(waited_sec, 3)}
        self._events.publish("run.started", told, about=run.actor.over_http)

    def update(self, run: Run, update: ProgressUpdate) -> None:
        """A run goes on."""
        told = {
            "run_id": run.id,
            "tool": run.tool,
            "done": round(update.share, 3),
            "elapsed_sec": round(update.elapsed),
        }
        told |= {} if update.up is None else {"hosts_up": update.up}
        self._events.publish("run.progress", told, about=run.actor.over_http)

    def ended(self, run: Run, seconds: float, bytes_out: int, error: NetworkToolsError | None) -> None:
        """A run is over, whatever it came to."""
        kind = error.spec.type.value if error else "none"
        metrics.count("mcp_tool_execution_total", tool=run.tool, status=run.outcome.value, error_type=kind)
        if error is not None:
            metrics.count("mcp_tool_errors_total", tool=run.tool, error_type=kind)
        metrics.observe("mcp_tool_execution_seconds", seconds, tool=run.tool)
        metrics.count("mcp_output_bytes_total", bytes_out, tool=run.tool)
        hosts_up, open_ports = (run.counts.get(name, 0) for name in HOST_COUNTS)
        metrics.count("mcp_hosts_seen_total", hosts_up, tool=run.tool)
        logger.info(
            "run.ended outcome=%s code=%s seconds=%.3f hosts_up=%d open_ports=%d",
            *(run.outcome.value, run.error_code or "none", seconds, hosts_up, open_ports),
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

    def left(self, tool: str) -> None:
        """A place became free."""
        self._load(tool)

    def alarm(self, alarm: str, run: Run, message: str, count: int | None = None) -> None:
        """The guard dropped something during a run, or is gone."""
        logger.critical("guard.alarm alarm=%s: %s", alarm, message)
        metrics.count("mcp_alarms_total", alarm=alarm)
        told: dict[str, Any] = {"alarm": alarm, "run_id": run.id, "message": message}
        told |= {} if count is None else {"count": count}
        self._events.publish("alarm", told, about=run.actor.over_http)

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
    """Tells of what breakers do; an Observer of them (`circuit_breaker.Observer`)."""

    def breaker_called(self, name: str, result: Result) -> None:
        """A call was refused or ended with a verdict."""
        metrics.count("circuit_breaker_calls_total", name=name, result=result.value)

    def breaker_changed(self, name: str, before: State, after: State) -> None:
        """The state changed."""
        changes = "circuit_breaker_transitions_total"
        metrics.count(changes, name=name, from_state=before.value, to_state=after.value)
        logger.warning("breaker.changed tool=%s before=%s after=%s", name, before.value, after.value)


def show_breakers(breakers: Breakers) -> None:
    """Let the metrics show the state of each breaker: 0 closed, 1 half-open, 2 open."""
    numbers = {"closed": 0, "half_open": 1, "open": 2}
    metrics.gauge_function(
        "circuit_breaker_state", lambda: {view.name: numbers[view.state.value] for view in breakers.snapshot()}
    )


def _of(call: Call) -> dict[str, Any]:
    return {"run_id": call.id, "tool": call.tool.tool_name()}


def plan_facts(plan: Plan) -> dict[str, Any]:
    """What the span of a plan says of it; nothing of what a caller typed."""
    return {
        "mcp_network_tools.addresses": plan.targets.count,
        "mcp_network_tools.probes": plan.command.estimate.probes,
        "mcp_network_tools.risk": str(plan.command.risk),
    }


def known_name(registry: ToolRegistry, name: str) -> str:
    """The name of the tool that a caller means, or `UNKNOWN`."""
    try:
        return registry.find(name).tool_name()
    except NotFoundError:
        return UNKNOWN
