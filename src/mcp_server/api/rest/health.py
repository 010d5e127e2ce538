"""How the server is, over HTTP: is it alive, is it ready, and check by check what it can do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import FastAPI, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from mcp_server import __version__
from mcp_server.api.http.problems import GUARDED, problem_responses
from mcp_server.health import HISTORY, HealthStatus, changes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mcp_server.health import SystemHealth
    from mcp_server.server.enhanced import EnhancedMCPServer

_NOT_KEPT: Final = {"Cache-Control": "no-store"}
"""A probe's answer is about now."""
_OPEN: Final[dict[str, Any]] = {"security": []}
"""On the OpenAPI page: asks for no token."""


class Probe(BaseModel):
    """The answer to a probe, which needs no token and says nothing else."""

    status: Literal["alive", "ready", "not ready"]


class CheckReport(BaseModel):
    """One finding of a health check."""

    name: str
    state: Literal["ok", "degraded", "failed"]
    detail: str
    works: str = Field("", description="What still works.")
    remedy: str = Field("", description="What mends it.")
    priority: Literal["critical", "important", "informational"]
    duration_ms: float
    checked_at: str = Field(description="When it was looked at, RFC 3339, UTC.")
    age_sec: float


class RoundReport(BaseModel):
    """A round of checks that is over: what was another status in it than in the round before."""

    status: HealthStatus
    checked_at: str
    changed: dict[str, str]


class HealthReport(BaseModel):
    """Whether the server can do its work."""

    status: HealthStatus
    version: str
    uptime_sec: float
    message: str = Field("", description="Why this is not the full or the present truth; left out where it is.")
    checks: list[CheckReport]
    history: list[RoundReport] = Field([], description="The last rounds, newest first, where they were asked for.")


def add_health_routes(app: FastAPI, server: EnhancedMCPServer) -> None:
    """Add ``/livez``, ``/readyz`` and ``/health``; the first two are for anybody, and say yes or no."""
    started = time.monotonic()

    @app.get(
        "/livez",
        summary="Whether the server's event loop turns",
        response_model=Probe,
        responses=problem_responses(422, 500),
        openapi_extra=_OPEN,
    )
    async def livez() -> JSONResponse:
        return _probe("alive")

    @app.get(
        "/readyz",
        summary="Whether calls can be sent here: started, not stopping, log, store, guard and a tool usable",
        response_model=Probe,
        responses=problem_responses(422, 500)
        | {503: {"model": Probe, "description": "Not ready: starting, stopping, or unhealthy"}},
        openapi_extra=_OPEN,
    )
    async def readyz() -> JSONResponse:
        return _probe("ready" if await is_ready(server) else "not ready")

    @app.get(
        "/health",
        summary="Whether the server can do its work, check by check",
        response_model=HealthReport,
        responses=problem_responses(*GUARDED)
        | {503: {"model": HealthReport, "description": "Unhealthy: something without which nothing runs"}},
    )
    async def health(
        history: Annotated[int, Query(ge=0, le=HISTORY, description="How many of the last rounds to show")] = 0,
    ) -> JSONResponse:
        found = await server.health.current()
        report: dict[str, Any] = {
            "status": found.status.value,
            "version": __version__,
            "uptime_sec": round(time.monotonic() - started, 1),
        } | found.as_dict()
        if history:
            report["history"] = _rounds(tuple(server.health.history), history)
        return JSONResponse(report, _status(found.status is not HealthStatus.UNHEALTHY), _NOT_KEPT)


async def is_ready(server: EnhancedMCPServer) -> bool:
    """Whether calls can be sent to this server."""
    if not server.ready:  # what it can do does not matter where it takes nothing
        return False
    found = await server.health.current()
    # Without one finding nothing is known yet.
    return server.ready and bool(found.results) and found.status is not HealthStatus.UNHEALTHY


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
