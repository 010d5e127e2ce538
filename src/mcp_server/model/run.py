"""A run: who had which tool do what, what of it was really tested, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any, Final

from mcp_server.model.access import NOBODY, Access


class Risk(IntEnum):
    """How much a call may disturb its target, in rising order."""

    PASSIVE = 0
    PROBE = 1
    SCAN = 2
    INTRUSIVE = 3

    def __str__(self) -> str:
        return self.name.lower()


class Outcome(StrEnum):
    """How a call ended. `running` is the state before any of the others."""

    RUNNING = "running"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


HTTP_INTERFACES: Final = frozenset({"http", "rest"})
"""The interfaces whose callers are known by a credential; the caller of any other is the user who started the process."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who calls, through which interface (stdio, http, rest or cli), and what it may do: nothing, unless the interface says more.

    ``access`` is no part of what is remembered.
    """

    name: str
    interface: str
    client: str = ""
    access: Access = field(default=NOBODY, compare=False, repr=False)

    @property
    def over_http(self) -> str:
        """Its name where it came over HTTP, or else the empty one, which is nobody's there."""
        return self.name if self.interface in HTTP_INTERFACES else ""

    @property
    def own_runs(self) -> str | None:
        """Whose runs alone it may read: those of its name; None where it may read all."""
        return None if self.access.sees_all_runs else self.name


@dataclass(frozen=True, slots=True)
class PortsTested:
    """One transport's tested ports: ``spec`` in canonical ranges (``1-1024,3389``), how many, and the method."""

    transport: str
    spec: str
    count: int
    method: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """Exactly which addresses and ports a run tested, and how.

    ``addresses`` are canonical targets. ``planned`` is how many addresses they hold; ``looked_at`` how many the
    tool finished with (up or down). ``not_looked_at`` lists addresses it gave up or never reached (bounded to
    the first 256, ``not_looked_at_count`` is exact): such an address is never "closed".
    """

    addresses: tuple[str, ...]
    planned: int
    ports: tuple[PortsTested, ...] = ()
    looked_at: int = 0
    up: int = 0
    down: int = 0
    not_looked_at: tuple[str, ...] = ()
    not_looked_at_count: int = 0
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Raw:
    """Raw output kept by hash: sizes in bytes before and after compression; ``truncated`` when the cap was reached."""

    sha256: str
    size: int
    stored: int
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """The record of one call that was allowed. Times are UTC; ``argv`` is the command line that was executed.

    ``counts`` holds the totals that the tool reports, by name, for example ``hosts_up`` and ``open_ports``.
    """

    id: str
    tool: str
    parameters: dict[str, Any]
    actor: Actor
    correlation_id: str
    scope_hash: str
    risk: Risk
    argv: tuple[str, ...]
    started: datetime
    outcome: Outcome = Outcome.RUNNING
    tool_version: str = ""
    vantage: str = "local"
    enforcement: str = "argument"
    ended: datetime | None = None
    returncode: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    coverage: Coverage | None = None
    raw: Raw | None = None
    stderr: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
