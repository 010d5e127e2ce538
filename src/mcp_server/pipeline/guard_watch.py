"""Reads the packet guard before and after a run. Packets dropped in between cause an alarm and are noted on the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from mcp_server import metrics
from mcp_server.audit import AuditLog
from mcp_server.errors import NetworkToolsError
from mcp_server.logger import get_logger
from mcp_server.model.run import Run
from mcp_server.netguard import Guard, GuardReading
from mcp_server.pipeline.log_fields import run_facts

logger = get_logger(__name__)

_counted: WeakKeyDictionary[Guard, dict[str, int]] = WeakKeyDictionary()


async def read_guard(guard: Guard) -> GuardReading | None:
    """Return the state of the guard, or None in the argument tier.

    Raises PlatformError ``guard_unavailable`` if the guard is gone or changed, and counts that.
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
    """Count the packets dropped since the last reading. They are counted once, even if several runs are active."""
    before = _counted.get(guard, {})
    for rule, packets in drops.items():
        # Zero is counted too: Prometheus shows no increase for a series that appears with its first drop.
        metrics.count("mcp_guard_drops_total", max(packets - before.get(rule, 0), 0), rule=rule)
    _counted[guard] = drops


async def difference(
    guard: Guard,
    before: GuardReading | None,
    audit: AuditLog,
    run: Run,
    on_alarm: Callable[[str, Run, str, int | None], None],
) -> dict[str, Any]:
    """Return what the guard passed and dropped since ``before``, as fields of a record. Empty in the argument tier.

    Keys: ``ruleset`` (SHA-256), ``passed`` and ``dropped`` (packets; drops by rule). If they apply also
    ``ruleset_after`` (the policy was reloaded during the run) and ``lost`` (why the guard could not be read). The guard
    does not know runs: packets that are dropped while several runs are active count for each of them. An alarm goes to
    the audit log and to ``on_alarm``, with its name, the run, a message and a count.
    """
    if before is None:
        return {}
    try:
        after = await read_guard(guard)
    except NetworkToolsError as error:
        on_alarm("guard_lost", run, error.message, None)
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
        on_alarm("guard_drops", run, f"The guard dropped {count} packets of a tool ({rules}).", count)
        await _log_alarm(audit, run, "guard_drops", dropped=facts["dropped"])
    return facts


async def _log_alarm(audit: AuditLog, run: Run, alarm: str, **facts: Any) -> None:
    try:
        await audit.append("alarm", alarm=alarm, **run_facts(run), **facts)
    except NetworkToolsError as error:
        # The run must still end and be recorded. No other run starts while the log cannot be written.
        logger.error("audit.alarm_not_logged", run_id=run.id, message=error.message)  # noqa: TRY400 - no traceback: the failure is a disk
