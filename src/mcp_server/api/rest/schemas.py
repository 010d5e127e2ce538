"""The documents of the REST interface, as the OpenAPI page shows them.

The routes answer with plain dictionaries, which all interfaces share. They are not converted to these models. A test
checks real answers against them. New fields may be added, so a client ignores fields that it does not know. Text from
targets is only under ``from_target``.
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
    """The name, version and paths of this server."""

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
    """An error inside a document. docs/errors.md lists the codes."""

    code: str
    message: str
    hint: str
    retryable: bool
    details: dict[str, Any] = {}


class ReloadReport(BaseModel):
    """The result of a reload: the new configuration is in force, or the old one was kept."""

    result: Literal["applied", "kept"]
    by: Literal["file", "signal", "request"]
    at: datetime
    scope_hash: str
    changed: list[str] = Field(description="Keys whose values changed.")
    restart_needed: list[Pending]
    error: ErrorReport | None = Field(
        None, description="Why the old configuration was kept. Left out if the new one is in force."
    )


class ConfigReport(BaseModel):
    """The configuration in force, and the configured values that are not in force."""

    config: dict[str, dict[str, Any] | str] = Field(description="By section and key. Secrets are redacted.")
    restart_needed: list[Pending]
    last_reload: ReloadReport | None


class ToolReport(BaseModel):
    """A tool as MCP lists it, with its program and the flags that extra_args may contain."""

    name: str
    title: str
    description: str
    input_schema: dict[str, Any] = Field(
        alias="inputSchema", description="The parameters of execute, as a JSON Schema."
    )
    output_schema: dict[str, Any] = Field(
        alias="outputSchema", description="The schema of results over MCP. REST answers with ToolOutput."
    )
    annotations: dict[str, Any]
    class_name: str = Field(alias="class")
    command: str | None = Field(description="Its program. None if it runs no program.")
    flags: list[str]


class ToolList(BaseModel):
    """The tools that can be called now."""

    tools: list[ToolReport]


class AdminTool(BaseModel):
    """A tool that the configuration offers, and its load."""

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
    """Every tool, and whether it can be called."""

    tools: list[AdminTool]
    left_out: list[LeftOutTool]


class ToolSwitch(BaseModel):
    """A tool after it was enabled or disabled. ``changed`` is false if it already was."""

    name: str
    enabled: bool
    changed: bool


class BreakerList(BaseModel):
    """The circuit breakers of the tools that were called."""

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
    """A run with a page of the hosts that it saw."""

    run: RunRecord
    hosts: list[Host]
    hosts_total: int = Field(ge=0)
    next_cursor: str | None


class ScopeEntry(BaseModel):
    """An entry of the policy. ``line`` is its line number in the file, null without a file."""

    entry: str
    line: int | None
    max_risk: RiskName
    packets_per_second: float | None
    windows: list[str]


class ScopeWindow(BaseModel):
    """A time window of the policy. Times are local, in ISO 8601."""

    name: str
    when: str
    open: bool
    next_opening: str | None


class Resolved(BaseModel):
    """How a name was resolved. ``ttl`` is in seconds."""

    name: str
    addresses: list[str]
    aliases: list[str]
    ttl: int | None
    source: str


class TargetReport(BaseModel):
    """Whether one target is allowed, and why."""

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
    """What a call would cost, as far as it can be planned. If it would be refused: code, hint and reason."""

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
    """The policy: its first 100 entries and exclusions. ``allow_total`` and ``exclude_total`` count all of them."""

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
    """What the caller may do. null: only the policy and the limits of the server apply."""

    name: str
    scopes: list[str]
    networks: list[str] | None
    tools: list[str]
    calls_per_minute: int | None
    packets_per_hour: int | None


class ScopeReport(BaseModel):
    """The explanation of targets, and of the plan of a call if a tool was named.

    Without a target: the policy, and the limits of the caller if it has any.
    """

    scope_hash: str
    targets: list[TargetReport] | None = None
    plan: PlanReport | None = None
    policy: PolicyReport | None = None
    caller: CallerReport | None = None
