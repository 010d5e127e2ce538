"""The guard around a run: read before it and after it. What was dropped meanwhile is an alarm and marks the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from mcp_server import metrics
from mcp_server.audit import AuditLog
from mcp_server.errors import NetworkToolsError
from mcp_server.logger import get_logger
from mcp_server.model.run import Run
from mcp_server.netguard import Guard, GuardReading
from mcp_server.pipeline.record import run_facts

if TYPE_CHECKING:
    from mcp_server.pipeline.signals import Signals

logger = get_logger(__name__)

_counted: WeakKeyDictionary[Guard, dict[str, int]] = WeakKeyDictionary()


async def read_guard(guard: Guard) -> GuardReading | None:
    """The guard's state, or None in the argument tier.

    Raises PlatformError ``guard_unavailable`` where it is gone or changed, which is counted.
    """
    try:
        reading = await guard.read()
    except NetworkToolsError:
        metrics.count("mcp_guard_failures_total")
        raise
    if reading is not None:
        _count(guard, reading.drops)
    return reading


def _count(guard: Guard, drops: dict[str, int]) -> None:
    """Count what was dropped since the last reading, once, however many runs were under way or none."""
    before = _counted.get(guard, {})
    for rule, packets in drops.items():
        # Also by nothing: a series that first appears with its first drop shows no rise to Prometheus.
        metrics.count("mcp_guard_drops_total", max(packets - before.get(rule, 0), 0), rule=rule)
    _counted[guard] = drops


async def difference(
    guard: Guard, before: GuardReading | None, audit: AuditLog, run: Run, signals: Signals
) -> dict[str, Any]:
    """What the guard did since ``before``, ready for records; empty in the argument tier.

    Keys: ``ruleset`` (SHA-256), ``passed`` and ``dropped`` (packets; drops by rule), and where they apply
    ``ruleset_after`` (a policy reload during the run) and ``lost`` (why it could not be read). Packets dropped while
    several runs are under way count for each of them: the guard knows no runs.
    """
    if before is None:
        return {}
    try:
        after = await read_guard(guard)
    except NetworkToolsError as error:
        signals.alarm("guard_lost", run, error.message)
        await _log_alarm(audit, run, "guard_lost", reason=error.message)
        return {"ruleset": before.ruleset, "lost": error.message}
    if after is None:
        return {"ruleset": before.ruleset, "lost": "the guard is no longer in force"}
    drops = {rule: packets - before.drops.get(rule, 0) for rule, packets in after.drops.items()}
    facts: dict[str, Any] = {
        "ruleset": before.ruleset,
        "passed": after.passed - before.passed,
        "dropped": {rule: packets for rule, packets in drops.items() if packets > 0},
    }
    if after.ruleset != before.ruleset:
        facts["ruleset_after"] = after.ruleset
    if facts["dropped"]:
        count, rules = sum(facts["dropped"].values()), ", ".join(facts["dropped"])
        signals.alarm("guard_drops", run, f"the guard dropped {count} packets of a tool ({rules})", count)
        await _log_alarm(audit, run, "guard_drops", dropped=facts["dropped"])
    return facts


async def _log_alarm(audit: AuditLog, run: Run, alarm: str, **facts: Any) -> None:
    try:
        await audit.append("alarm", alarm=alarm, **run_facts(run), **facts)
    except NetworkToolsError as error:
        # The run still has to be ended and recorded; no other one starts while the log cannot be written.
        logger.error("audit.alarm_not_logged", run_id=run.id, message=error.message)  # noqa: TRY400 - no traceback: the failure is a disk
