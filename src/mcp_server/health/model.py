"""The results of a round of health checks, and how long they may be used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any


class HealthStatus(StrEnum):
    """The status of one check or of the whole server: fully usable, usable with limits, or not usable."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"

    @property
    def level(self) -> int:
        """The value of the metrics: 0 healthy, 1 degraded, 2 unhealthy."""
        return list(HealthStatus).index(self)

    @property
    def word(self) -> str:
        """The word for one check: ok, degraded or failed. A failed check need not make the server unhealthy."""
        return ("ok", "degraded", "failed")[self.level]


def worst(*statuses: HealthStatus) -> HealthStatus:
    """Return the worst of the statuses."""
    return max(statuses, key=lambda status: status.level, default=HealthStatus.HEALTHY)


class HealthCheckPriority(IntEnum):
    """The effect of a failed check: a CRITICAL check makes the server unhealthy, other checks degrade it."""

    CRITICAL = 0
    IMPORTANT = 1
    INFORMATIONAL = 2


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """The result of a check: a status, a description, the functions that still work, and how to repair it.

    If ``name`` or ``priority`` is not set, those of the registered check are used.
    """

    status: HealthStatus
    detail: str
    works: str = ""
    remedy: str = ""
    name: str = ""
    priority: HealthCheckPriority | None = None


@dataclass(frozen=True, slots=True)
class HealthCheckResult:
    """One outcome of a check, with the name, the start time and the duration in seconds of the registered check."""

    name: str
    status: HealthStatus
    detail: str
    priority: HealthCheckPriority
    check: str
    checked_at: datetime
    duration: float = 0.0
    works: str = ""
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON, without the texts that are empty."""
        words = {"name": self.name, "state": self.status.word, "detail": self.detail}
        words |= {key: text for key, text in (("works", self.works), ("remedy", self.remedy)) if text}
        return words | {
            "priority": self.priority.name.lower(),
            "duration_ms": round(self.duration * 1000, 1),
            "checked_at": self.checked_at.isoformat(timespec="milliseconds"),
        }


@dataclass(frozen=True, slots=True)
class SystemHealth:
    """The results of one round of checks. ``message`` is set if they are incomplete or too old, and says why.

    ``began`` is when the round was started, in seconds of ``clock``, which is monotonic.
    """

    status: HealthStatus
    results: tuple[HealthCheckResult, ...]
    checked_at: datetime
    began: float
    message: str = ""
    clock: Callable[[], float] = field(default=time.monotonic, repr=False, compare=False)

    @property
    def age_seconds(self) -> float:
        """Seconds since the round was started."""
        return max(0.0, self.clock() - self.began)

    def is_stale(self, max_age_seconds: float = 60) -> bool:
        """Return whether the results are too old to be shown without a message."""
        return self.age_seconds > max_age_seconds

    def by_check(self) -> dict[str, HealthStatus]:
        """Return the worst status of each registered check."""
        found: dict[str, HealthStatus] = {}
        for result in self.results:
            found[result.check] = worst(result.status, found.get(result.check, result.status))
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the health for JSON: the status, the message if there is one, and every result with its age."""
        age = round(self.age_seconds, 1)
        return {
            "status": self.status.value,
            **({"message": self.message} if self.message else {}),
            "checks": [result.as_dict() | {"age_sec": age} for result in self.results],
        }


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A result whose status changed. A result that is missing in one of the rounds counts as healthy there."""

    name: str
    before: HealthStatus
    after: HealthStatus
    detail: str


def changes(before: SystemHealth | None, after: SystemHealth) -> list[StatusChange]:
    """Return the results whose status changed between two rounds. If ``before`` is None, all that are not healthy."""
    old = {result.name: result.status for result in before.results} if before else {}
    new = {result.name: result for result in after.results}
    found = [
        StatusChange(name, old.get(name, HealthStatus.HEALTHY), result.status, result.detail)
        for name, result in new.items()
    ]
    found += [
        StatusChange(name, status, HealthStatus.HEALTHY, "no longer reported")
        for name, status in old.items()
        if name not in new
    ]
    return [change for change in found if change.before is not change.after]


def health_change(before: SystemHealth | None, after: SystemHealth) -> dict[str, Any] | None:
    """Return the fields of the event ``health.changed``, or None if no status changed.

    ``status`` and ``before`` are of the whole server; ``checks`` has the new status of each result that changed.
    """
    found, was = changes(before, after), before.status if before else HealthStatus.HEALTHY
    if not found and was is after.status:
        return None
    return {
        "status": after.status.value,
        "before": was.value,
        "checks": {change.name: change.after.value for change in found},
    }


def gauges(health: SystemHealth) -> Iterator[tuple[str, float, dict[str, str]]]:
    """Yield the metrics of a round: name, value and labels. The label is a registered check, so its values are few."""
    yield "mcp_health_status", health.status.level, {}
    for check, status in health.by_check().items():
        yield "mcp_health_check_status", status.level, {"check": check}


def overall(results: Sequence[HealthCheckResult]) -> HealthStatus:
    """Return unhealthy if a CRITICAL result is unhealthy, degraded if any result is not healthy, else healthy."""
    if any(r.status is HealthStatus.UNHEALTHY and r.priority is HealthCheckPriority.CRITICAL for r in results):
        return HealthStatus.UNHEALTHY
    worse = any(result.status is not HealthStatus.HEALTHY for result in results)
    return HealthStatus.DEGRADED if worse else HealthStatus.HEALTHY
