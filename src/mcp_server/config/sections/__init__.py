"""The sections of the configuration. ``Field(description=…)`` is the documentation of a key.

`docs/configuration.md` is generated from these classes. A key marked `RESTART` is read when the server starts. Every
other key is read each time it is used, so a reload applies it.
"""

from mcp_server.config.sections.auth import AuthConfig
from mcp_server.config.sections.limits import (
    AdmissionConfig,
    CircuitBreakerConfig,
    LimitsConfig,
    RateLimitConfig,
    ToolConfig,
)
from mcp_server.config.sections.observability import HealthConfig, LoggingConfig, MetricsConfig, TracingConfig
from mcp_server.config.sections.security import GuardConfig, SecurityConfig
from mcp_server.config.sections.server import ServerConfig
from mcp_server.config.sections.storage import AuditConfig, DatabaseConfig

__all__ = [
    "AdmissionConfig",
    "AuditConfig",
    "AuthConfig",
    "CircuitBreakerConfig",
    "DatabaseConfig",
    "GuardConfig",
    "HealthConfig",
    "LimitsConfig",
    "LoggingConfig",
    "MetricsConfig",
    "RateLimitConfig",
    "SecurityConfig",
    "ServerConfig",
    "ToolConfig",
    "TracingConfig",
]
