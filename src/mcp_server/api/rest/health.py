"""REST routes about the health of the server: alive, ready, and the result of each check."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import FastAPI, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from mcp_server import __version__
from mcp_server.api.http.problems import COMMON_STATUSES, problem_responses
from mcp_server.health import HISTORY, HealthStatus, changes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mcp_server.health import HealthCheckManager, SystemHealth

_NOT_KEPT: Final = {"Cache-Control": "no-store"}
"""Headers of answers that must not be cached."""
_OPEN: Final[dict[str, Any]] = {"security": []}
"""On the OpenAPI page: no token is needed."""


class Probe(BaseModel):
    """The answer to a probe."""

    status: Literal["alive", "ready", "not ready"]


class CheckReport(BaseModel):
    """One finding of a health check."""

    name: str
    state: Literal["ok", "degraded", "failed"]
    detail: str
    works: str = Field("", description="What still works.")
    remedy: str = Field("", description="How to fix it.")
    priority: Literal["critical", "important", "informational"]
    duration_ms: float
    checked_at: str = Field(description="When the check ran, RFC 3339, UTC.")
    age_sec: float


class RoundReport(BaseModel):
    """A finished round of checks, with the findings whose state changed since the round before."""

    status: HealthStatus
    checked_at: str
    changed: dict[str, str]


class HealthReport(BaseModel):
    """Whether the server can do its work."""

    status: HealthStatus
    version: str
    uptime_sec: float
    message: str = Field("", description="Why this may be outdated or incomplete. Left out if it is neither.")
    checks: list[CheckReport]
    history: list[RoundReport] = Field([], description="The last rounds, newest first, if they were requested.")


def add_health_routes(app: FastAPI, health: Callable[[], HealthCheckManager], ready: Callable[[], bool]) -> None:
    """Add ``/livez``, ``/readyz`` and ``/health``. The first two need no token, and answer only yes or no.

    ``ready`` returns whether the server takes calls.
    """
    started = time.monotonic()

    @app.get(
        "/livez",
        summary="Whether the server answers",
        response_model=Probe,
        responses=problem_responses(422, 500),
        openapi_extra=_OPEN,
    )
    async def livez() -> JSONResponse:
        return _probe("alive")

    @app.get(
        "/readyz",
        summary="Whether the server can run calls",
        response_model=Probe,
        responses=problem_responses(422, 500)
        | {503: {"model": Probe, "description": "Not ready: the server is starting, stopping, or unhealthy"}},
        openapi_extra=_OPEN,
    )
    async def readyz() -> JSONResponse:
        return _probe("ready" if await is_ready(health, ready) else "not ready")

    @app.get(
        "/health",
        summary="Whether the server can do its work, with the result of each check",
        response_model=HealthReport,
        responses=problem_responses(*COMMON_STATUSES)
        | {503: {"model": HealthReport, "description": "Unhealthy: a part is missing without which no call runs"}},
    )
    async def health_report(
        history: Annotated[int, Query(ge=0, le=HISTORY, description="The number of the last rounds to show")] = 0,
    ) -> JSONResponse:
        found = await health().current()
        report: dict[str, Any] = {
            "status": found.status.value,
            "version": __version__,
            "uptime_sec": round(time.monotonic() - started, 1),
        } | found.as_dict()
        if history:
            report["history"] = _rounds(tuple(health().history), history)
        return JSONResponse(report, _status(found.status is not HealthStatus.UNHEALTHY), _NOT_KEPT)


async def is_ready(health: Callable[[], HealthCheckManager], ready: Callable[[], bool]) -> bool:
    """Whether the server takes calls, and its checks found nothing that would make every call fail."""
    if not ready():
        return False
    found = await health().current()
    # Before the first result, nothing is known about the host.
    return ready() and bool(found.results) and found.status is not HealthStatus.UNHEALTHY


def _probe(status: str) -> JSONResponse:
    return JSONResponse({"status": status}, _status(status != "not ready"), _NOT_KEPT)


def _status(is_good: bool) -> int:
    return 200 if is_good else 503


def _rounds(rounds: Sequence[SystemHealth], number: int) -> list[dict[str, Any]]:
    pairs = list(zip((None, *rounds), rounds, strict=False))[-number:]
    return [
        {
            "status": after.status.value,
            "checked_at": after.checked_at.isoformat(timespec="milliseconds"),
            "changed": {change.name: change.after.word for change in changes(before, after)},
        }
        for before, after in reversed(pairs)
    ]
