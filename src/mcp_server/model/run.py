"""A run: the caller, the tool, the addresses and ports that the tool looked at, and the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import Field, PlainSerializer

from mcp_server.model.access import NOBODY, Access
from mcp_server.model.host import Count, FromTarget

RiskName = Literal["passive", "probe", "scan", "intrusive"]


class Risk(IntEnum):
    """The degree to which a call may disturb its target, in rising order. JSON holds the name."""

    PASSIVE = 0
    PROBE = 1
    SCAN = 2
    INTRUSIVE = 3

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def _missing_(cls, value: object) -> Risk | None:
        return cls.__members__.get(value.upper()) if isinstance(value, str) else None


class Outcome(StrEnum):
    """The result of a call. A run is ``running`` until it has one of the other outcomes."""

    RUNNING = "running"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


LOCAL: Final = "local"
"""The vantage of a run that started on this machine."""
HTTP_INTERFACES: Final = frozenset({"http", "rest"})
"""Interfaces that identify the caller by a credential. Elsewhere the caller is the user who started the process."""


@dataclass(frozen=True, slots=True)
class Actor:
    """The caller, and the interface it used: stdio, http, rest or cli."""

    name: str
    interface: str
    client: str = ""
    access: Annotated[Access, Field(exclude=True)] = field(default=NOBODY, compare=False, repr=False)
    """The permissions and limits of the actor. They are neither stored nor shown."""

    @property
    def over_http(self) -> str:
        """The actor's name if it came over HTTP, otherwise an empty string."""
        return self.name if self.interface in HTTP_INTERFACES else ""

    @property
    def own_runs(self) -> str | None:
        """The actor's name if it may read only its own runs, or None if it may read all runs."""
        return None if self.access.sees_all_runs else self.name


@dataclass(frozen=True, slots=True)
class PortsTested:
    """Tested ports of one transport: ``spec`` in canonical ranges (``1-1024,3389``), their count, and the method."""

    transport: str
    spec: str
    count: Count
    method: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """The addresses and ports that a run looked at.

    ``addresses`` are the canonical targets, and ``planned`` is the number of addresses in them. ``looked_at`` counts
    the addresses that the tool finished with, up or down. ``not_looked_at`` lists at most 256 of the addresses that
    the tool gave up or never reached; ``not_looked_at_count`` counts all of them. Such an address is never "closed".
    """

    addresses: tuple[str, ...]
    planned: Count
    looked_at: Count
    up: Count
    down: Count
    not_looked_at_count: Count
    complete: bool
    ports: tuple[PortsTested, ...] = ()
    not_looked_at: tuple[str, ...] = ()

    @classmethod
    def nothing_yet(cls, addresses: tuple[str, ...], planned: int, ports: tuple[PortsTested, ...] = ()) -> Coverage:
        """Return the coverage of a run that has not looked at any address yet."""
        return cls(addresses, planned, 0, 0, 0, planned, complete=False, ports=ports)


@dataclass(frozen=True, slots=True)
class Raw:
    """Raw output, kept by its hash. ``size`` and ``stored`` are bytes before and after compression.

    If ``truncated`` is true, the output was longer than is kept.
    """

    sha256: str
    size: Count
    stored: Count
    truncated: bool


@dataclass(frozen=True, slots=True)
class Run:
    """The record of one call that was allowed. Times are UTC. Empty fields are left out of JSON."""

    id: str
    tool: str
    parameters: dict[str, Any]
    actor: Actor
    correlation_id: str
    scope_hash: str
    risk: Annotated[Risk, PlainSerializer(str, return_type=RiskName)]
    argv: Annotated[tuple[str, ...], Field(description="The command line that was executed.")]
    started: datetime
    outcome: Outcome
    vantage: str
    enforcement: str
    tool_version: str = ""
    ended: datetime | None = None
    returncode: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    coverage: Coverage | None = None
    raw: Raw | None = None
    from_target: FromTarget = field(default_factory=dict)
    counts: Annotated[Mapping[str, Count], Field(description="Totals that the tool reports, by name.")] = field(
        default_factory=dict
    )
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def stderr(self) -> str:
        """The standard error of the tool, sanitized. It may repeat text of the target."""
        return self.from_target.get("stderr", "")
