"""The whole configuration as one object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PrivateAttr

from mcp_server.config import sections
from mcp_server.config.base import RESTART, FilePath, Section, Source
from mcp_server.config.effective import EffectiveLimits, effective_limits
from mcp_server.config.redact import redact_tree

if TYPE_CHECKING:
    from mcp_server.scope.policy import ScopePolicy


@dataclass(frozen=True, slots=True)
class ClampedValue:
    """A number from the file or the environment that was moved to the nearest bound of its range."""

    section: str
    key: str
    original: float
    adjusted: float
    valid_range: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.valid_range
        return (
            f"config.value_clamped section={self.section} key={self.key} original={self.original} "
            f"adjusted={self.adjusted} valid_range=[{low}, {high}]"
        )


def default_state_dir() -> Path:
    """Return the platform's folder for state of this user (XDG_STATE_HOME on Linux)."""
    from platformdirs import user_state_path

    return user_state_path("mcp-network-tools")


class Config(Section):
    """Every section, and the state folder. Made by `mcp_server.config.load_config`.

    An assignment (``config.server.port = 9000``) is validated. A wrong value raises ConfigError and changes nothing.
    """

    state_dir: FilePath = Field(
        default_factory=default_state_dir,
        description="Folder of the store, raw output, logs and the token. A relative path starts at the folder in "
        "which the server was started.",
        json_schema_extra={**RESTART, "default_text": "the platform's state folder of this user"},
    )
    server: sections.ServerConfig = Field(default_factory=sections.ServerConfig)
    auth: sections.AuthConfig = Field(default_factory=sections.AuthConfig)
    security: sections.SecurityConfig = Field(default_factory=sections.SecurityConfig)
    guard: sections.GuardConfig = Field(default_factory=sections.GuardConfig)
    audit: sections.AuditConfig = Field(default_factory=sections.AuditConfig)
    admission: sections.AdmissionConfig = Field(default_factory=sections.AdmissionConfig)
    rate_limit: sections.RateLimitConfig = Field(default_factory=sections.RateLimitConfig)
    circuit_breaker: sections.CircuitBreakerConfig = Field(default_factory=sections.CircuitBreakerConfig)
    health: sections.HealthConfig = Field(default_factory=sections.HealthConfig)
    metrics: sections.MetricsConfig = Field(default_factory=sections.MetricsConfig)
    tracing: sections.TracingConfig = Field(default_factory=sections.TracingConfig)
    logging: sections.LoggingConfig = Field(default_factory=sections.LoggingConfig)
    tool: sections.ToolConfig = Field(default_factory=sections.ToolConfig)
    database: sections.DatabaseConfig = Field(default_factory=sections.DatabaseConfig)
    limits: sections.LimitsConfig = Field(default_factory=sections.LimitsConfig)

    _clamped: tuple[ClampedValue, ...] = PrivateAttr(default=())
    _file: Path | None = PrivateAttr(default=None)

    @property
    def clamped(self) -> tuple[ClampedValue, ...]:
        """The numbers that were moved into their range when the configuration was loaded."""
        return self._clamped

    @property
    def file(self) -> Path | None:
        """The file that the configuration was read from, or None."""
        return self._file

    @property
    def effective(self) -> EffectiveLimits:
        """Each limit once, computed from the present values."""
        return effective_limits(self.security, self.limits, self.tool)

    def scope_policy(self) -> ScopePolicy:
        """Read the scope policy from its file or from ``security.allowed_targets``; raises ConfigError."""
        from mcp_server.scope.policy import ScopePolicy

        security = self.security
        return ScopePolicy.load(
            security.policy_file, security.allowed_targets, entries_are_set=security.is_set("allowed_targets")
        )

    def redacted(self) -> dict[str, Any]:
        """Return all values, ready for JSON, without secrets: ``{section: {key: value}}`` and the top-level keys."""
        return redact_tree(self.model_dump(mode="json"))

    def mark_loaded(
        self, *, file: Path | None, clamped: tuple[ClampedValue, ...], sources: dict[tuple[str, str], Source]
    ) -> None:
        """Record the results of loading: the file, the clamped numbers, and the source of each (section, key)."""
        self._file, self._clamped = file, clamped
        for (section, key), source in sources.items():
            holder: Section = getattr(self, section) if section else self
            holder.set_source(key, source)
