"""The whole configuration as one object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PrivateAttr

from mcp_server.config.auth import AuthConfig
from mcp_server.config.base import RESTART, FilePath, Section, Source
from mcp_server.config.effective import EffectiveLimits, effective_limits
from mcp_server.config.redact import redact_tree
from mcp_server.config.sections import (
    AdmissionConfig,
    AuditConfig,
    CircuitBreakerConfig,
    DatabaseConfig,
    GuardConfig,
    HealthConfig,
    LimitsConfig,
    LoggingConfig,
    MetricsConfig,
    RateLimitConfig,
    SecurityConfig,
    ServerConfig,
    ToolConfig,
    TracingConfig,
)

if TYPE_CHECKING:
    from mcp_server.config.show import KeyInfo
    from mcp_server.scope.policy import ScopePolicy


@dataclass(frozen=True, slots=True)
class ClampedValue:
    """A number from file or environment that was moved to the nearest bound of its range."""

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


@dataclass(frozen=True, slots=True)
class UnusedKey:
    """A key that was set although nothing reads it yet."""

    section: str
    key: str

    def __str__(self) -> str:
        return f"config.not_yet_used section={self.section} key={self.key}"


def default_state_dir() -> Path:
    """The platform's folder for state that outlives the program (XDG_STATE_HOME on Linux)."""
    from platformdirs import user_state_path

    return user_state_path("mcp-network-tools")


class Config(Section):
    """Every section, and where the state lies. Made by `mcp_server.config.load_config`.

    An assignment (``config.server.port = 9000``) is validated; a bad one raises `ConfigError` and changes nothing.
    """

    state_dir: FilePath = Field(
        default_factory=default_state_dir,
        description="Folder of the store, raw output, logs and the token. A relative path counts from the folder the "
        "server was started in.",
        json_schema_extra={**RESTART, "default_text": "the platform's state folder of this user"},
    )
    server: ServerConfig = Field(default_factory=ServerConfig)
    auth: AuthConfig = Field(default_factory=AuthConfig)
    security: SecurityConfig = Field(default_factory=SecurityConfig)
    guard: GuardConfig = Field(default_factory=GuardConfig)
    audit: AuditConfig = Field(default_factory=AuditConfig)
    admission: AdmissionConfig = Field(default_factory=AdmissionConfig)
    rate_limit: RateLimitConfig = Field(default_factory=RateLimitConfig)
    circuit_breaker: CircuitBreakerConfig = Field(default_factory=CircuitBreakerConfig)
    health: HealthConfig = Field(default_factory=HealthConfig)
    metrics: MetricsConfig = Field(default_factory=MetricsConfig)
    tracing: TracingConfig = Field(default_factory=TracingConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    tool: ToolConfig = Field(default_factory=ToolConfig)
    database: DatabaseConfig = Field(default_factory=DatabaseConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)

    _clamped: tuple[ClampedValue, ...] = PrivateAttr(default=())
    _not_yet_used: tuple[UnusedKey, ...] = PrivateAttr(default=())
    _file: Path | None = PrivateAttr(default=None)

    @property
    def clamped(self) -> tuple[ClampedValue, ...]:
        """The numbers that were moved into their range when this was loaded."""
        return self._clamped

    @property
    def not_yet_used(self) -> tuple[UnusedKey, ...]:
        """The keys that were set although nothing reads them yet."""
        return self._not_yet_used

    @property
    def file(self) -> Path | None:
        """The file this was read from, or None."""
        return self._file

    @property
    def effective(self) -> EffectiveLimits:
        """Each limit once; ask again after an assignment."""
        return effective_limits(self.security, self.limits, self.tool)

    def scope_policy(self) -> ScopePolicy:
        """The policy that draws the scope, read again; raises ConfigError."""
        from mcp_server.scope.policy import ScopePolicy

        security = self.security
        return ScopePolicy.load(
            security.policy_file, security.allowed_targets, entries_are_set=security.is_set("allowed_targets")
        )

    def redacted(self) -> dict[str, Any]:
        """Everything, ready for JSON, without secrets: ``{section: {key: value}}`` and the top-level keys."""
        return redact_tree(self.model_dump(mode="json"))

    def describe(self) -> list[KeyInfo]:
        """One `KeyInfo` for every key, in the order of the documentation."""
        from mcp_server.config.show import describe

        return describe(self)

    def mark_loaded(
        self,
        *,
        file: Path | None,
        clamped: tuple[ClampedValue, ...],
        not_yet_used: tuple[UnusedKey, ...],
        sources: dict[tuple[str, str], Source],
    ) -> None:
        """Record what the loader saw: the file, its notices, and the source of each (section, key)."""
        self._file, self._clamped, self._not_yet_used = file, clamped, not_yet_used
        for (section, key), source in sources.items():
            holder: Section = getattr(self, section) if section else self
            holder.set_source(key, source)
