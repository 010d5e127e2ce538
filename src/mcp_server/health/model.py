"""What a round of health checks found: the words for it, and for how long it counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any


class HealthStatus(StrEnum):
    """How a check, or all of it together, is: as it should be, with less than that, or not usable."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"

    @property
    def level(self) -> int:
        """0 healthy, 1 degraded, 2 unhealthy: the value of the metrics."""
        return list(HealthStatus).index(self)

    @property
    def word(self) -> str:
        """The word for one check: ok, degraded or failed. A failed check need not make the server unhealthy."""
        return ("ok", "degraded", "failed")[self.level]


def worst(*statuses: HealthStatus) -> HealthStatus:
    """The worst of these."""
    return max(statuses, key=lambda status: status.level, default=HealthStatus.HEALTHY)


class HealthCheckPriority(IntEnum):
    """What an unusable part means for the server: only a CRITICAL one makes it unhealthy, others degrade it."""

    CRITICAL = 0
    IMPORTANT = 1
    INFORMATIONAL = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check says: how it is, in words, what still works, and what mends it.

    ``name`` and ``priority`` are the check's own where they are not given.
    """

    status: HealthStatus
    detail: str
    works: str = ""
    remedy: str = ""
    name: str = ""
    priority: HealthCheckPriority | None = None


@dataclass(frozen=True, slots=True)
class HealthCheckResult:
    """One finding with its circumstances: ``check`` is the registered name, ``duration`` is in seconds."""

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
        """Ready for JSON: the words of the finding that are not empty, then its circumstances."""
        words = {"name": self.name, "state": self.status.word, "detail": self.detail}
        words |= {key: text for key, text in (("works", self.works), ("remedy", self.remedy)) if text}
        return words | {
            "priority": self.priority.name.lower(),
            "duration_ms": round(self.duration * 1000, 1),
            "checked_at": self.checked_at.isoformat(timespec="milliseconds"),
        }


@dataclass(frozen=True, slots=True)
class SystemHealth:
    """One round of checks. ``message`` says why it is not the full or the present truth, and is empty where it is.

    ``began`` is the reading of ``clock`` (seconds, monotonic) when the checks were started: what they found is as old.
    """

    status: HealthStatus
    results: tuple[HealthCheckResult, ...]
    checked_at: datetime
    began: float
    message: str = ""
    clock: Callable[[], float] = field(default=time.monotonic, repr=False, compare=False)

    @property
    def age_seconds(self) -> float:
        """Seconds since the checks were started."""
        return max(0.0, self.clock() - self.began)

    def is_stale(self, max_age_seconds: float = 60) -> bool:
        """Whether it is too old to be passed on without saying so."""
        return self.age_seconds > max_age_seconds

    def by_check(self) -> dict[str, HealthStatus]:
        """The worst status of each registered check."""
        found: dict[str, HealthStatus] = {}
        for result in self.results:
            found[result.check] = worst(result.status, found.get(result.check, result.status))
        return found

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON: status, message if any, and every check with its age in seconds."""
        age = round(self.age_seconds, 1)
        return {
            "status": self.status.value,
            **({"message": self.message} if self.message else {}),
            "checks": [result.as_dict() | {"age_sec": age} for result in self.results],
        }


@dataclass(frozen=True, slots=True)
class Change:
    """A finding that is another one now; a finding that was not there before, or no longer is, counts as healthy."""

    name: str
    before: HealthStatus
    after: HealthStatus
    detail: str


def changes(before: SystemHealth | None, after: SystemHealth) -> list[Change]:
    """What changed between two rounds; against None all that is not healthy."""
    old = {result.name: result.status for result in before.results} if before else {}
    new = {result.name: result for result in after.results}
    found = [
        Change(name, old.get(name, HealthStatus.HEALTHY), result.status, result.detail) for name, result in new.items()
    ]
    found += [Change(name, status, HealthStatus.HEALTHY, "gone") for name, status in old.items() if name not in new]
    return [change for change in found if change.before is not change.after]


def health_change(before: SystemHealth | None, after: SystemHealth) -> dict[str, Any] | None:
    """What to tell where the whole or a finding has another status now, ready for JSON; else None.

    Keys: ``status`` and ``before`` of the whole, and ``checks``, the present status of each finding that changed.
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
    """The gauges of a round: name, value, labels. The label is the registered check, so the set is bounded."""
    yield "mcp_health_status", health.status.level, {}
    for check, status in health.by_check().items():
        yield "mcp_health_check_status", status.level, {"check": check}


def overall(results: Sequence[HealthCheckResult]) -> HealthStatus:
    """Unhealthy where a CRITICAL part is not usable, degraded where anything else is not as it should be."""
    if any(r.status is HealthStatus.UNHEALTHY and r.priority is HealthCheckPriority.CRITICAL for r in results):
        return HealthStatus.UNHEALTHY
    worse = any(result.status is not HealthStatus.HEALTHY for result in results)
    return HealthStatus.DEGRADED if worse else HealthStatus.HEALTHY
