"""What REST answers, as the OpenAPI page shows it: the shapes of the documents that the routes put together.

The routes answer with plain dictionaries, which every interface shares; nothing passes through these models, and a test
holds real answers against them. New fields may come: a reader passes over those it does not know. Text that targets
wrote stands under ``from_target`` only.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from mcp_server.config.pending import Pending
from mcp_server.limits.circuit_breaker import BreakerView
from mcp_server.model.digest import HOST_COUNTS
from mcp_server.model.host import Host
from mcp_server.model.run import RiskName, Run


class Index(BaseModel):
    """What this server is, and the paths of its parts."""

    name: str
    version: str
    mcp: str
    tools: str
    scope: str
    runs: str
    health: str
    events: str
    metrics: str
    documentation: str


class ErrorReport(BaseModel):
    """An error inside an answer; docs/errors.md has a line for each code."""

    code: str
    message: str
    hint: str
    retryable: bool
    details: dict[str, Any] = {}


class ReloadReport(BaseModel):
    """How a reload ended: the new configuration is used whole, or the old one kept."""

    result: Literal["applied", "kept"]
    by: Literal["file", "signal", "request"]
    at: datetime
    scope_hash: str
    changed: list[str] = Field(description="Keys whose values are others now.")
    restart_needed: list[Pending]
    error: ErrorReport | None = Field(None, description="Why the old was kept; left out where the new is used.")


class ConfigReport(BaseModel):
    """The configuration in force, and what of the files is not."""

    config: dict[str, dict[str, Any] | str] = Field(description="By section and key; secrets are redacted.")
    restart_needed: list[Pending]
    last_reload: ReloadReport | None


class ToolReport(BaseModel):
    """A tool, as MCP lists it, with its program and the flags that extra_args may have."""

    name: str
    title: str
    description: str
    input_schema: dict[str, Any] = Field(alias="inputSchema", description="What execute takes, as a JSON Schema.")
    output_schema: dict[str, Any] = Field(alias="outputSchema", description="What MCP answers; REST: ToolOutput.")
    annotations: dict[str, Any]
    class_name: str = Field(alias="class")
    command: str | None = Field(description="Its program. None if it runs no program.")
    flags: list[str]


class ToolList(BaseModel):
    """The tools that may be called now."""

    tools: list[ToolReport]


class AdminTool(BaseModel):
    """A tool that the owner offers, and its load."""

    name: str
    class_name: str = Field(alias="class")
    command: str | None
    enabled: bool
    running: int = Field(ge=0)
    waiting: int = Field(ge=0)


class LeftOutTool(BaseModel):
    """A tool that is not offered."""

    name: str
    reason: str


class AdminTools(BaseModel):
    """Every tool, and whether it may be called."""

    tools: list[AdminTool]
    left_out: list[LeftOutTool]


class ToolSwitch(BaseModel):
    """A tool after it was enabled or disabled. ``changed`` is false if it already was."""

    name: str
    enabled: bool
    changed: bool


class BreakerList(BaseModel):
    """The breakers of the tools that were called."""

    breakers: list[BreakerView]


class _HostCounts:
    """Describes the counts of a run as fields of the run itself, as `mcp_server.api.runs.run_record` shows them."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        reference = handler(schema)
        run = handler.resolve_ref_schema(reference)
        if run["properties"].pop("counts", None):
            run["properties"] |= {name: {"type": "integer", "minimum": 0} for name in HOST_COUNTS}
            run["required"] = [*run["required"], *HOST_COUNTS]
        return reference


RunRecord = Annotated[Run, _HostCounts()]


class RunList(BaseModel):
    """A page of runs, newest first."""

    runs: list[RunRecord]
    total: int = Field(ge=0)
    next_cursor: str | None


class RunPage(BaseModel):
    """A run with a page of the hosts it saw."""

    run: RunRecord
    hosts: list[Host]
    hosts_total: int = Field(ge=0)
    next_cursor: str | None


class ScopeEntry(BaseModel):
    """A line of the policy; ``line`` is its number in the file, null where there is none."""

    entry: str
    line: int | None
    max_risk: RiskName
    packets_per_second: float | None
    windows: list[str]


class ScopeWindow(BaseModel):
    """A time window of the policy; times are ISO 8601, local."""

    name: str
    when: str
    open: bool
    next_opening: str | None


class Resolved(BaseModel):
    """How a name came to its addresses; ``ttl`` is in seconds."""

    name: str
    addresses: list[str]
    aliases: list[str]
    ttl: int | None
    source: str


class TargetReport(BaseModel):
    """Whether one target may be touched, and why."""

    target: str
    allowed: bool
    code: str | None
    hint: str | None
    reason: str
    entries: list[str]
    name: str | None
    addresses: list[str]
    count: int = Field(ge=0)
    resolved: Resolved | None
    max_risk: RiskName | None
    packets_per_second: float | None
    policy_entries: list[ScopeEntry]
    windows: list[ScopeWindow]


class PlanReport(BaseModel):
    """What a call would cost, as far as it could be planned; code, hint and reason where it would be refused."""

    tool: str
    allowed: bool
    code: str = ""
    hint: str = ""
    reason: str = ""
    risk: RiskName = "passive"
    addresses: int = 0
    ports: int = 0
    probes: int = 0
    seconds: float = 0
    packets_per_second: float | None = None


class PolicyReport(BaseModel):
    """The policy itself: the first 100 lines and exclusions of ``allow_total`` and ``exclude_total``."""

    source: str
    name: str
    allow: list[ScopeEntry]
    allow_total: int
    exclude: list[str]
    exclude_total: int
    limits: dict[str, float | None]
    windows: list[ScopeWindow]
    resolvers: list[str]


class CallerReport(BaseModel):
    """What the caller may do; null: nothing bounds it besides the policy and the server's limits."""

    name: str
    scopes: list[str]
    networks: list[str] | None
    tools: list[str]
    calls_per_minute: int | None
    packets_per_hour: int | None


class ScopeReport(BaseModel):
    """Targets explained, with the plan of a call where a tool was named; where nothing was asked the policy, and what
    the caller may do of it where that is not all.
    """

    scope_hash: str
    targets: list[TargetReport] | None = None
    plan: PlanReport | None = None
    policy: PolicyReport | None = None
    caller: CallerReport | None = None
